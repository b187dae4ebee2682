"""The formula sheet in nested loops over float64 NumPy arrays: the reference that the rest is checked against."""
