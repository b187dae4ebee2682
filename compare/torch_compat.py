"""Private names of PyTorch that the diagnosis needs, all in this file: a release of PyTorch may move them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

try:
    from torch._decomp import decomposition_table
except ImportError as error:
    raise ImportError(
        f"compare: expected torch._decomp.decomposition_table, which PyTorch {torch.__version__} does not have; "
        "compare/torch_compat.py is the file to change"
    ) from error

# PyTorch's own formulas of operations in terms of simpler ones. Without them a derivative that is one operation, such
# as _softmax_backward_data, could not be taken apart, and a mistake within it would have no name.
FORMULAS_OF_OPERATIONS: Mapping[Any, Callable[..., Any]] = decomposition_table
