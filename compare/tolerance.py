"""How far from the float64 oracle a right answer may be: measured, not chosen.

Two things bound it. What native PyTorch itself gets wrong in this dtype, of which twice is granted; and what native's
answer does in float64 when what it is computed from changes by a few roundings: the inputs, since an answer that is
exact for such inputs is as good as any, or the result of every operation on the way. The second is what native's luck
cannot make too small: a sum that happens to be right to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from compare.running import output_name, run
from compare.variants import Variant, incoming_gradient

TRIALS = 6  # of one number alone, six normal draws are all below a seventh of their spread once in 500,000 times
ON_THE_WAY = 3  # trials more, in which not the inputs but the results of operations change
ROUNDINGS = 4  # a number is changed by so many; sums and products inside a right function round about as often
# Native's own error in float64 cannot be seen, so the second bound stands alone, and there is room for it to be
# generous: it stays eight digits below the smallest mistake that compare promises to find.
ROUNDINGS_FLOAT64 = 64
# With a kink inside, right answers part where rounding carries a value across it; changes twice as large see it.
ROUNDINGS_KINKS = 8


@dataclass(frozen=True)
class Noise:
    """What small changes of the inputs do to one quantity: the largest change of an element, and of the norm.

    ``scale`` is the largest change of an element over the relative change of the inputs: as large as the oracle's
    largest element, or as the terms that cancel in it. ``flips``: a change carried some value across a kink.
    """

    element: float = 0.0
    norm: float = 0.0
    scale: float = 0.0
    flips: bool = False


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next larger number."""
    return torch.finfo(dtype).eps / 2


def ulp(largest: float, dtype: torch.dtype) -> float:
    """The distance between neighbouring numbers of ``dtype`` at ``largest``."""
    info = torch.finfo(dtype)
    if not math.isfinite(largest) or largest < info.smallest_normal:
        return info.smallest_normal * info.eps
    return info.eps * 2.0 ** math.floor(math.log2(largest))


def noise(
    native: Callable[..., Any],
    inputs: dict[str, Tensor],
    oracle: dict[str, Tensor | None],
    variant: Variant,
    seed: int,
    kinks: bool,
) -> dict[str, Noise]:
    """For every quantity of ``oracle``, what it does when inputs and incoming gradients change by a few roundings.

    Equal values change equally, so ties stay ties. On whole numbers, sums inside tie as well, and come apart when the
    inputs change: changes larger than the root of the rounding are such flips and not counted there.
    """
    roundings = ROUNDINGS_KINKS if kinks else ROUNDINGS
    if variant.dtype is torch.float64:
        roundings = ROUNDINGS_FLOAT64
    size = roundings * unit_roundoff(variant.dtype)
    flip = math.sqrt(unit_roundoff(variant.dtype))
    exact = Variant(device=variant.device)
    found: dict[str, list[Noise]] = {name: [] for name in oracle}
    for trial in range(TRIALS + ON_THE_WAY):
        moved = inputs if trial >= TRIALS else {name: _moved(value, size, trial) for name, value in inputs.items()}
        incoming = {  # made here, since drawing them is no operation on the way
            n: _shaken(incoming_gradient(oracle[output_name(n)], variant, seed + n), size, trial)
            for n in range(len(oracle))
            if oracle.get(output_name(n)) is not None
        }

        def gradients(n: int, output: Tensor, incoming: dict[int, Tensor] = incoming) -> Tensor:
            return incoming[n]

        with _Rounding(size, trial) if trial >= TRIALS else nullcontext():
            result = run(native, moved, exact, seed, gradients)
        for name, value in result.values.items():
            right = oracle.get(name)
            if value is None or right is None or not right.is_floating_point() or not right.numel():
                continue
            change = (value - right).abs()
            change = change[change.isfinite()]
            scale = _largest(right)
            large = change > flip * scale
            counted = change[~large] if variant.data == "whole numbers" and trial < TRIALS else change
            found[name].append(Noise(_largest(counted), float(change.norm()), flips=bool(large.any())))
    return {
        name: Noise(
            max((n.element for n in all_), default=0.0),
            max((n.norm for n in all_), default=0.0),
            max((n.element for n in all_), default=0.0) / size,
            variant.data == "drawn" and any(n.flips for n in all_),
        )
        for name, all_ in found.items()
    }


COPIES = ("aten::clone", "aten::_to_copy", "aten::copy")  # which round nothing


class _Rounding(TorchDispatchMode):
    """Changes the result of every operation, forward and backward, as if it were rounded; equal values alike."""

    def __init__(self, size: float, trial: int) -> None:
        super().__init__()
        self.size, self.trial = size, trial

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if operator._schema.name in COPIES or any(
            returned.alias_info is not None for returned in operator._schema.returns
        ):
            return result  # a view, or written in place: no new numbers, or numbers that others see
        return tree_map(self._rounded, result)

    def _rounded(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        return _moved(value, self.size, self.trial)  # inside __torch_dispatch__ the mode is off


def _moved(value: Tensor, size: float, trial: int) -> Tensor:
    """Each element times 1 + size or 1 − size, as a hash of its bits says: equal ones alike."""
    if not value.is_floating_point():
        return value
    return value * (1 + size * _signs(value.contiguous().view(torch.int64), trial))


def _shaken(value: Tensor, size: float, trial: int) -> Tensor:
    """The same, but each by its place: what comes from above has no ties to keep, and must not cancel by symmetry."""
    places = torch.arange(value.numel(), device=value.device).reshape(value.shape)
    return value * (1 + size * _signs(places * 0x2545F4914F6CDD1D, trial))


def _signs(bits: Tensor, trial: int) -> Tensor:
    """1 or −1 for each, at random and always the same."""
    mixed = (bits ^ (bits >> 31)) * (0x5851F42D4C957F2D + 2 * trial) + trial * 0x14057B7EF767814F
    mixed = (mixed ^ (mixed >> 29)) * 0x369DEA0F31A53F85
    return 1 - 2 * ((mixed >> 62) & 1).double()


def _largest(values: Tensor) -> float:
    values = values[values.isfinite()]
    return float(values.abs().max()) if values.numel() else 0.0
