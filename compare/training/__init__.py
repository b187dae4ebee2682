"""Accuracy for accuracy: both networks trained from the same weights on the same batches."""
