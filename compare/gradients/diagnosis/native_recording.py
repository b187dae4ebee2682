"""One run of native with all that is needed to change the derivative of a single call without another run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.changed_native import NativeChange, crop, dense, input_leaves
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_calls import Call, InterceptCalls, call_native
from compare.gradients.diagnosis.probe import Probe

RATIO_ERROR = 1e-9  # of sums of products in double precision, which may cancel


@dataclass
class Recording:
    """One run of native with all that is needed to change the derivative of a single call without another run.

    Attributes:
        calls, composites, indices: native's calls; the last have integers as results. Of their arguments those
            require a gradient that depend on the input.
        records: results by site, and inputs by name.
        leaf: the input whose gradient is examined.
        incoming: gradient that each call's result receives, by the call's number.
    """

    calls: list[Call] = field(default_factory=list)
    composites: list[Call] = field(default_factory=list)
    indices: list[Call] = field(default_factory=list)
    records: dict[Any, list[Tensor]] = field(default_factory=dict)
    leaf: Tensor | None = None
    incoming: dict[int, Tensor] = field(default_factory=dict)
    _with_records: dict[int, Call] = field(default_factory=dict)
    _weights: dict[tuple[int, int], tuple[Tensor, Tensor] | None] = field(default_factory=dict)

    def with_records(self, call: Call) -> Call:
        """The call with the results of the run."""
        if call.number not in self._with_records:
            self._with_records[call.number] = replace(call, records=self.records)
        return self._with_records[call.number]

    def derivative(
        self, call: Call, change: NativeChange, needed: Tensor | None = None, error: float = 0.0
    ) -> Tensor | None:
        """The part of the gradient through one argument of ``call``, with its derivative changed.

        Args:
            needed: None is returned for a part that is surely no multiple of this.
            error: of an element, up to which it may be another number.
        """
        flat = call.flat
        argument, gradient = flat[change.position], self.incoming.get(call.number)
        if gradient is None or self.leaf is None:
            return None
        try:
            own = [value.detach() if isinstance(value, Tensor) else value for value in flat]
            own[change.position] = own[change.position].clone().requires_grad_()
            surrogate = change.derivative(self.with_records(call), own, change.position)
            if surrogate is None:
                return dense(torch.zeros_like(self.leaf))
            surrogate = crop(surrogate, call.result).expand_as(call.result)
            (local,) = torch.autograd.grad(surrogate, own[change.position], gradient)
            if argument is self.leaf:
                return dense(local)
            if needed is not None and not self._may_give(
                needed, error, local, argument, (call.number, change.position)
            ):
                return None
            (part,) = torch.autograd.grad(argument, self.leaf, local, retain_graph=True, allow_unused=True)
        except Exception:  # the change does not fit this call's arguments: then it is no explanation
            return None
        return dense(torch.zeros_like(self.leaf)) if part is None else dense(part)

    def _may_give(
        self, needed: Tensor, error: float, local: Tensor, argument: Tensor, place: tuple[int, int]
    ) -> bool:
        """False if the gradient ``local`` of an argument gives a part that is surely no multiple of the needed one.

        Two weighted sums of the part have to be in the ratio of those of the needed one. Sums of the part are sums of
        the gradient of the argument, too, with other weights, which are computed once.
        """
        if place not in self._weights:
            self._weights[place] = weights_of_sums(argument, self.leaf)
        weights = self._weights[place]
        if weights is None or needed.is_complex() or local.layout is not torch.strided:
            return True
        of_leaf, of_argument = weights
        part, goal = (of_argument * local).reshape(2, -1), (of_leaf * needed).reshape(2, -1)
        (p, q), (a, b) = part.sum(1), goal.sum(1)
        limit = error * of_leaf[0].sum() + RATIO_ERROR * goal.abs().sum()
        size = part.abs().sum()
        return not bool((a * q - b * p).abs() > 2 * limit * size)  # NaN may be anything


def weights_of_sums(argument: Tensor, leaf: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Weights of two sums of a gradient of ``leaf``, and those with which one of ``argument`` has the same sums."""
    if leaf is None or leaf.is_complex() or argument.is_complex() or argument.dtype is not torch.float64:
        return None
    generator = torch.Generator().manual_seed(0)
    of_leaf = torch.rand(2, *leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device) + 0.5
    any_gradient = torch.zeros_like(argument).requires_grad_()
    try:
        (part,) = torch.autograd.grad(argument, leaf, any_gradient, create_graph=True, allow_unused=True)
        if part is None or part.layout is not torch.strided:
            return None
        # The part is linear in the gradient of the argument.
        sums = [torch.autograd.grad(part, any_gradient, own, retain_graph=True)[0] for own in of_leaf]
    except RuntimeError:  # an operation whose backward has no derivative
        return None
    return of_leaf, torch.stack(sums)


def record(mismatch: Mismatch, probe: Probe) -> Recording:
    """Run native and record its calls; an empty recording if that raises."""
    leaves = input_leaves(mismatch)
    mode = InterceptCalls()
    incoming = mismatch.incoming(probe.seed)
    try:
        with mode:
            result = call_native(probe.case.native, leaves.values())
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        numbered = [(n, o) for n, o in enumerate(outputs) if o.requires_grad]
        calls = [call for call in mode.calls if call.attached is not None and call.attached.requires_grad]
        grads = torch.autograd.grad(
            [o for _, o in numbered], [call.attached for call in calls], [incoming(n, o) for n, o in numbered],
            allow_unused=True, retain_graph=True,
        )  # fmt: skip
    except Exception:  # native raises only when it is watched: then its calls explain nothing
        return Recording()
    records: dict[Any, list[Tensor]] = {("input", name): [value.detach()] for name, value in leaves.items()}
    for call in mode.calls:
        records.setdefault(call.site, []).append(call.result)
    received = {call.number: grad for call, grad in zip(calls, grads, strict=True) if grad is not None}
    return Recording(mode.calls, mode.composites, mode.indices, records, leaves[mismatch.input_name], received)
