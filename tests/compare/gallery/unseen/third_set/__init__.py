"""The third set: 25 operations, each as a right Function and as one or two wrong ones, 49 in all."""
