"""Operations of native between an input and the outputs, and native with one of their derivatives changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis import changed_native as changed
from compare.gradients.diagnosis.changed_native import NativeChange, gradient_of_changed
from compare.gradients.diagnosis.factors import name_factor
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch, equal_up_to_rounding
from compare.gradients.diagnosis.native_calls import Call
from compare.gradients.diagnosis.native_recording import Recording, record
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.wording import format_number
from compare.gradients.run_variant import gradient_name

MAX_SITES = 60  # places in native's code
MAX_CALLS = 15_000  # of native's operations, for one case: one or two seconds; large ones count several times
COST_OF_A_PART = 2  # operations that take as long as the backward of one part of a gradient, beside the call
MAX_OPERANDS = 14  # tensors that are tried in the place of an operand
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Hypothesis:
    """A change of native that may explain a gradient, and what is said of it."""

    kind: str
    statement: str
    change: NativeChange
    path: Path | None = None


@dataclass
class Path:
    """One argument of the calls of a site, on the way from the input to the output."""

    call: Call
    position: int
    words: str
    argument: str  # "first argument (x)"; "" if there is no other
    part: Tensor | None = None  # of the gradient, through this argument
    names: dict[int, str] = field(default_factory=dict)


class NativePaths:
    """Search for the change. The gradient must be explained in a second draw too."""

    def __init__(self, mismatch: Mismatch, probe: Probe) -> None:
        self.mismatch, self.probe = mismatch, probe
        self.change: NativeChange | None = None  # the last one that explains both draws
        self._scaled: list[tuple[Hypothesis, float]] = []
        self._steps: dict[int, list[Call]] = {}
        self._error = mismatch.rounding_error
        self.recording = record(mismatch, probe)
        self.calls, self.composites = self.recording.calls, self.recording.composites
        self.records = self.recording.records
        self.cost = sum(call.cost for call in self.calls)  # of one run
        self.second = probe.mismatch(mismatch, 1)
        self.second_recording = Recording() if self.second is None else record(self.second, probe)
        self.second_records = self.second_recording.records
        self.sites = Counter(call.site for call in self.calls)
        self.names = _names(self.calls, mismatch)
        self.paths = self._find_paths()
        reference = gradient_of_changed(mismatch, probe, None)
        self.is_traced = (
            bool(self.paths)
            and reference is not None
            and reference.shape == mismatch.oracle.shape
            and equal_up_to_rounding(reference, mismatch.oracle, 4 * mismatch.tolerance)
        )

    def _find_paths(self) -> list[Path]:
        paths: dict[Any, Path] = {}
        for call in self.calls:
            flat = call.flat
            for position, tensor in call.tensors:
                if not tensor.requires_grad or (call.site, position) in paths:
                    continue
                paths[call.site, position] = Path(call, position, *self._words(call, position, flat))
        return list(paths.values())[::-1][: 2 * MAX_SITES]  # of equal explanations, that nearest to the output

    def _words(self, call: Call, position: int, flat: list[Any]) -> tuple[str, str]:
        """The argument and the operation, then the argument: "the first argument (x) of mul in line 4, `y = x * w`".

        The argument is "" if there is no other.
        """
        operation = call.name.removeprefix("the result of ")
        positions = [n for n, _ in call.tensors]
        if len(positions) == 1:
            return operation, ""
        name = self.names.get(id(flat[position]))
        if name and " in line" in operation:
            name = name.removesuffix(operation[operation.find(" in line") :])  # the same line is not told twice
        ordinal = ORDINALS[min(positions.index(position), len(ORDINALS) - 1)]
        argument = f"{ordinal} argument{f' ({name})' if name else ''}"
        return f"the {argument} of {operation}", argument

    def gradient(self, change: NativeChange) -> Tensor | None:
        if self.is_spent():
            return None
        self.probe.native_calls += self.cost
        return gradient_of_changed(self.mismatch, self.probe, change, self.records)

    def is_spent(self) -> bool:
        """True after ``MAX_CALLS``; then nothing more is tried. A limit in seconds would make results differ."""
        return self.probe.native_calls > MAX_CALLS

    def findings(self, hypotheses: Iterable[Hypothesis]) -> Iterator[Finding]:
        """The hypotheses that explain both draws. Those that need a further factor are left to the next method."""
        for each in hypotheses:
            if self.is_spent():
                return
            factor = self._factor(each)
            if factor is None:
                continue
            if factor != 1:
                self._scaled.append((each, factor))
            elif self.explains(each.change):
                yield Finding(each.kind, self.mismatch.quantity, each.statement)

    def scaled_findings(self) -> Iterator[Finding]:
        """The hypotheses seen by :meth:`findings` that explain both draws with a further factor."""
        for each, factor in self._scaled:
            if self.explains(changed.times(each.change, factor)):
                name = name_factor(factor, self.mismatch)
                statement = f"{each.statement}; this part is also multiplied by {format_number(factor)}"
                yield Finding(each.kind, self.mismatch.quantity, statement + (f" ({name})" if name else ""))

    def _factor(self, hypothesis: Hypothesis) -> float | None:
        """1 if the change may explain the gradient; the factor if it does times a number; None if it does not."""
        change, path = hypothesis.change, hypothesis.path
        if path is None or self.sites[change.site] != 1 or path.part is None:
            return 1.0
        if self.is_spent():
            return None
        self.probe.native_calls += COST_OF_A_PART + path.call.cost
        others = self.mismatch.oracle - path.part
        part = self.recording.derivative(path.call, change, self.mismatch.ours - others, self._error)
        if part is None:
            return None
        if self.mismatch.equals(others + part):
            return 1.0
        square = float((part * part).sum())
        factor = float(((self.mismatch.ours - others) * part).sum()) / square if square else 0.0
        if abs(factor) < 1e-6 or not self.mismatch.equals(others + factor * part):
            return None
        return factor if part.count_nonzero() > 1 and not change.alone else None

    def explains(self, change: NativeChange) -> bool:
        if self.is_spent():
            return False
        self.probe.native_calls += 1
        got = self.gradient(change)
        if got is None or got.shape != self.mismatch.ours.shape or not self.mismatch.equals(got):
            return False
        if self.second is not None:
            again = gradient_of_changed(self.second, self.probe, change, self.second_records)
            if again is None or not self.second.equals(again):
                return False
        if not self._explains_spread(change):
            return False
        self.change = change
        return True

    def _explains_spread(self, change: NativeChange) -> bool:
        spread, recording = self._spread
        if spread is None:
            return True
        got = gradient_of_changed(spread, self.probe, change, recording.records)
        return got is not None and got.shape == spread.ours.shape and spread.equals(got)

    @cached_property
    def _spread(self) -> tuple[Mismatch | None, Recording]:
        spread = self.probe.spread(self.mismatch)
        return spread, Recording() if spread is None else record(spread, self.probe)

    def changes_right_gradient(self, change: NativeChange) -> bool:
        """True if the change makes the gradient of another input wrong, which is right."""
        for name in self.probe.right_inputs:
            other = replace(self.mismatch, quantity=gradient_name(name))
            before, after = (gradient_of_changed(other, self.probe, c, self.records) for c in (None, change))
            if before is not None and after is not None and not torch.allclose(before, after, 1e-9, 1e-12):
                return True
        return False

    def confirms_weights(self, weights: dict[int, tuple[Path, float]]) -> bool:
        if self.second is None:
            return True
        expected = self.second.oracle.clone()
        for path, weight in weights.values():
            omitted = NativeChange(path.call.site, path.position, changed.omitted)
            without = gradient_of_changed(self.second, self.probe, omitted)
            if without is None:
                return False
            expected += (weight - 1) * (self.second.oracle - without)
        return self.second.equals(expected)

    def operand_name(self, call: Call, number: int) -> str:
        """Name of an argument; in a loop, that of a later step if the first has none; "" if there is no name."""
        for step in (call, *self.steps(call)):
            name = self.names.get(id(step.flat[number]))
            if name:
                return name if step is call else f"{name} (of the previous step)"
        return ""

    def steps(self, call: Call) -> list[Call]:
        """Calls of the same site that have tensors at the same positions. One line may call several functions."""
        if call.number not in self._steps:
            positions = [n for n, _ in call.tensors]
            same = [c for c in self.calls if c.site == call.site]
            self._steps[call.number] = [c for c in same if [n for n, _ in c.tensors] == positions]
        return self._steps[call.number]

    def candidates(self, tensor: Tensor) -> list[Any]:
        """Keys of the recorded tensors of the same shape, then of those that differ in dimensions of length 1."""
        bare = tensor.squeeze().shape
        fitting = [(key, v[0].shape) for key, v in self.records.items() if v[0].squeeze().shape == bare]
        same = [key for key, shape in fitting if shape == tensor.shape][:MAX_OPERANDS]
        return same + [key for key, shape in fitting if shape != tensor.shape][: MAX_OPERANDS - len(same)]

    def site_name(self, site: Any) -> str:
        return next(call.name for call in self.calls if call.site == site)


def _names(calls: list[Call], mismatch: Mismatch) -> dict[int, str]:
    """Names of the tensors that are arguments of calls, by identity."""
    names: dict[int, str] = {}
    for call in calls:
        flat = call.flat
        for value in flat:
            if isinstance(value, Tensor) and id(value) not in names:
                for name, source in mismatch.inputs.items():
                    if value.shape == source.shape and torch.equal(value.detach(), source):
                        names[id(value)] = name
                for other in calls[: call.number]:
                    if {value.layout, other.result.layout} != {torch.strided}:
                        continue  # sparse ones have no address
                    same = value.shape == other.result.shape and value.data_ptr() == other.result.data_ptr()
                    if same and id(value) not in names:
                        names[id(value)] = other.name
    return names
