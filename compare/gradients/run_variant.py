"""One forward and backward run of a function: its outputs, the gradients of its inputs, and its in-place changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compare.gradients.numbers import dtype_at, has_gradient
from compare.gradients.variants import Variant, gradient_to_layout, incoming_gradient, to_layout

OUTPUT = "output"
# In the errors of an in-place change of a leaf, and of a tensor whose elements share memory.
IN_PLACE_ERRORS = ("a leaf Variable that requires grad", "more than one element of the written-to tensor")


def output_name(n: int) -> str:
    """Name of output ``n``: "output" for the first, "output 1" for the second."""
    return OUTPUT if n == 0 else f"{OUTPUT} {n}"


def gradient_name(name: str) -> str:
    """Name of the gradient of the input ``name``: "gradient of weight"."""
    return f"gradient of {name}"


@dataclass(frozen=True)
class RunResult:
    """Result of one run.

    Attributes:
        values: outputs and gradients by name; None where an input has no gradient.
        error: the exception that the function raised, if any.
        rejected_gradients: what backward returned, where autograd rejected it because of its shape.
        modified: names of the arguments that the function modified in place, but for declared in-place operations.
        in_place: True if an output is one of the arguments: an in-place operation, which ``mark_dirty`` declares.
    """

    values: dict[str, Tensor | None] = field(default_factory=dict)
    error: Exception | None = None
    rejected_gradients: dict[str, Tensor] = field(default_factory=dict)
    modified: tuple[str, ...] = ()
    in_place: bool = False


def run_variant(
    function: Callable[..., Any],
    inputs: dict[str, Tensor],
    variant: Variant,
    seed: int = 0,
    gradients: Callable[[int, Tensor], Tensor | None] | None = None,
    requires_grad: Collection[str] | None = None,
    *,
    finds_changes: bool = True,
) -> RunResult:
    """Run ``function`` forward and backward on ``inputs`` in the dtype and layouts of ``variant``.

    An exception that ``function`` raises is part of the result; SystemExit is not.

    Args:
        inputs: by name, in the order of the function's arguments; real and complex ones in double precision.
        gradients: ``gradients(n, output)`` is the incoming gradient of output ``n``, or None if nothing uses that
            output; by default that of the variant.
        requires_grad: names of the inputs that require a gradient; by default all floating-point and complex ones.
        finds_changes: False for a trusted function, whose arguments are not inspected for in-place changes.
    """
    result = _run(function, inputs, variant, seed, gradients, requires_grad, finds_changes, clones=False)
    if result.error is not None and any(words in str(result.error) for words in IN_PLACE_ERRORS):
        return _run(function, inputs, variant, seed, gradients, requires_grad, finds_changes, clones=True)
    return result


def _run(
    function: Callable[..., Any],
    inputs: dict[str, Tensor],
    variant: Variant,
    seed: int,
    gradients: Callable[[int, Tensor], Tensor | None] | None,
    requires_grad: Collection[str] | None,
    finds_changes: bool,
    *,
    clones: bool,
) -> RunResult:
    """:func:`run_variant`; with ``clones``, the function gets clones, which it may change in place, not leaves."""
    if gradients is None:
        gradients = lambda n, output: incoming_gradient(output, variant, seed + n)  # noqa: E731
    values: dict[str, Tensor | None] = {}
    rejected: dict[str, Tensor] = {}
    modified: list[str] = []
    in_place = False
    try:
        leaves = {name: make_leaf(value, variant) for name, value in inputs.items()}
        if requires_grad is not None:
            for name, leaf in leaves.items():
                leaf.requires_grad_(leaf.requires_grad and name in requires_grad)
        arguments = {name: leaf.clone() for name, leaf in leaves.items()} if clones else leaves
        original_inputs = {name: leaf.detach().clone() for name, leaf in leaves.items()} if finds_changes else {}
        differentiable = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        outputs = call(function, arguments.values())
        in_place = any(output is argument for output in outputs for argument in arguments.values()) and clones
        values |= {output_name(n): dense_copy(output) for n, output in enumerate(outputs)}
        drawn = [(n, output, gradients(n, output)) for n, output in enumerate(outputs) if output.requires_grad]
        numbered = [(n, output) for n, output, gradient in drawn if gradient is not None]
        incoming = [
            gradient_to_layout(gradient.to(output.dtype), variant.gradient_layout)
            for _, output, gradient in drawn
            if gradient is not None
        ]
        original_incoming = [gradient.clone() for gradient in incoming] if finds_changes else []
        grads: Sequence[Tensor | None] = [None] * len(differentiable)
        if numbered and differentiable:
            grads = _backward([output for _, output in numbered], differentiable, incoming, rejected)
        values |= {gradient_name(name): grad for name, grad in zip(differentiable, grads, strict=True)}
        modified += [
            f"the incoming gradient of {output_name(n)}"
            for (n, _), gradient, original in zip(numbered, incoming, original_incoming, strict=False)
            if not _equal(gradient, original)
        ]
    except Exception as error:
        return RunResult(values, error, rejected, tuple(modified), in_place)
    modified += [
        name
        for name, original in original_inputs.items()
        if not _equal((argument := arguments[name]).detach(), original) and not any(o is argument for o in outputs)
    ]
    return RunResult(values, None, rejected, tuple(modified), in_place)


def call(function: Callable[..., Any], arguments: Collection[Tensor]) -> tuple[Tensor, ...]:
    """Call ``function`` and return its outputs as a tuple.

    Raises:
        TypeError: it returns something that is neither a tensor nor a tuple or list of tensors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the function may warn in each of a hundred runs
        result = function(*arguments)
    outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    if not all(isinstance(output, Tensor) for output in outputs):
        types = ", ".join(type(output).__name__ for output in outputs)
        raise TypeError(f"expected a tensor or a tuple of tensors from the function, got {types}")
    return outputs


def make_leaf(value: Tensor, variant: Variant) -> Tensor:
    """Copy an input to the variant's device, dtype and layout; a floating-point or complex copy requires a gradient.

    Raises:
        TypeError: the input is complex, and no complex dtype has the variant's precision.
    """
    if not has_gradient(value):
        return value.to(variant.device).clone()
    copy = value.to(variant.device, dtype_at(variant.dtype, value), copy=True)  # the function may write into it
    return to_layout(copy, variant.layout).detach().requires_grad_()


def dense_copy(tensor: Tensor) -> Tensor:
    """Copy a tensor, detached; a sparse one becomes dense."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.layout is torch.strided else tensor.to_dense()


def _backward(
    outputs: list[Tensor], leaves: dict[str, Tensor], incoming: list[Tensor], rejected: dict[str, Tensor]
) -> list[Tensor | None]:
    """Return the gradients of ``leaves``; if autograd refuses their shapes, put them into ``rejected``."""
    try:
        grads = torch.autograd.grad(outputs, list(leaves.values()), incoming, allow_unused=True)
    except RuntimeError as error:
        if "invalid gradient" in str(error) and len(outputs) == 1 and outputs[0].grad_fn is not None:
            node = outputs[0].grad_fn
            returned = getattr(node, "apply", node)(incoming[0])  # the Function's backward, without autograd's checks
            returned = returned if isinstance(returned, tuple) else (returned,)
            if len(returned) >= len(leaves):
                rejected |= {
                    gradient_name(name): gradient
                    for name, gradient in zip(leaves, returned, strict=False)
                    if isinstance(gradient, Tensor)
                }
        raise
    return [None if grad is None else dense_copy(grad) for grad in grads]


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all()) if has_gradient(a) else torch.equal(a, b)
