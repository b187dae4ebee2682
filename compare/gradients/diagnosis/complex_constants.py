"""A part of native that backward treats as a constant, where numbers are complex."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from compare.gradients.diagnosis import changed_native as changed
from compare.gradients.diagnosis.changed_native import NativeChange, gradient_of_changed
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_calls import Call
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.numbers import as_real

MAX_SITES = 30


def find_constant(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """Results of native that explain two draws if they have no derivative; the nearest to the output first."""
    second = probe.mismatch(mismatch, 1)
    if second is None:
        return
    calls = {call.site: call for call in changed.record(mismatch, probe).calls}
    for call in list(calls.values())[::-1][:MAX_SITES]:
        change = NativeChange(call.site, 0, changed.omitted, value=_without_derivative)
        if all(_explains(change, m, probe) for m in (mismatch, second)):
            statement = (
                f"the derivative of {call.name.removeprefix('the result of ')} is missing, as if it were a constant"
            )
            yield Finding("missing term", mismatch.quantity, statement, "equals native's gradient with that path cut")


def _without_derivative(call: Call) -> Tensor:
    return call.result.detach()


def _explains(change: NativeChange, mismatch: Mismatch, probe: Probe) -> bool:
    got = gradient_of_changed(mismatch, probe, change)
    return got is not None and mismatch.equals(as_real(got))
