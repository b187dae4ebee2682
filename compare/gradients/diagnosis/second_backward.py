"""A gradient that a second backward through the same graph does not repeat."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.locations import worst_example
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.numbers import as_real
from compare.gradients.run_variant import call, dense_copy, make_leaf
from compare.gradients.variants import gradient_to_layout


def find_other_gradient_of_second_backward(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """Two backwards through one graph that return different gradients, the first of which is wrong already."""
    try:
        first, second = _two_backwards(mismatch, probe)
    except Exception:  # a Function may free what it saved, and then backward runs once
        return
    if bool(((first - second).abs().nan_to_num(0.0) > 4 * mismatch.tolerance).any()):
        statement = "is not repeatable: a second backward through the same graph returns another gradient, as where "
        statement += "backward draws random numbers again (another mask than forward's) or changes what forward saved"
        yield Finding("not repeatable", mismatch.quantity, statement, worst_example(mismatch))


def _two_backwards(mismatch: Mismatch, probe: Probe) -> tuple[Tensor, Tensor]:
    """The quantity's gradients of both backwards, with the incoming gradients of the mismatch."""
    variant, incoming = mismatch.variant, mismatch.incoming(probe.seed)
    leaves = {name: make_leaf(value, variant) for name, value in mismatch.inputs.items()}
    outputs = [(n, o) for n, o in enumerate(call(probe.case.ours, leaves.values())) if o.requires_grad]
    given = [gradient_to_layout(incoming(n, o.detach()).to(o.dtype), variant.gradient_layout) for n, o in outputs]
    first, second = (
        as_real(dense_copy(grad)).double().cpu()
        for _ in range(2)
        for grad in torch.autograd.grad(
            [o for _, o in outputs], leaves[mismatch.input_name], [g.clone() for g in given], retain_graph=True
        )
    )
    return first, second
