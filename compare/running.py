"""One run there and back: a function's outputs, the gradient of every input, and what it did to its arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compare.variants import Variant, incoming_gradient, laid, laid_gradient

OUTPUT = "output"


def output_name(n: int) -> str:
    """ "output" for the first, "output 1" for the next."""
    return OUTPUT if n == 0 else f"{OUTPUT} {n}"


def gradient_name(name: str) -> str:
    """How the gradient of an input is called."""
    return f"gradient of {name}"


@dataclass(frozen=True)
class Run:
    """What came of one run.

    ``values``: outputs and gradients by name; None where there is no gradient. ``error``: the exception that ended
    it. ``raw``: gradients of a Function whose shapes the engine refused. ``changed``: arguments that it wrote into.
    """

    values: dict[str, Tensor | None] = field(default_factory=dict)
    error: Exception | None = None
    raw: dict[str, Tensor] = field(default_factory=dict)
    changed: tuple[str, ...] = ()


def run(
    function: Callable[..., Any],
    inputs: dict[str, Tensor],
    variant: Variant,
    seed: int = 0,
    gradients: Callable[[int, Tensor], Tensor] | None = None,
) -> Run:
    """Runs ``function`` on ``inputs`` (float64 values) as the variant has it, with the variant's incoming gradients.

    ``gradients(n, output)`` gives other incoming gradients in their place. An exception that ``function`` raises is
    an outcome, and is returned.
    """
    leaves = {name: _leaf(value, variant) for name, value in inputs.items()}
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    if gradients is None:
        gradients = lambda n, output: incoming_gradient(output, variant, seed + n)  # noqa: E731
    values: dict[str, Tensor | None] = {}
    raw: dict[str, Tensor] = {}
    changed: list[str] = []
    asked = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a function on trial: it may warn once for each of a hundred runs
            result = function(*leaves.values())
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        if not all(isinstance(output, Tensor) for output in outputs):
            kinds = ", ".join(type(output).__name__ for output in outputs)
            raise TypeError(f"a function on trial must return a tensor or a tuple of tensors, got {kinds}")
        values |= {output_name(n): output.detach().clone() for n, output in enumerate(outputs)}
        sent = [(n, output) for n, output in enumerate(outputs) if output.requires_grad]
        incoming = [
            laid_gradient(gradients(n, output).to(output.dtype), variant.gradient_layout) for n, output in sent
        ]
        kept = [gradient.clone() for gradient in incoming]
        if sent and asked:
            found = _pull([output for _, output in sent], list(asked.values()), incoming, list(asked), raw)
        else:
            found = [None] * len(asked)
        values |= {gradient_name(name): gradient for name, gradient in zip(asked, found, strict=True)}
        changed += [
            f"the incoming gradient of {output_name(n)}"
            for (n, _), gradient, copy in zip(sent, incoming, kept, strict=True)
            if not _same(gradient, copy)
        ]
    except Exception as error:
        return Run(values, error, raw, tuple(changed))
    changed += [name for name, leaf in leaves.items() if not _same(leaf.detach(), before[name])]
    return Run(values, None, raw, tuple(changed))


def _leaf(value: Tensor, variant: Variant) -> Tensor:
    if not value.is_floating_point():
        return value.to(variant.device).clone()
    own = value.to(device=variant.device, dtype=variant.dtype, copy=True)  # ours may write into it
    return laid(own, variant.layout).detach().requires_grad_()


def _pull(
    outputs: list[Tensor], leaves: list[Tensor], incoming: list[Tensor], names: list[str], raw: dict[str, Tensor]
) -> list[Tensor | None]:
    try:
        found = torch.autograd.grad(outputs, leaves, incoming, allow_unused=True)
    except RuntimeError as error:
        if "invalid gradient" in str(error) and len(outputs) == 1 and outputs[0].grad_fn is not None:
            node = outputs[0].grad_fn
            returned = getattr(node, "apply", node)(incoming[0])  # its backward, without the engine's look at shapes
            returned = returned if isinstance(returned, tuple) else (returned,)
            if len(returned) >= len(names):
                raw |= {
                    gradient_name(name): gradient
                    for name, gradient in zip(names, returned, strict=False)
                    if isinstance(gradient, Tensor)
                }
        raise
    return [None if gradient is None else gradient.detach().clone() for gradient in found]


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all()) if a.is_floating_point() else torch.equal(a, b)
