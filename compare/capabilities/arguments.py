"""Arguments that lie oddly in memory, are empty, or do not arrive, as a network hands them over now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from compare.capabilities.agreement import Fails, NotApplicable, first_line, must_agree
from compare.capabilities.trial import Trial, output_names, pull, there_and_back, upstream

MOST_SLICED = 4  # inputs at once, where all combinations of them are tried


def transposed(tensor: Tensor) -> Tensor:
    """Dimensions in reverse order in memory."""
    back = tuple(range(tensor.dim()))[::-1]
    return tensor.permute(back).contiguous().permute(back)


def gaps(tensor: Tensor) -> Tensor:
    """Every second number of a larger tensor, not at its beginning; NaN between."""
    if not tensor.dim():
        return torch.stack([tensor, tensor])[1]
    wide = tensor.repeat_interleave(2, -1)
    if tensor.is_floating_point():
        wide[..., ::2] = torch.nan
    return wide[..., 1::2]


def channels_last(tensor: Tensor) -> Tensor:
    """The second dimension innermost in memory."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 2 else tensor


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": transposed,
    "with gaps": gaps,
    "channels last": channels_last,
}


def input_layouts(trial: Trial, native: None) -> None:
    """Inputs that lie transposed in memory, with gaps between the numbers, and channels last; outputs and gradients
    must be those of contiguous ones."""
    for name, lay in LAYOUTS.items():
        leaves = trial.leaves({key: lay(tensor) for key, tensor in trial.inputs.items()})
        _equal(trial, lambda leaves=leaves: there_and_back(trial, leaves), f"inputs {name}")


def gradient_layouts(trial: Trial, native: None) -> None:
    """Incoming gradients that lie transposed, with gaps, and channels last, as the next layer may hand them over."""
    for name, lay in LAYOUTS.items():
        incoming = [lay(g) for g in upstream(trial.plain[0])]
        _equal(trial, lambda g=incoming: there_and_back(trial, trial.leaves(), g), f"gradient {name}")


def expanded_gradient(trial: Trial, native: None) -> None:
    """An incoming gradient of one number with strides of 0, as the backward of ``sum`` makes it; must give what the
    same numbers in memory give."""
    outputs = trial.plain[0]
    expanded = [torch.full((), 0.75, dtype=o.dtype, device=o.device).expand(o.shape) for o in outputs]
    _, found = there_and_back(trial, trial.leaves(), expanded)
    _, expected = there_and_back(trial, trial.leaves(), [g.contiguous() for g in expanded])
    must_agree(found, expected, trial.gradient_names())


def _equal(trial: Trial, run: Callable[[], tuple[list[Tensor], list[Tensor]]], where: str) -> None:
    try:
        found = run()
    except Exception as error:
        raise Fails(f"{where}: {first_line(error)}") from error
    trial.must_equal_plain(*found, where)


def empty_batch(trial: Trial, native: tuple[list[Tensor], list[Tensor]] | None) -> tuple[list[Tensor], list[Tensor]]:
    """No examples at all: inputs without rows, those that the native function takes without; outputs and gradients
    must have native's shapes and values, zero for weights."""
    empty = _without_rows(trial)
    if empty is None:
        raise NotApplicable("the native function takes no input without rows")
    leaves = trial.leaves(empty)
    outputs, gradients = there_and_back(trial, leaves)
    if native is not None:
        must_agree(outputs, native[0], output_names(outputs))
        must_agree(gradients, native[1], trial.gradient_names())
    return outputs, gradients


def _without_rows(trial: Trial) -> dict[str, Tensor] | None:
    """The inputs with as few of them as possible cut to no rows, the first among these; None where native refuses."""
    tensors = trial.inputs
    first, *others = tensors
    if not tensors[first].dim():
        return None
    alike = [name for name in others if tensors[name].dim() and len(tensors[name]) == len(tensors[first])]
    for cut in _subsets(alike):
        inputs = {n: t[:0] if n == first or n in cut else t for n, t in tensors.items()}
        try:
            trial.case.native(*inputs.values())
        except Exception:  # it takes no such inputs: others are tried
            continue
        return inputs
    return None


def _subsets(names: list[str]) -> Iterable[tuple[str, ...]]:
    for size in range(min(len(names), MOST_SLICED) + 1):
        yield from combinations(names, size)
    if len(names) > MOST_SLICED:
        yield tuple(names)


def undefined_gradient(trial: Trial, native: None) -> None:
    """No gradient at all for an output, as where later layers do not use it: for one of several outputs it counts
    as zeros, for all of them every gradient is zero or none."""
    for kept in [None, *range(len(trial.plain[0]))]:
        leaves = trial.leaves()
        outputs = trial(*leaves)
        sent = [o if n == kept or not o.requires_grad else _Unused.apply(o) for n, o in enumerate(outputs)]
        incoming = upstream(outputs)
        found = pull(sent, leaves, incoming)
        if kept is None:
            expected = [torch.zeros_like(gradient) for gradient in found]
            must_agree(found, expected, trial.gradient_names(), "without any gradient")
        elif len(outputs) > 1:
            zeros = [g if n == kept else torch.zeros_like(g) for n, g in enumerate(incoming)]
            _, expected = there_and_back(trial, trial.leaves(), zeros)
            must_agree(found, expected, trial.gradient_names(), f"with a gradient for output {kept} alone")


class _Unused(Function):
    """Hands its argument on, and no gradient back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None
