"""Values that may stand in the place of an argument of a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis import changed_native as changed
from compare.gradients.diagnosis.native_calls import Call
from compare.gradients.diagnosis.transformations import transformations


def recorded(key: Any, offset: int, operand: Callable[[Call], Tensor]) -> Callable[[Call], Tensor]:
    """Look up a recorded tensor, in the shape of the operand in whose place it is tried."""

    def lookup(call: Call) -> Tensor:
        values = call.records[key]
        number = (call.iteration if len(values) > 1 else 0) + offset
        if not 0 <= number < len(values):
            return torch.zeros_like(operand(call))
        return values[number].reshape(operand(call).shape)

    return lookup


def argument_of(number: int) -> Callable[[Call], Tensor]:
    return lambda call: call.flat[number]


def called_with(number: int, instead: Any) -> Callable[[Call], Tensor]:
    def value(call: Call) -> Tensor:
        flat = call.flat
        flat[number] = instead
        if instead == "nearest":  # which has no option align_corners
            flat = [None if isinstance(v, bool) else v for v in flat]
        return changed.evaluate(call, flat)

    return value


def called_with_option(name: str, value: Any) -> Callable[[Call], Tensor]:
    return lambda call: call.function(*call.args, **{**call.kwargs, name: value})


def options_not_given(call: Call) -> dict[str, Any]:
    """Truth values, words and fractions that a function of Python has by default in this call."""
    try:
        parameters = inspect.signature(call.function).parameters
    except (TypeError, ValueError):  # a builtin function, whose signature is unknown
        return {}
    named = list(parameters.values())[len(call.args) :]
    return {
        p.name: p.default
        for p in named
        if isinstance(p.default, (bool, str, float)) and p.name not in (*call.kwargs, "inplace", "_stacklevel")
    }


# Words that options of PyTorch's functions have.
MODES = (
    "nearest", "linear", "bilinear", "bicubic", "mean", "sum", "constant", "reflect", "replicate", "circular", "tanh",
    "none",
)  # fmt: skip


def everywhere(value: Any, instead: Any) -> Callable[[Call], Tensor]:
    """The call with every argument that is this number replaced."""

    def changed_value(call: Call) -> Tensor:
        flat = call.flat
        return changed.evaluate(call, [instead if type(v) is type(value) and v == value else v for v in flat])

    return changed_value


def other_numbers(value: Any, dims: int) -> list[Any]:
    """Numbers that may stand in the place of a number in a call, words in that of a word."""
    if isinstance(value, str):
        return [mode for mode in MODES if mode != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        near = [value - 1, value + 1, -value, 0, 1, *range(-dims, 0)]
        return [n for n in dict.fromkeys(near) if n != value]
    if isinstance(value, float):
        near_by = [0.0, 1.0, -value, 2 * value, value / 2, value * value, value + 1, value - 1, -1e9]
        return [x for x in dict.fromkeys(near_by) if x != value]
    return []


def other_indices(indices: Tensor, last: int | None = None) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Wrong indices: the first for all, the last for all, in another order, one off.

    Args:
        last: the largest index that there is; by default the largest one in ``indices``.
    """
    if indices.numel() < 2:
        return
    yield "the first index is used instead of each one's own", lambda t: t.flatten()[0].expand_as(t).contiguous()
    yield "the last index is used instead of each one's own", lambda t: t.flatten()[-1].expand_as(t).contiguous()
    yield "position 0 is used instead of each index", torch.zeros_like
    yield "the last position is used instead of each index", lambda t: torch.full_like(t, -1)
    yield "an index one too small is used (off by one)", lambda t: (t - 1).clamp(min=0)
    yield "an index one too large is used (off by one)", lambda t: (t + 1).clamp(max=last or int(t.max()))
    for d in range(indices.dim()):
        words = "each one's own position is used instead of the index that belongs there"
        yield words, lambda t, d=d: _positions(t, d)
    for t in transformations(indices.shape):
        if t.kind in ("flipped", "shifted", "transposed", "permuted"):
            yield f"the indices are {t.description}", lambda v, t=t: t.apply(v).contiguous()


def _positions(indices: Tensor, dim: int) -> Tensor:
    """The index of each element along a dimension."""
    shape = [-1 if d == dim else 1 for d in range(indices.dim())]
    return torch.arange(indices.shape[dim], device=indices.device).reshape(shape).expand_as(indices).contiguous()


def with_tensor(number: int, instead: Callable[[Tensor], Tensor]) -> Callable[[Call, list[Any], int], Tensor]:
    def derivative(call: Call, flat: list[Any], position: int) -> Tensor:
        replaced = list(flat)
        replaced[number] = instead(flat[number])
        return changed.evaluate(call, replaced)

    return derivative


def with_number(number: int, instead: Any) -> Callable[[Call, list[Any], int], Tensor]:
    def derivative(call: Call, flat: list[Any], position: int) -> Tensor:
        replaced = list(flat)
        replaced[number] = instead
        return changed.evaluate(call, replaced)

    return derivative
