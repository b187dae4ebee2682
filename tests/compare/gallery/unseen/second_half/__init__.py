"""Functions that are kept apart for the last measurement."""
