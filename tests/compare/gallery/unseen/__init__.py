"""Functions that were written without knowledge of the diagnosis, and its score on them."""
