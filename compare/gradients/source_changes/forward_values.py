"""Values that a Function's own forward computes, their gradients, and the derivatives of its steps, in words."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compare.gradients.source_changes.edits import Site
from compare.gradients.source_changes.forward_runs import ForwardRun
from compare.gradients.source_changes.places import are_equal
from compare.gradients.source_changes.recorded_values import MAX_STEPS

MAX_TEXT, MAX_TEXT_OF_A_STEP = 40, 70  # characters of an expression that is told
MAX_VALUES, MAX_DERIVATIVES = 90, 30


def forward_values(runs: Sequence[ForwardRun]) -> dict[str, list[Tensor]]:
    """Values of the expressions of forward, and their gradients, by words such as "the gradient of `y` in line 7".

    Those of the steps of a loop are in order. Assigned names come first.
    """
    values: dict[str, list[Tensor]] = {}
    gradients: dict[str, list[Tensor]] = {}
    before_the_factor: dict[str, list[Tensor]] = {}
    sites: dict[str, Site] = {}
    for run in runs:
        for site, value, gradient in _with_gradients(run):
            words = _words(site)
            if not words or sites.setdefault(words, site) is not site:
                continue
            values.setdefault(words, []).append(value)
            if gradient is not None:
                gradients.setdefault(f"the gradient of {words}", []).append(gradient)
            if gradient is not None and (factor := _only_factor(run)) is not None:
                by_one = f"the gradient of {words}, for an incoming gradient of 1,"
                before_the_factor.setdefault(by_one, []).append(gradient / factor)
    once = dict.fromkeys(sorted(values, key=lambda words: " " in words.split("`")[1]))
    told = {name: gradients[name] for words in once if (name := f"the gradient of {words}") in gradients}
    told |= {words: values[words] for words in once} | before_the_factor
    return {words: each for words, each in list(told.items())[:MAX_VALUES] if len(each) <= MAX_STEPS}


def _only_factor(run: ForwardRun) -> Tensor | None:
    """The incoming gradient of a function whose only output is one number: backward may multiply by it last."""
    received = run.call.received
    is_number = len(received) == 1 and received[0] is not None and received[0].numel() == 1
    return received[0] if is_number and len(run.outputs) == 1 else None


def step_derivatives(runs: Sequence[ForwardRun]) -> dict[str, list[Tensor]]:
    """Derivatives of elementwise steps of forward, by words such as "the derivative of `x.clamp(0, 1)` in line 7".

    Constant ones are left out.
    """
    derivatives: dict[str, list[Tensor]] = {}
    sites: dict[str, tuple[Site, Site]] = {}
    for run in runs:
        operands: dict[int, list[tuple[Site, Tensor]]] = {}  # of each expression, by its node
        nodes = {id(site.node) for site, _, _ in run.values}
        for site, value in run.unchanged:
            for operand, before in operands.pop(id(site.node), []):
                words = f"the derivative of `{ast.unparse(site.node)}` in line {site.node.lineno}"
                if len(ast.unparse(site.node)) > MAX_TEXT_OF_A_STEP:
                    continue
                derivative = _derivative(value, before)
                if derivative is None:
                    continue
                if sites.setdefault(words, (site, operand)) != (site, operand):
                    words += f" by `{ast.unparse(operand.node)}`"
                derivatives.setdefault(words, []).append(derivative)
            holder = next((id(node) for node in reversed(site.ancestors) if id(node) in nodes), None)
            if holder is not None:
                operands.setdefault(holder, []).append((site, value))
    told = {words: each for words, each in derivatives.items() if any((d != d.flatten()[0]).any() for d in each)}
    return {words: each for words, each in list(told.items())[:MAX_DERIVATIVES] if len(each) <= MAX_STEPS}


def _derivative(value: Tensor, operand: Tensor) -> Tensor | None:
    """Derivative of each element by that at the same place; None if others have an influence on it."""
    if value.shape != operand.shape or value is operand or not value.numel() or value.is_complex():
        return None
    if not (value.requires_grad and operand.requires_grad):
        return None
    weights = torch.linspace(1, 2, value.numel(), dtype=value.dtype, device=value.device).view(value.shape)
    (derivative,) = torch.autograd.grad(value.sum(), operand, retain_graph=True, allow_unused=True)
    (weighted,) = torch.autograd.grad(value, operand, weights, retain_graph=True, allow_unused=True)
    if derivative is None or not are_equal(weighted.detach(), (weights * derivative).detach()):
        return None
    return derivative.detach()


def _with_gradients(run: ForwardRun) -> Iterator[tuple[Site, Tensor, Tensor | None]]:
    """Values that nothing has changed since, and their gradients."""
    outputs = [
        (output, received)
        for output, received in zip(run.outputs, run.call.received, strict=False)
        if isinstance(output, Tensor) and output.requires_grad and received is not None
    ]
    attached = [value for _, value in run.unchanged if value.requires_grad]
    gradients: Sequence[Tensor | None] = [None] * len(attached)
    if outputs and attached:
        try:
            gradients = torch.autograd.grad(
                [output for output, _ in outputs],
                attached,
                [received for _, received in outputs],
                allow_unused=True,
                retain_graph=True,
            )
        except RuntimeError:  # forward changes in place what its derivative needs
            gradients = [None] * len(attached)
    by_value = dict(zip(map(id, attached), gradients, strict=True))
    for site, value in run.unchanged:
        gradient = by_value.get(id(value))
        yield site, value.detach(), None if gradient is None else gradient.detach()


def _words(site: Site) -> str:
    """The name that an expression is assigned to, or its text, with the line; "" if it is not told."""
    parent, node = site.ancestors[-1], site.node
    text = ast.unparse(node)
    if isinstance(node, (ast.Name, ast.Attribute)):  # it is told where it is computed
        in_a_loop = any(isinstance(each, (ast.For, ast.While)) for each in site.ancestors)
        return f"`{text}` as line {node.lineno} reads it" if in_a_loop else ""
    if isinstance(parent, ast.Assign) and len(parent.targets) == 1 and isinstance(parent.targets[0], ast.Name):
        text = parent.targets[0].id
    return f"`{text}` in line {node.lineno}" if len(text) <= MAX_TEXT else ""
