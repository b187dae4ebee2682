"""A Function's own forward, run once more with derivatives: the values of its expressions, still attached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compare.gradients.numbers import has_gradient
from compare.gradients.source_changes.editable_function import EditableFunction, exchanged
from compare.gradients.source_changes.edits import Site
from compare.gradients.source_changes.insertion_edits import is_value
from compare.gradients.source_changes.recorded_values import RECORD, builtin, recording_code
from compare.gradients.source_changes.watched_functions import FunctionCall, classes_of, watched

Functions = Sequence[tuple[EditableFunction, Sequence[Site]]]


@dataclass
class ForwardRun:
    """One call of a forward.

    Attributes:
        outputs: what it returned, with derivatives.
        values: of its expressions, in the order in which they ran, with their versions then.
    """

    call: FunctionCall
    outputs: tuple[Any, ...] = ()
    values: list[tuple[Site, Tensor, int]] = field(default_factory=list)

    @property
    def unchanged(self) -> list[tuple[Site, Tensor]]:
        """Values into which nothing has been written since."""
        return [(site, value) for site, value, version in self.values if value._version == version]


class _Context:
    """Takes what forward gives to ``ctx``."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Outputs that are inputs: no matter here."""

    mark_non_differentiable = save_for_forward = set_materialize_grads = mark_dirty


def run_forwards(functions: Functions, run: Callable[[], Any]) -> list[ForwardRun]:
    """Each forward that ``run`` calls, run once more on copies of its arguments that require gradients.

    Those that cannot run with derivatives are left out.

    Args:
        functions: those of the user that run, and the places in them.
        run: runs forward and backward.
    """
    of_forward = [(function, sites) for function, sites in functions if not function.called.in_backward]
    classes = classes_of({f for function, _ in of_forward for f in function.called.functions})
    places: list[Site] = []
    codes = {}
    for function, sites in of_forward:
        own = [site for site in sites if is_value(site, function.called)]
        code = recording_code(function, own, start=len(places))
        if code is not None:
            codes[function] = code
            places += own
    runs: list[ForwardRun] = []

    def differentiate(call: FunctionCall) -> None:
        forward = ForwardRun(call)

        def record(n: int, value: Any) -> Any:
            if isinstance(value, Tensor):
                forward.values.append((places[n], value, value._version))
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
        forward.outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        runs.append(forward)

    with watched(classes, differentiate):
        run()
    return runs
