"""A small network, and how closely two of its runs must agree."""

from __future__ import annotations

import pytest
import torch

import manualgrad as mg
from tests.operations import SMALL_OPERATIONS, operation_id

every_operation = pytest.mark.parametrize("operation", SMALL_OPERATIONS, ids=operation_id)


# The same sums in another order: results differ by a few roundings of float64.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def small_network(device="cpu", **options):
    return mg.DocumentCNN(image_size=16, channels=(2, 3), hidden=(5,), device=device, dtype=torch.float64, **options)
