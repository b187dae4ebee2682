"""Tensors as text for the page's JSON: the bits of float32 in base64, so that the page has exactly these numbers."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def encode(tensor: Tensor) -> dict[str, Any]:
    """``{"shape": [...], "f32": base64}`` of a floating-point tensor, or "u8" of a uint8 tensor; little-endian."""
    array = np.ascontiguousarray(tensor.detach().numpy())
    key, dtype = ("u8", "u1") if array.dtype == np.uint8 else ("f32", "<f4")
    return {"shape": list(array.shape), key: base64.b64encode(array.astype(dtype).tobytes()).decode()}


def encode_all(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """:func:`encode` for each tensor."""
    return {name: encode(tensor) for name, tensor in tensors.items()}


def as_script(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside a ``<script>`` element. Raises ValueError for NaN and infinity."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
