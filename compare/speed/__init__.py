"""Speed and memory of ours and native: interleaved measurements in one process, after a check of correctness."""
