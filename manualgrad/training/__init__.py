"""Training runs: steps, checkpoints, metrics, exit codes, and training on several processes."""
