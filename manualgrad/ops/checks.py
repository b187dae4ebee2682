"""Checks of arguments, made once when a public function is called. Each raises an error that names the argument.

``function`` is the name of the public function in the message, ``name`` that of the argument.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

FLOATING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_tensor(function: str, name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(value).__name__}")


def require_floating(function: str, **tensors: Tensor | None) -> None:
    """Raise TypeError unless the tensors that are not None share one dtype of ``FLOATING_DTYPES``.

    Raise ValueError unless they are on one device.
    """
    first, reference = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        require_tensor(function, name, tensor)
        if tensor.dtype not in FLOATING_DTYPES:
            is_integer = not tensor.is_complex() and not tensor.is_floating_point()
            hint = f"; convert it first, for example {name}.float()" if is_integer else ""
            raise TypeError(f"{function}: {name} must be floating point, got {tensor.dtype}{hint}")
        if reference is None:
            first, reference = name, tensor
        elif tensor.dtype != reference.dtype:
            raise TypeError(
                f"{function}: {first} and {name} must have one dtype, got {reference.dtype} and {tensor.dtype}"
            )
        elif tensor.device != reference.device:
            raise ValueError(
                f"{function}: {first} and {name} must be on one device, got {reference.device} and {tensor.device}"
            )


def require_real(function: str, input: Tensor) -> None:
    """Raise TypeError unless ``input`` is a tensor of real numbers; integers are allowed, bool is not."""
    require_tensor(function, "input", input)
    if input.dtype == torch.bool or input.is_complex():
        raise TypeError(f"{function}: input must be a tensor of real numbers, got {input.dtype}")


def require_fraction(function: str, name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{function}: {name} must lie between 0 and 1, got {value}")


def require_images(function: str, input: Tensor) -> None:
    """Raise ValueError unless ``input`` has the shape (N, C, H, W) or (C, H, W); TypeError unless it is a tensor."""
    require_tensor(function, "input", input)
    if input.dim() not in (3, 4):
        raise ValueError(
            f"{function}: input must have shape (N, C, H, W) or (C, H, W), got shape {tuple(input.shape)}"
        )


def as_integer(function: str, name: str, value: int, minimum: int) -> int:
    """Return ``value`` as a Python int. Raise ValueError unless it is an integer >= ``minimum``."""
    number = integer_or_none(value)
    if number is None or number < minimum:
        raise ValueError(f"{function}: {name} must be an integer >= {minimum}, got {value!r}")
    return number


def as_pair(function: str, name: str, value: int | tuple[int, int], minimum: int) -> tuple[int, int]:
    """Return ``value`` as (rows, columns). Raise ValueError unless it is one or two integers >= ``minimum``."""
    if type(value) is int and value >= minimum:  # most calls
        return value, value
    values = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    if len(values) == 2 and all(type(number) is int and number >= minimum for number in values):
        return values[0], values[1]
    numbers = [number for number in map(integer_or_none, values) if number is not None and number >= minimum]
    if len(values) not in (1, 2) or len(numbers) != len(values):
        raise ValueError(
            f"{function}: {name} must be an integer or a pair (rows, columns), each >= {minimum}, got {value!r}"
        )
    return numbers[0], numbers[-1]


def as_dim(function: str, input: Tensor, dim: int) -> int:
    """Return ``dim`` as a Python int. Raise IndexError unless ``input`` has that dimension."""
    dims = max(1, input.dim())  # a scalar counts as one dimension, as in PyTorch
    number = integer_or_none(dim)
    if number is None or not -dims <= number < dims:
        raise IndexError(f"{function}: dim must lie between {-dims} and {dims - 1}, got {dim!r}")
    return number


def integer_or_none(value: object) -> int | None:
    """Return ``value`` as a Python int, integers of NumPy and torch included; None if it is no integer."""
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]  # PyTorch's traced int, which stands for an int
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except TypeError:  # a floating-point tensor has __index__, which raises
        return None
