"""One kernel per file; each computes the formula that its docstring states."""
