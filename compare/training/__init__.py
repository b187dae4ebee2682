"""Comparison of trainings: ours and native, from the same weights on the same batches."""
