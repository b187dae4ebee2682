"""Kernels in Triton, and what they share. Each module says which formula its kernel computes."""
