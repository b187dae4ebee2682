"""Calls after and between other calls: nothing that one call leaves behind may change another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.oracle import Oracle
from compare.gradients.run_variant import (
    RunResult,
    call,
    dense_copy,
    gradient_name,
    make_leaf,
    output_name,
)
from compare.gradients.variants import Variant, gradient_to_layout, incoming_gradient

KIND = "depends on earlier calls"


@dataclass
class _Call:
    """One forward call, and its backward.

    Attributes:
        values: copies of the outputs and gradients, made as soon as they were there.
        kept: the outputs and gradients themselves, which a later call must not change.
    """

    variant: Variant
    seed: int
    leaves: dict[str, Tensor]
    outputs: tuple[Tensor, ...]
    values: dict[str, Tensor | None] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)

    def backward(self, retain_graph: bool = False) -> _Call:
        """Compute the gradients of the leaves, with the variant's incoming gradients; return the call."""
        differentiable = {name: leaf for name, leaf in self.leaves.items() if leaf.requires_grad}
        numbered = [(n, output) for n, output in enumerate(self.outputs) if output.requires_grad]
        if not numbered or not differentiable:
            return self
        incoming = [
            gradient_to_layout(
                incoming_gradient(output, self.variant, self.seed + n).to(output.dtype), self.variant.gradient_layout
            )
            for n, output in numbered
        ]
        grads = torch.autograd.grad(
            [output for _, output in numbered],
            list(differentiable.values()),
            incoming,
            allow_unused=True,
            retain_graph=retain_graph,
        )
        self._keep({gradient_name(name): grad for name, grad in zip(differentiable, grads, strict=True)})
        return self

    def _keep(self, tensors: dict[str, Tensor | None]) -> None:
        self.values |= {name: None if tensor is None else dense_copy(tensor) for name, tensor in tensors.items()}
        self.kept |= {name: tensor.detach() for name, tensor in tensors.items() if tensor is not None}

    def overwritten(self) -> list[str]:
        """Names of the outputs and gradients that differ from the copies made when they were there."""
        return [
            name
            for name, tensor in self.kept.items()
            if not torch.equal(dense_copy(tensor).nan_to_num(), self.values[name].nan_to_num())
        ]


def find_dependence_on_earlier_calls(
    runner: CaseRunner, first: Variant, second: Variant, right: set[str], *, in_place: bool
) -> Iterator[Finding]:
    """One finding for each quantity that is right in a call by itself, and wrong after or between other calls.

    Args:
        first: the variant of the first call.
        second: a variant with other inputs.
        right: quantities that are right in ``first``.
        in_place: the function changes its arguments in place and declares it, so it gets clones of the leaves.
    """
    reported: set[str] = set()
    for situation, variant, calls in (
        (
            "if another forward comes before backward",
            first,
            lambda: _interleaved(runner, first, second, in_place)[:1],
        ),
        ("in a call after another one", second, lambda: _interleaved(runner, first, second, in_place)[1:]),
        ("if the first inputs come again", first, lambda: [_run(runner, first, in_place)]),
        ("in a second backward through the same graph", first, lambda: _backward_twice(runner, first, in_place)),
        (
            "after new values were written into the inputs",
            second,
            lambda: _rewritten(runner, first, second, in_place),
        ),
    ):
        native = runner.run_native(variant)
        try:
            results = calls()
        except Exception as error:
            if "second time" in str(error) or "call" in reported:
                continue  # a Function may free what it saved: that is a capability, and no wrong gradient
            reported.add("call")
            yield Finding(KIND, "backward", f"an exception is raised {situation}", f"{type(error).__name__}: {error}")
            continue
        for result in results:
            names = [name for name in native.values if name in right - reported]
            for judgement in runner.judge(variant, RunResult(result.values), native, names):
                if judgement.mismatch is not None:
                    row = judgement.row
                    reported.add(row.quantity)
                    numbers = f"at {list(row.index)}: got {row.ours_value:.6g}, expected {row.oracle_value:.6g}"
                    yield Finding(KIND, row.quantity, f"is wrong {situation}", row.message or numbers)
            for name in result.overwritten():
                if name in right - reported:
                    reported.add(name)
                    yield Finding(
                        KIND, name, "is overwritten by a later call", "it shares its memory with the next one"
                    )


def _interleaved(runner: CaseRunner, first: Variant, second: Variant, in_place: bool) -> list[_Call]:
    """Two forwards, then their backwards in the same order."""
    one = _forward(runner, first, in_place)
    two = _forward(runner, second, in_place)
    return [one.backward(), two.backward()]


def _run(runner: CaseRunner, variant: Variant, in_place: bool) -> _Call:
    return _forward(runner, variant, in_place).backward()


def _backward_twice(runner: CaseRunner, variant: Variant, in_place: bool) -> list[_Call]:
    one = _forward(runner, variant, in_place).backward(retain_graph=True)
    first = _Call(variant, runner.seed, one.leaves, one.outputs, dict(one.values), dict(one.kept))
    return [one.backward(), first]  # the second backward's gradients; and those of the first, which must be kept


def _rewritten(runner: CaseRunner, first: Variant, second: Variant, in_place: bool) -> list[_Call]:
    """A call with the first inputs; then the second inputs are written into the same tensors, as optimizers do."""
    one = _run(runner, first, in_place)
    new = {name: make_leaf(value, second).detach() for name, value in runner.oracles(second).inputs.items()}
    if any(leaf.shape != new[name].shape for name, leaf in one.leaves.items()):
        return []
    with torch.no_grad():
        for name, leaf in one.leaves.items():
            leaf.copy_(new[name])
    return [_call(runner, second, one.leaves, in_place).backward()]


def _forward(runner: CaseRunner, variant: Variant, in_place: bool) -> _Call:
    oracle: Oracle = runner.oracles(variant)
    leaves = {name: make_leaf(value, variant) for name, value in oracle.inputs.items()}
    return _call(runner, variant, leaves, in_place)


def _call(runner: CaseRunner, variant: Variant, leaves: dict[str, Tensor], in_place: bool) -> _Call:
    arguments = [leaf.clone() for leaf in leaves.values()] if in_place else list(leaves.values())
    outputs = call(runner.case.ours, arguments)
    made = _Call(variant, runner.seed, leaves, outputs)
    made._keep({output_name(n): output for n, output in enumerate(outputs)})
    return made
