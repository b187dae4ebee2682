"""Functions on which the diagnosis may be improved."""
