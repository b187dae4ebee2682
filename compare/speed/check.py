"""Whether an answer is right: outputs and gradients beside native's in float64. What is wrong is never timed.

Each contender is asked twice. First for whole numbers: their sums and products have no rounding, so that ties and
exact zeros are the same in float32 and float64, and every gradient must go the same way. Then for the data that will
be timed; this also notices who answers the second question with the answer to the first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

NEAR_TIES = 0.05
"""Drawn data, a maximum after a sum: rounding turns a few near ties around, natively too, and each sends one δ
elsewhere. One in N of them is 1/√N of a gradient's norm; N is above 2,000 even for one image."""


def tolerance(terms: int, device: str | torch.device) -> float:
    """The relative error, by norm, that a sum of ``terms`` in float32 is allowed: 4 ε √terms.

    Rounding errors of a sum are a random walk of at most one ε each: √terms of them. The 4 is for the layers that an
    error passes through. On CUDA, where PyTorch rounds a convolution's factors to TF32, ε is TF32's.
    """
    rounded = torch.device(device).type == "cuda" and torch.backends.cudnn.allow_tf32
    return 4 * (2.0**-11 if rounded else torch.finfo(torch.float32).eps) * max(1, terms) ** 0.5


def mistakes(
    got: Mapping[str, Tensor], expected: Mapping[str, Tensor], allowed: float | Mapping[str, float]
) -> list[str]:
    """One sentence for each named tensor that is missing, of another shape, not finite, or too far off."""
    found = []
    for name, right in expected.items():
        limit = allowed if isinstance(allowed, float) else allowed[name]
        answer = got.get(name)
        if answer is None:
            found.append(f"{name} is missing")
        elif answer.shape != right.shape:
            found.append(f"{name} has the shape {tuple(answer.shape)} instead of {tuple(right.shape)}")
        else:
            error = distance(answer, right)
            if not error <= limit:  # NaN is not
                found.append(f"{name} is off by {error:.2g} of its norm, where rounding explains {limit:.2g}")
    return found


def distance(answer: Tensor, right: Tensor) -> float:
    """‖answer − right‖ / ‖right‖ in float64; 0 for two zeros."""
    answer, right = answer.detach().double(), right.detach().double()
    error, size = (answer - right).norm().item(), right.norm().item()
    return 0.0 if error == 0 else error / size if size else float("inf")
