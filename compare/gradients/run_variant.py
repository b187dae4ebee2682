"""One forward and backward run of a function: its outputs, the gradients of its inputs, and its in-place changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compare.gradients.variants import Variant, gradient_to_layout, incoming_gradient, to_layout

OUTPUT = "output"


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
        modified: names of the arguments that the function modified in place.
    """

    values: dict[str, Tensor | None] = field(default_factory=dict)
    error: Exception | None = None
    rejected_gradients: dict[str, Tensor] = field(default_factory=dict)
    modified: tuple[str, ...] = ()


def run_variant(
    function: Callable[..., Any],
    inputs: dict[str, Tensor],
    variant: Variant,
    seed: int = 0,
    gradients: Callable[[int, Tensor], Tensor] | None = None,
) -> RunResult:
    """Run ``function`` forward and backward on ``inputs`` in the dtype and layouts of ``variant``.

    An exception that ``function`` raises is part of the result.

    Args:
        inputs: by name, in the order of the function's arguments; floating-point ones in float64.
        gradients: ``gradients(n, output)`` is the incoming gradient of output ``n``; by default that of the variant.
    """
    leaves = {name: _leaf(value, variant) for name, value in inputs.items()}
    original_inputs = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    if gradients is None:
        gradients = lambda n, output: incoming_gradient(output, variant, seed + n)  # noqa: E731
    values: dict[str, Tensor | None] = {}
    rejected: dict[str, Tensor] = {}
    modified: list[str] = []
    differentiable = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the function may warn in each of a hundred runs
            result = function(*leaves.values())
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        if not all(isinstance(output, Tensor) for output in outputs):
            types = ", ".join(type(output).__name__ for output in outputs)
            raise TypeError(f"expected a tensor or a tuple of tensors from the function, got {types}")
        values |= {output_name(n): output.detach().clone() for n, output in enumerate(outputs)}
        numbered = [(n, output) for n, output in enumerate(outputs) if output.requires_grad]
        incoming = [
            gradient_to_layout(gradients(n, output).to(output.dtype), variant.gradient_layout)
            for n, output in numbered
        ]
        original_incoming = [gradient.clone() for gradient in incoming]
        if numbered and differentiable:
            grads = _backward([output for _, output in numbered], differentiable, incoming, rejected)
        else:
            grads = [None] * len(differentiable)
        values |= {gradient_name(name): grad for name, grad in zip(differentiable, grads, strict=True)}
        modified += [
            f"the incoming gradient of {output_name(n)}"
            for (n, _), gradient, original in zip(numbered, incoming, original_incoming, strict=True)
            if not _equal(gradient, original)
        ]
    except Exception as error:
        return RunResult(values, error, rejected, tuple(modified))
    modified += [name for name, leaf in leaves.items() if not _equal(leaf.detach(), original_inputs[name])]
    return RunResult(values, None, rejected, tuple(modified))


def _leaf(value: Tensor, variant: Variant) -> Tensor:
    if not value.is_floating_point():
        return value.to(variant.device).clone()
    copy = value.to(device=variant.device, dtype=variant.dtype, copy=True)  # the function may write into it
    return to_layout(copy, variant.layout).detach().requires_grad_()


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
    return [None if grad is None else grad.detach().clone() for grad in grads]


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all()) if a.is_floating_point() else torch.equal(a, b)
