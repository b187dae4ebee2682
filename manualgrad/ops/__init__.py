"""One operation per file, read top-down: the mathematics, the formulas, the Functions, the public function."""

from manualgrad.ops import (  # noqa: F401  # they register the operators of compiled graphs
    conv2d_operators,
    conv_relu_pool_operators,
    pool_operators,
)
