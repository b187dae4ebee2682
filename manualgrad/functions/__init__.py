"""One operation a file: its mathematics, its formulas, its Functions, and the function that people call."""
