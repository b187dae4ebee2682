"""Comparison of values that were read from a file with values of the expected structure, before they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_QUOTED = 200  # characters of a text from a file that a message quotes


def printable(text: object) -> str:
    """Return ``text`` as one short line without control characters, so that it is safe to print to a terminal."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: MAX_QUOTED + 1])
    return line if len(line) <= MAX_QUOTED else line[:MAX_QUOTED] + "…"


def require_same_structure(value: Any, expected: object, name: str, *, equal: bool = False) -> None:
    """Raise ValueError unless ``value`` has the structure of ``expected``.

    Two values have the same structure if their types are identical and

    - mappings have the same keys, and their items the same structure;
    - sequences have the same length, and their items the same structure;
    - tensors have the same shape and dtype, and ``value`` is a strided tensor on the CPU.

    Only ``expected`` is traversed. A value that is deeply nested or contains itself therefore costs nothing.

    Args:
        name: name of the value in the message.
        equal: everything but tensors must also be equal.
    """
    value_type, expected_type = type(value), type(expected)
    if value_type is not expected_type:
        raise ValueError(f"{name}: expected {expected_type.__name__}, got {value_type.__name__}")
    if isinstance(expected, Tensor):
        _require_same_tensor_type(value, expected, name)
    elif isinstance(expected, Mapping):
        for key in (key for key in expected if key not in value):
            raise ValueError(f"{name}: key {key} is missing")
        for key in (key for key in value if key not in expected):
            raise ValueError(f"{name}: unexpected key {printable(repr(key))}")
        for key, item in expected.items():
            require_same_structure(value[key], item, f"{name}.{key}", equal=equal)
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        if len(value) != len(expected):
            raise ValueError(f"{name}: expected {len(expected):,} items, got {len(value):,}")
        for n, item in enumerate(expected):
            require_same_structure(value[n], item, f"{name}[{n}]", equal=equal)
    elif equal and value != expected:
        raise ValueError(f"{name}: expected {printable(repr(expected))}, got {printable(repr(value))}")


def _require_same_tensor_type(value: Tensor, expected: Tensor, name: str) -> None:
    if value.shape != expected.shape or value.dtype != expected.dtype:
        raise ValueError(
            f"{name}: expected shape {tuple(expected.shape)} and {expected.dtype}, "
            f"got {printable(tuple(value.shape))} and {value.dtype}"
        )
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise ValueError(f"{name}: expected a strided tensor on the CPU, got {value.layout} on {value.device}")
