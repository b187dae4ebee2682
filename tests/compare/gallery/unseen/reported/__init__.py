"""Mistakes that people reported to public projects, each as a Function of its own; ``named`` cites the report."""
