"""Changes of the user's own source that make a wrong function right: a mistake is named by its correction."""
