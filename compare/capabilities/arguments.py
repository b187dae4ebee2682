"""Arguments that networks pass now and then: non-contiguous, expanded, empty or undefined tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from compare.capabilities.assertions import CheckFailed, NotApplicable, assert_close, error_summary
from compare.capabilities.function_under_test import (
    FunctionUnderTest,
    input_grads,
    output_names,
    random_grad_outputs,
    run_forward_backward,
)

MAX_COMBINED_INPUTS = 4  # of more inputs with a batch dimension, not every combination is tried


def transposed(tensor: Tensor) -> Tensor:
    """Copy with the order of dimensions reversed in memory."""
    reverse = tuple(range(tensor.dim()))[::-1]
    return tensor.permute(reverse).contiguous().permute(reverse)


def with_gaps(tensor: Tensor) -> Tensor:
    """Copy into every second element of a larger tensor, with a storage offset; the elements between are NaN."""
    if not tensor.dim():
        return torch.stack([tensor, tensor])[1]
    wide = tensor.repeat_interleave(2, -1)
    if tensor.is_floating_point():
        wide[..., ::2] = torch.nan
    return wide[..., 1::2]


def channels_last(tensor: Tensor) -> Tensor:
    """Copy with the second dimension innermost in memory, if there are more than two."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 2 else tensor


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": transposed,
    "with gaps": with_gaps,
    "channels last": channels_last,
}


def input_layouts(tested: FunctionUnderTest, native: None) -> None:
    """Inputs transposed in memory, with gaps between the elements, and channels last; outputs and gradients must be
    those of contiguous inputs."""
    for name, with_layout in LAYOUTS.items():
        leaves = tested.leaves({key: with_layout(tensor) for key, tensor in tested.inputs.items()})
        _assert_equals_baseline(tested, lambda leaves=leaves: run_forward_backward(tested, leaves), f"inputs {name}")


def grad_output_layouts(tested: FunctionUnderTest, native: None) -> None:
    """Incoming gradients transposed in memory, with gaps between the elements, and channels last; the gradients of
    inputs must be those of contiguous incoming gradients."""
    for name, with_layout in LAYOUTS.items():
        incoming = [with_layout(g) for g in random_grad_outputs(tested.baseline[0])]
        _assert_equals_baseline(
            tested, lambda g=incoming: run_forward_backward(tested, tested.leaves(), g), f"gradient {name}"
        )


def expanded_grad_output(tested: FunctionUnderTest, native: None) -> None:
    """An incoming gradient of one number expanded with strides of 0, as the backward of ``sum`` makes it; the result
    must be that of the same numbers in contiguous memory."""
    outputs = tested.baseline[0]
    expanded = [torch.full((), 0.75, dtype=o.dtype, device=o.device).expand(o.shape) for o in outputs]
    _, grads = run_forward_backward(tested, tested.leaves(), expanded)
    _, expected = run_forward_backward(tested, tested.leaves(), [g.contiguous() for g in expanded])
    assert_close(grads, expected, tested.gradient_names())


def _assert_equals_baseline(
    tested: FunctionUnderTest, run: Callable[[], tuple[list[Tensor], list[Tensor]]], where: str
) -> None:
    try:
        outputs, grads = run()
    except Exception as error:
        raise CheckFailed(f"{where}: {error_summary(error)}") from error
    tested.assert_equals_baseline(outputs, grads, where)


def empty_batch(
    tested: FunctionUnderTest, native: tuple[list[Tensor], list[Tensor]] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Batch size 0: inputs without rows, as far as the native function accepts them, or ours if there is no native;
    outputs and gradients must have native's shapes and values, zeros for weights."""
    empty = _inputs_without_rows(tested)
    if empty is None:
        raise NotApplicable(f"the {'native ' if tested.case.native else ''}function accepts no input without rows")
    leaves = tested.leaves(empty)
    outputs, grads = run_forward_backward(tested, leaves)
    if native is not None:
        assert_close(outputs, native[0], output_names(outputs))
        assert_close(grads, native[1], tested.gradient_names())
    return outputs, grads


def _inputs_without_rows(tested: FunctionUnderTest) -> dict[str, Tensor] | None:
    """Cut the first input, and as few others as possible, to no rows; None if native accepts no such inputs.

    Without a native function, ours is asked."""
    tensors, reference = tested.inputs, tested.case.native or tested.case.ours
    first, *others = tensors
    if not tensors[first].dim():
        return None
    same_length = [name for name in others if tensors[name].dim() and len(tensors[name]) == len(tensors[first])]
    for cut in _subsets(same_length):
        inputs = {n: t[:0] if n == first or n in cut else t for n, t in tensors.items()}
        try:
            reference(*inputs.values())
        except Exception:  # it does not accept these inputs: the next combination is tried
            continue
        return inputs
    return None


def _subsets(names: list[str]) -> Iterable[tuple[str, ...]]:
    for size in range(min(len(names), MAX_COMBINED_INPUTS) + 1):
        yield from combinations(names, size)
    if len(names) > MAX_COMBINED_INPUTS:
        yield tuple(names)


def undefined_grad_output(tested: FunctionUnderTest, native: None) -> None:
    """No gradient for an output, as if later layers did not use it: for one of several outputs this counts as zeros;
    if no output has a gradient, every gradient is zero or None."""
    for kept in [None, *range(len(tested.baseline[0]))]:
        leaves = tested.leaves()
        outputs = tested(*leaves)
        used = [o if n == kept or not o.requires_grad else _NoGradient.apply(o) for n, o in enumerate(outputs)]
        incoming = random_grad_outputs(outputs)
        grads = input_grads(used, leaves, incoming)
        if kept is None:
            expected = [torch.zeros_like(grad) for grad in grads]
            assert_close(grads, expected, tested.gradient_names(), "without any gradient")
        elif len(outputs) > 1:
            zeros = [g if n == kept else torch.zeros_like(g) for n, g in enumerate(incoming)]
            _, expected = run_forward_backward(tested, tested.leaves(), zeros)
            assert_close(grads, expected, tested.gradient_names(), f"with a gradient for output {kept} alone")


class _NoGradient(Function):
    """Identity whose backward returns None."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None
