"""Many layers as one plan: a program of kernels that runs a network forward, backward and through its update."""
