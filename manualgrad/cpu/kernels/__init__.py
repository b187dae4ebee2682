"""The kernels, one per file or two that share their loops; each computes the formula that its docstring states."""
