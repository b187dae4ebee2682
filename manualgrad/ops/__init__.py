"""One operation per file, read top-down: the mathematics, the formulas, the Functions, the public function."""
