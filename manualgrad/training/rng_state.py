"""States of all random generators that a layer or an optimizer may use, as tensors and plain numbers."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

PYTHON_VERSION = 3  # version of the format of random.getstate()
CUDA_STATE_BYTES = 16  # size of the state of a CUDA generator; without CUDA the state is as many zeros


def get_rng_states() -> dict[str, Any]:
    """States of torch's CPU and current CUDA generator, Python's ``random``, and NumPy's global generator."""
    _, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state()
        if torch.cuda.is_available()
        else torch.zeros(CUDA_STATE_BYTES, dtype=torch.uint8),
        "python": torch.tensor(words, dtype=torch.int64),
        "python's next of a pair": math.nan if gauss is None else gauss,
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "numpy's position": int(numpy["state"]["pos"]),
        "numpy's pair is half used": int(numpy["has_gauss"]),
        "numpy's next of a pair": float(numpy["gauss"]),
    }


def set_rng_states(states: dict[str, Any]) -> None:
    """Restore ``states``, which has the structure of the result of :func:`get_rng_states`.

    The CUDA state is restored only if a CUDA device is available now and was available then.

    Raises:
        ValueError, RuntimeError, TypeError, OverflowError: the numbers are not a valid state.
    """
    gauss = states["python's next of a pair"]
    random.setstate((PYTHON_VERSION, tuple(states["python"].tolist()), None if math.isnan(gauss) else gauss))
    position, key = states["numpy's position"], states["numpy"]
    if not 0 <= position <= len(key) or not 0 <= states["numpy's pair is half used"] <= 1:
        # NumPy does not check the position and would read beyond the end of the key.
        raise ValueError(f"NumPy's generator: expected a position from 0 to {len(key)}, got {position}")
    if not bool(((key >= 0) & (key < 1 << 32)).all()):
        raise ValueError("NumPy's generator: expected words of 32 bits")
    np.random.set_state({
        "bit_generator": "MT19937",
        "state": {"key": key.numpy().astype(np.uint32), "pos": position},
        "has_gauss": states["numpy's pair is half used"],
        "gauss": states["numpy's next of a pair"],
    })  # fmt: skip
    torch.set_rng_state(states["torch"])
    cuda: Tensor = states["cuda"]
    if torch.cuda.is_available() and cuda.any():
        torch.cuda.set_rng_state(cuda)
