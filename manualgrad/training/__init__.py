"""A training run: its steps, what it keeps and shows, how it ends, and how several processes share it."""
