"""Arguments are looked at once, at the door, so that a mistake is named before any work is done."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def a_tensor(function: str, name: str, value: object) -> None:
    """Raises TypeError unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(value).__name__}")


def floating(function: str, **tensors: Tensor | None) -> None:
    """Raises TypeError unless all tensors given are of one dtype of FLOATING, ValueError unless on one device."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in given.items():
        a_tensor(function, name, tensor)
        if tensor.dtype not in FLOATING:
            whole = not tensor.is_complex() and not tensor.is_floating_point()
            hint = f"; convert it first, for example {name}.float()" if whole else ""
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


def real(function: str, input: Tensor) -> None:
    """Raises TypeError unless ``input`` is a tensor of real numbers, whole ones included."""
    a_tensor(function, "input", input)
    if input.dtype == torch.bool or input.is_complex():
        raise TypeError(f"{function}: input must be a tensor of real numbers, got {input.dtype}")


def share(function: str, name: str, value: float) -> None:
    """Raises ValueError unless ``value`` lies between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{function}: {name} must lie between 0 and 1, got {value}")


def whole(function: str, name: str, value: int, least: int) -> int:
    """``value`` as a Python int; raises ValueError unless it is one whole number >= ``least``."""
    number = index(value)
    if number is None or number < least:
        raise ValueError(f"{function}: {name} must be a whole number, at least {least}, got {value!r}")
    return number


def pair(function: str, name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    """``value`` as (rows, columns); raises ValueError unless it is one or two whole numbers >= ``least``."""
    values = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    numbers = tuple(index(v) for v in values)
    if len(numbers) not in (1, 2) or any(n is None or n < least for n in numbers):
        raise ValueError(
            f"{function}: {name} must be a whole number or a pair (rows, columns), at least {least}, got {value!r}"
        )
    return numbers * 2 if len(numbers) == 1 else numbers


def index(value: object) -> int | None:
    """``value`` as a whole number, NumPy's and torch's own among them; None where it is something else."""
    if isinstance(value, torch.SymInt):
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except TypeError:  # a tensor of fractions has __index__ and refuses it
        return None


def images(function: str, input: Tensor) -> None:
    """Raises unless ``input`` is (B, C, H, W) or (C, H, W)."""
    a_tensor(function, "input", input)
    if input.dim() not in (3, 4):
        raise ValueError(
            f"{function}: input must be (batch, channel, row, column) or (channel, row, column), "
            f"got shape {tuple(input.shape)}"
        )


def dimension(function: str, input: Tensor, dim: int) -> int:
    """``dim`` as a Python int; raises IndexError unless ``input`` has the dimension ``dim``."""
    dims = max(1, input.dim())  # a single number counts as one dimension, as in PyTorch
    number = index(dim)
    if number is None or not -dims <= number < dims:
        raise IndexError(f"{function}: dim must lie between {-dims} and {dims - 1}, got {dim!r}")
    return number
