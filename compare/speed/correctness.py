"""Correctness check before timing: outputs and gradients against native's in float64. Wrong results are not timed.

Each contender is checked on two inputs. The first are whole numbers: their sums and products have no rounding, so
ties and exact zeros are the same in float32 and float64, and the gradient of every tie must go to the same element.
The second is the data that will be timed; this also finds a contender that returns the results of an earlier call.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

NEAR_TIE_TOLERANCE = 0.05
"""Relative error allowed for random data where a maximum follows a sum: rounding reverses a few near ties, in native
too, and each sends the gradient of one element elsewhere. One in N elements is 1/√N of a gradient's norm; N is above
2,000 even for one image."""


def rounding_tolerance(num_terms: int, device: str | torch.device) -> float:
    """Relative error of the norm that is allowed for a float32 sum of ``num_terms`` terms: 4 ε √num_terms.

    Rounding errors of a sum are a random walk of √num_terms steps of at most ε. The factor 4 is for the layers that
    an error passes through. On CUDA, where PyTorch rounds the factors of a convolution to TF32, ε is that of TF32.
    """
    uses_tf32 = torch.device(device).type == "cuda" and torch.backends.cudnn.allow_tf32
    return 4 * (2.0**-11 if uses_tf32 else torch.finfo(torch.float32).eps) * max(1, num_terms) ** 0.5


def describe_mismatches(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float | Mapping[str, float]
) -> list[str]:
    """One sentence for each named tensor that is missing, has another shape, is not finite, or is too far off."""
    mismatches = []
    for name, expected_tensor in expected.items():
        limit = tolerance if isinstance(tolerance, float) else tolerance[name]
        tensor = actual.get(name)
        if tensor is None:
            mismatches.append(f"{name} is missing")
        elif tensor.shape != expected_tensor.shape:
            mismatches.append(f"{name} has the shape {tuple(tensor.shape)} instead of {tuple(expected_tensor.shape)}")
        else:
            error = relative_error(tensor, expected_tensor)
            if not error <= limit:  # also true for NaN
                mismatches.append(f"{name} is off by {error:.2g} of its norm; rounding explains {limit:.2g}")
    return mismatches


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; 0 if both are zero."""
    actual, expected = actual.detach().double(), expected.detach().double()
    error, size = (actual - expected).norm().item(), expected.norm().item()
    return 0.0 if error == 0 else error / size if size else float("inf")
