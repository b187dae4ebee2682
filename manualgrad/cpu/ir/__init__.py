"""The language that kernels are written in: LLVM values with Python operators, vectors of floats, tiles."""
