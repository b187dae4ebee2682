"""The language that kernels are written in: LLVM values with Python's operators, vectors of floats, tiles."""
