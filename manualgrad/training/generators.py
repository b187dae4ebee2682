"""The states of the random generators that a layer or an optimiser may draw from, as tensors and plain numbers."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

PYTHON_VERSION = 3  # of random.getstate()
CUDA_BYTES = 16  # of a CUDA generator's state; without such a device there are as many zeros


def states() -> dict[str, Any]:
    """Those of torch (CPU and the current CUDA device), Python's ``random`` and NumPy's global generator."""
    _, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state()
        if torch.cuda.is_available()
        else torch.zeros(CUDA_BYTES, dtype=torch.uint8),
        "python": torch.tensor(words, dtype=torch.int64),
        "python's next of a pair": math.nan if gauss is None else gauss,
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "numpy's position": int(numpy["state"]["pos"]),
        "numpy's pair is half used": int(numpy["has_gauss"]),
        "numpy's next of a pair": float(numpy["gauss"]),
    }


def restore(saved: dict[str, Any]) -> None:
    """Make ``saved``, which is built like :func:`states`, the states again.

    A state of CUDA's is left alone where there is no such device now, or was none. Raises ValueError, RuntimeError,
    TypeError or OverflowError for numbers that are no state.
    """
    gauss = saved["python's next of a pair"]
    random.setstate((PYTHON_VERSION, tuple(saved["python"].tolist()), None if math.isnan(gauss) else gauss))
    position, key = saved["numpy's position"], saved["numpy"]
    if not 0 <= position <= len(key) or not 0 <= saved["numpy's pair is half used"] <= 1:
        raise ValueError(f"numpy's generator cannot be at {position} of {len(key)}")  # NumPy would read past its end
    if not bool(((key >= 0) & (key < 1 << 32)).all()):
        raise ValueError("numpy's generator: expected words of 32 bits")
    np.random.set_state({
        "bit_generator": "MT19937",
        "state": {"key": key.numpy().astype(np.uint32), "pos": position},
        "has_gauss": saved["numpy's pair is half used"],
        "gauss": saved["numpy's next of a pair"],
    })  # fmt: skip
    torch.set_rng_state(saved["torch"])
    cuda: Tensor = saved["cuda"]
    if torch.cuda.is_available() and cuda.any():
        torch.cuda.set_rng_state(cuda)
