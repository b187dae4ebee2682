"""Words of this package about the four mistakes that ``python -m manualgrad follow`` shows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compare import native_functions as native
from compare.case import Case
from compare.gradients.comparison import compare
from manualgrad.follow import mistakes

LABELS = torch.arange(64) * 7 % 10


def cases() -> dict[str, Case]:
    """A case for each mistake, by the name that the page gives it."""
    return {
        "flip": Case(
            "conv2d", mistakes.conv2d_without_flip, native.conv2d, _randn(input=(2, 3, 9, 8), weight=(4, 3, 5, 5))
        ),
        "ties": Case("max_pool2d", mistakes.max_pool2d_to_all_ties, native.max_pool2d, _randn(input=(2, 3, 8, 7))),
        "half": Case("relu", mistakes.relu_without_half, native.relu, _randn(input=(4, 30))),
        "mean": Case(
            "softmax_cross_entropy",
            lambda input: mistakes.cross_entropy_without_mean(input, LABELS),
            lambda input: torch.nn.functional.cross_entropy(input, LABELS),
            _randn(input=(64, 10)),
        ),
    }


def verdicts() -> dict[str, str]:
    """Compare each mistake with the native function, and return what is found, by the mistake's name."""
    return {name: str(compare(case, dtypes=(torch.float64,))) for name, case in cases().items()}


def _randn(**shapes: tuple[int, ...]) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randn(shape) for name, shape in shapes.items()}
