"""Values that a Function's own forward computes, and their gradients as PyTorch's autograd has them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compare.gradients.numbers import has_gradient
from compare.gradients.source_changes.editable_function import EditableFunction, exchanged
from compare.gradients.source_changes.edits import Site
from compare.gradients.source_changes.insertion_edits import is_value
from compare.gradients.source_changes.recorded_values import MAX_STEPS, RECORD, builtin, recording_code
from compare.gradients.source_changes.watched_functions import FunctionCall, classes_of, watched

MAX_TEXT = 40  # characters of an expression that is told
MAX_VALUES = 60


class _Context:
    """Takes what forward gives to ``ctx``."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Outputs that are inputs: no matter here."""

    mark_non_differentiable = save_for_forward = set_materialize_grads = mark_dirty


@dataclass
class _Values:
    """Values of one call that is computed with derivatives: of the expressions as they ran, with their versions."""

    call: FunctionCall
    outputs: tuple[Any, ...] = ()
    of_expressions: list[tuple[str, Tensor, int]] = field(default_factory=list)


def forward_values(
    functions: Iterable[tuple[EditableFunction, Sequence[Site]]], run: Callable[[], Any]
) -> dict[str, list[Tensor]]:
    """Values of the expressions of forward, and their gradients, by words such as "the gradient of `y` in line 7".

    Those of the steps of a loop are in order. Assigned names come first. There are none where forward cannot run
    with derivatives.

    Args:
        functions: those of the user that run, and the places in them.
        run: runs forward and backward.
    """
    of_forward = [(function, sites) for function, sites in functions if not function.called.in_backward]
    classes = classes_of({f for function, _ in of_forward for f in function.called.functions})
    names: list[str] = []
    codes = {}
    for function, sites in of_forward:
        places = {words: site for site in reversed(sites) if (words := _words(site, function))}
        code = recording_code(function, list(places.values()), start=len(names))
        if code is not None:
            codes[function] = code
            names += places
    known: list[_Values] = []

    def differentiate(call: FunctionCall) -> None:
        """Run forward on copies of its arguments that require gradients."""
        own = _Values(call)

        def record(n: int, value: Any) -> Any:
            if isinstance(value, Tensor):
                own.of_expressions.append((names[n], value, value._version))
            return value

        leaves = [
            a.detach().clone().requires_grad_() if isinstance(a, Tensor) and has_gradient(a) else a
            for a in call.arguments
        ]
        context = _Context(tuple(isinstance(a, Tensor) and a.requires_grad for a in leaves))
        try:
            with torch.enable_grad(), exchanged(codes), builtin(RECORD, record):
                copies = [a.clone() if isinstance(a, Tensor) and a.requires_grad else a for a in leaves]
                outputs = call.forward(*([context] if call.has_context else []), *copies)
        except Exception:  # forward cannot run with derivatives: then it has no values to tell
            return
        own.outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        known.append(own)

    with watched(classes, differentiate):
        run()
    values: dict[str, list[Tensor]] = {}
    gradients: dict[str, list[Tensor]] = {}
    for own in known:
        for words, value, gradient in _with_gradients(own):
            values.setdefault(words, []).append(value)
            if gradient is not None:
                gradients.setdefault(f"the gradient of {words}", []).append(gradient)
    once = dict.fromkeys(sorted(values, key=lambda words: " " in words.split("`")[1]))
    told = {name: gradients[name] for words in once if (name := f"the gradient of {words}") in gradients}
    told |= {words: values[words] for words in once}
    return {words: each for words, each in list(told.items())[:MAX_VALUES] if len(each) <= MAX_STEPS}


def _with_gradients(own: _Values) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Values of one call that nothing has changed since, and their gradients."""
    kept = [(words, value) for words, value, version in own.of_expressions if value._version == version]
    outputs = [
        (output, received)
        for output, received in zip(own.outputs, own.call.received, strict=False)
        if isinstance(output, Tensor) and output.requires_grad and received is not None
    ]
    attached = [value for _, value in kept if value.requires_grad]
    gradients: Iterable[Tensor | None] = []
    if outputs and attached:
        try:
            gradients = torch.autograd.grad(
                [output for output, _ in outputs], attached, [received for _, received in outputs], allow_unused=True
            )
        except RuntimeError:  # forward changes in place what its derivative needs
            attached = []
    by_value = dict(zip(map(id, attached), gradients, strict=True))
    for words, value in kept:
        gradient = by_value.get(id(value))
        yield words, value.detach(), None if gradient is None else gradient.detach()


def _words(site: Site, function: EditableFunction) -> str:
    """The name that an expression is assigned to, or its text, with the line; "" if it is not told."""
    parent, node = site.ancestors[-1], site.node
    if not is_value(site, function.called):
        return ""
    text = ast.unparse(node)
    if isinstance(node, (ast.Name, ast.Attribute)):  # it is told where it is computed
        in_a_loop = any(isinstance(each, (ast.For, ast.While)) for each in site.ancestors)
        return f"`{text}` as line {node.lineno} reads it" if in_a_loop else ""
    if isinstance(parent, ast.Assign) and len(parent.targets) == 1 and isinstance(parent.targets[0], ast.Name):
        text = parent.targets[0].id
    return f"`{text}` in line {node.lineno}" if len(text) <= MAX_TEXT else ""
