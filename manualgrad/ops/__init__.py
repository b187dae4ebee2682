"""One operation per file, read top-down: the mathematics, the formulas, the Functions, the public function."""

from manualgrad.ops import conv_relu_pool_operators  # noqa: F401  # registers the operators of compiled graphs
