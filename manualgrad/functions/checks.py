"""Arguments are looked at once, at the door, so that a mistake is named before any work is done."""

from __future__ import annotations

import torch
from torch import Tensor


def floating(function: str, **tensors: Tensor | None) -> None:
    """Raises TypeError unless all tensors given are real floating point, of one dtype and on one device."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{function}: {name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            hint = "" if tensor.is_complex() else f"; convert it first, for example {name}.float()"
            raise TypeError(f"{function}: {name} must be floating point, got {tensor.dtype}{hint}")
    (first, reference), *others = given.items()
    for name, tensor in others:
        if tensor.dtype != reference.dtype:
            raise TypeError(
                f"{function}: {first} and {name} must have one dtype, got {reference.dtype} and {tensor.dtype}"
            )
        if tensor.device != reference.device:
            raise ValueError(
                f"{function}: {first} and {name} must be on one device, got {reference.device} and {tensor.device}"
            )


def whole(function: str, name: str, value: int, least: int) -> None:
    """Raises ValueError unless ``value`` is one whole number >= ``least``."""
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{function}: {name} must be a whole number, at least {least}, got {value!r}")


def pair(function: str, name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    """``value`` as (rows, columns); raises ValueError unless it is one or two whole numbers >= ``least``."""
    values = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    if len(values) == 1:
        values *= 2
    whole = all(isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not whole or min(values) < least:
        raise ValueError(
            f"{function}: {name} must be a whole number or a pair (rows, columns), at least {least}, got {value!r}"
        )
    return values


def images(function: str, input: Tensor) -> None:
    """Raises unless ``input`` is (B, C, H, W) or (C, H, W), with at least one channel, row and column."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{function}: input must be a tensor, got {type(input).__name__}")
    shape = tuple(input.shape)
    if len(shape) not in (3, 4):
        raise ValueError(
            f"{function}: input must be (batch, channel, row, column) or (channel, row, column), got shape {shape}"
        )
    if 0 in shape[-3:]:
        raise ValueError(f"{function}: only the batch may be empty, got input of shape {shape}")


def dimension(function: str, input: Tensor, dim: int) -> None:
    """Raises IndexError unless ``input`` has the dimension ``dim``."""
    dims = max(1, input.dim())  # a single number counts as one dimension, as in PyTorch
    if not isinstance(dim, int) or not -dims <= dim < dims:
        raise IndexError(f"{function}: dim must lie between {-dims} and {dims - 1}, got {dim!r}")
