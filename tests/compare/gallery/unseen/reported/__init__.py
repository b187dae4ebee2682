"""Mistakes that were reported to public projects, each written as a Function of its own; ``named`` cites the report."""
