"""Test of a claim about zeros, ties or bounds: inputs that differ a little keep the ones and break the others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.locations import worst_example
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.probe import Probe

JITTER = 1e-3  # relative: zeros stay zeros, and no two elements stay equal
OFFSET = 0.0078125  # absolute, the same for all elements: ties stay ties, and no zero stays


def check_claim(finding: Finding, mismatch: Mismatch, probe: Probe) -> Finding | None:
    """The finding, corrected by what ours does beside zeros and ties; None if the mistake needs neither.

    Only claims about whole numbers are tested: there, ours was right for other numbers.
    """
    if finding.kind not in ("only at zeros", "only at ties", "only at bounds"):
        return finding
    needs_no_tie = _is_wrong(mismatch, probe, jitter=True)
    needs_no_zero = _is_wrong(mismatch, probe, offset=True)
    if needs_no_tie is None or needs_no_zero is None:
        return finding
    if needs_no_tie and needs_no_zero and _is_wrong(mismatch, probe, jitter=True, offset=True):
        return None
    if needs_no_zero and not needs_no_tie and finding.kind != "only at ties":
        statement = "is wrong only where elements are equal"
        evidence = f"it is right if they differ by one in a thousand; {worst_example(mismatch)}"
        return replace(finding, kind="only at ties", statement=statement, evidence=evidence)
    if needs_no_tie and not needs_no_zero and finding.kind == "only at ties":
        statement = "is wrong only where a value is exactly 0"
        evidence = f"it is right if all numbers are a little larger; {worst_example(mismatch)}"
        return replace(finding, kind="only at zeros", statement=statement, evidence=evidence)
    return finding


def _is_wrong(mismatch: Mismatch, probe: Probe, *, jitter: bool = False, offset: bool = False) -> bool | None:
    """True if the gradient is wrong for the changed inputs; None if it cannot be asked."""
    inputs = {name: _change(value, jitter, offset) for name, value in mismatch.inputs.items()}
    other = probe.compare(mismatch, inputs, mismatch.incoming(probe.seed))
    return None if other is None else bool(other.wrong.any())


def _change(value: Tensor, jitter: bool, offset: bool) -> Tensor:
    if not value.is_floating_point():
        return value
    if jitter:
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
        value = value * (1 + JITTER * noise)
    return value + OFFSET if offset else value
