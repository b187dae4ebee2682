"""What came from a file is held against what is expected there, before anything uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

LONGEST = 200  # characters of a foreign text that a message quotes


def printable(text: object) -> str:
    """One short line that does nothing to a terminal, whatever ``text`` holds."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: LONGEST + 1])
    return line if len(line) <= LONGEST else line[:LONGEST] + "…"


def require_alike(found: object, expected: object, name: str, *, equal: bool = False) -> None:
    """Raise ValueError, with ``name`` and both sides, unless ``found`` is built like ``expected``.

    Alike are values of exactly the same type; mappings with the same keys and sequences of the same length whose
    items are alike; tensors of the same shape and dtype that lie in memory, element by element. With ``equal``,
    everything but tensors has to be equal as well. Only what ``expected`` has is walked through, so that a foreign
    structure, however deep or self-referring, costs nothing.
    """
    if type(found) is not type(expected):
        raise ValueError(f"{name}: expected {type(expected).__name__}, found {type(found).__name__}")
    if isinstance(expected, Tensor):
        _require_like_tensor(found, expected, name)
    elif isinstance(expected, Mapping):
        for key in (key for key in expected if key not in found):
            raise ValueError(f"{name}: {key} is missing")
        for key in (key for key in found if key not in expected):
            raise ValueError(f"{name}: {printable(repr(key))} has no place there")
        for key, value in expected.items():
            require_alike(found[key], value, f"{name}.{key}", equal=equal)
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        if len(found) != len(expected):
            raise ValueError(f"{name}: expected {len(expected):,} items, found {len(found):,}")
        for n, value in enumerate(expected):
            require_alike(found[n], value, f"{name}[{n}]", equal=equal)
    elif equal and found != expected:
        raise ValueError(f"{name}: expected {printable(repr(expected))}, found {printable(repr(found))}")


def _require_like_tensor(found: Tensor, expected: Tensor, name: str) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(
            f"{name}: expected {tuple(expected.shape)} of {expected.dtype}, "
            f"found {printable(tuple(found.shape))} of {found.dtype}"
        )
    if found.layout is not torch.strided or found.device.type != "cpu":
        raise ValueError(f"{name}: expected numbers in memory, found a tensor on {found.device}, {found.layout}")
