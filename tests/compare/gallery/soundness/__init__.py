"""Wrong gradients that are right in some situations, by the situation that shows them, and right ones."""
