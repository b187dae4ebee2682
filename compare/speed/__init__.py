"""Speed and memory, ours and native in turn in one process; correctness first."""
