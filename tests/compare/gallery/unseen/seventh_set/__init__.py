"""The seventh set: written like the sixth, without a look at the diagnosis, and with other operations."""
