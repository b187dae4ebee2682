"""Gradient for gradient: every output and every gradient of a case, in every dtype, layout and kind of data."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compare.case import Case, CaseError
from compare.census import census
from compare.diagnosis.diagnose import Trial, diagnose
from compare.diagnosis.findings import Asked, Finding, Subject
from compare.errors import EQUAL, REFUSED, WRONG, Row, measure
from compare.running import OUTPUT, Run, run
from compare.tolerance import Noise, noise
from compare.variants import DATA, DTYPES, Variant, incoming_gradient, variants, with_values


@dataclass(frozen=True)
class Shown:
    """One quantity to be looked at: ours and the oracle in float64, and from which variant they are."""

    variant: Variant
    status: str
    ours: Tensor
    oracle: Tensor


@dataclass(frozen=True)
class Comparison:
    """What came of comparing one case.

    Attributes:
        rows: one for each output and gradient of each variant.
        findings: what is wrong, in words; the most telling first. Empty where all is well.
        census: for each kind of data, counts of exact zeros, ties and so on.
        pictures: of every quantity, ours and the oracle: where it is wrong, or else in plain float32.
    """

    case: Case
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    census: dict[str, dict[str, int]]
    pictures: dict[str, Shown] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every difference is within rounding, or explained by a convention."""
        return not self.findings

    def wrong(self) -> list[Row]:
        """The rows that are wrong."""
        return [row for row in self.rows if row.status == WRONG]

    def explained(self) -> dict[str, int]:
        """How many elements each convention explains, over all variants."""
        counts: dict[str, int] = {}
        for row in self.rows:
            for name, count in row.explained.items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def __str__(self) -> str:
        compared = [row for row in self.rows if row.status != REFUSED]
        if self.ok:
            worst = max(compared, key=lambda row: row.share, default=None)
            lines = [f"{self.case.name}: {len(compared)} comparisons, nothing wrong"]
            if worst is not None:
                share = f"{100 * worst.share:.0f} % of it"
                lines.append(f"  closest to its tolerance: {worst.quantity} in {worst.variant}, {share}")
        else:
            lines = [f"{self.case.name}: {len(self.wrong())} of {len(compared)} comparisons are wrong"]
            lines += [f"  {line}" for finding in self.findings for line in str(finding).splitlines()]
        lines += [f"  explained: {count} elements by {name}" for name, count in self.explained().items()]
        return "\n".join(lines)


def compare(
    case: Case,
    *,
    dtypes: Iterable[torch.dtype] = DTYPES,
    device: str = "cpu",
    seed: int = 0,
    progress: Any = None,
) -> Comparison:
    """Runs ``case.ours`` beside ``case.native`` in every variant, and says of what is wrong what kind of wrong it is.

    Args:
        progress: a tqdm bar, or anything with its ``update``; moved on by one when the case is done.

    Raises:
        CaseError: ``native`` itself fails in float64, or the case has no floating-point input or output.
    """
    examined = _Examination(case, device, seed)
    rows: list[Row] = []
    for variant in variants(tuple(dtypes), device, case.whole_numbers):
        if examined.makes_a_difference(variant):
            rows += examined.rows(variant)
    findings = diagnose(examined.subjects, rows, examined.notes(), Trial(case.native, examined.asked, seed))
    kinds = DATA if case.whole_numbers else DATA[:1]
    counts = {data: census(case, Variant(data=data, device=device), seed) for data in kinds}
    if progress is not None:
        progress.update(1)
    return Comparison(case, tuple(rows), tuple(findings), counts, examined.pictures)


def assert_matches(case: Case, **options: Any) -> None:
    """For tests: fails with the findings as its message unless :func:`compare` finds nothing wrong."""
    comparison = compare(case, **options)
    if not comparison.ok:
        raise AssertionError(str(comparison))


class _Examination:
    """One case being run: its oracles, kept for the variants that share them, and what was found wrong."""

    def __init__(self, case: Case, device: str, seed: int) -> None:
        self.case, self.seed = case, seed
        self.inputs = case.inputs(seed)
        self.subjects: list[Subject] = []
        self.pictures: dict[str, Shown] = {}
        self._oracles: dict[Any, tuple[dict, dict, dict, dict]] = {}
        self._plain = Variant(device=device)
        floating = [value for value in self.inputs.values() if value.is_floating_point()]
        if not floating:
            raise CaseError(f"{case.name}: make_inputs gives no floating-point tensor, so there is no gradient")
        _, oracle, *_ = self.oracle(self._plain)
        self.dims = [value.dim() for value in floating]
        self.output_dims = [v.dim() for name, v in oracle.items() if name.startswith(OUTPUT) and v is not None]

    def makes_a_difference(self, variant: Variant) -> bool:
        """Whether any tensor can be laid out in this way: channels_last is for four dimensions alone."""
        least = {"contiguous": 0, "channels_last": 4, "transposed": 2, "expanded": 2}
        for layout, dims in ((variant.layout, self.dims), (variant.gradient_layout, self.output_dims)):
            exact = layout == "channels_last"
            if layout != "contiguous" and not any(d == 4 if exact else d >= least[layout] for d in dims):
                return False
        return True

    def oracle(self, variant: Variant) -> tuple[dict, dict, dict, dict]:
        """Values, native's float64 answers to them, their noise, and what conventions answer."""
        expanded = variant.layout == "expanded", variant.gradient_layout == "expanded"
        key = (variant.dtype, variant.data, *expanded)
        if key not in self._oracles:
            values = with_values(self.inputs, variant)
            exact = self._native(values, variant).values
            noises = noise(self.case.native, values, exact, variant, self.seed, self.case.kinks)
            others = {
                name: self._native(values, variant, function=function).values
                for name, function in self.case.conventions.items()
            }
            self._oracles[key] = values, exact, noises, others
        return self._oracles[key]

    def _native(
        self,
        values: dict[str, Tensor],
        variant: Variant,
        gradients: Callable[[int, Tensor], Tensor] | None = None,
        function: Callable[..., Any] | None = None,
    ) -> Run:
        """In float64, with the very numbers that the variant's own dtype holds."""
        if gradients is None:
            gradients = lambda n, output: incoming_gradient(output, variant, self.seed + n)  # noqa: E731
        result = run(function or self.case.native, values, self._plain, self.seed, gradients)
        if result.error is not None:
            error = f"{type(result.error).__name__}: {result.error}"
            raise CaseError(f"{self.case.name}: the native side fails in float64: {error}") from result.error
        if not any(
            name.startswith(OUTPUT) and v.is_floating_point() for name, v in result.values.items() if v is not None
        ):
            raise CaseError(f"{self.case.name}: the native side returns no floating-point tensor")
        return result

    def rows(self, variant: Variant) -> list[Row]:
        values, exact, *_ = self.oracle(variant)
        native = run(self.case.native, values, variant, self.seed)
        if native.error is not None:
            return [Row(self.case.name, OUTPUT, variant, REFUSED, message=_told(native.error))]
        ours = run(self.case.ours, values, variant, self.seed)
        if ours.error is not None:
            return [self._raised(variant, ours, exact, values)]
        rows = []
        for name in dict.fromkeys((*exact, *ours.values)):
            rows.append(self._row(name, variant, ours, native, values))
        return rows

    def _row(self, name: str, variant: Variant, ours: Run, native: Run, values: dict[str, Tensor]) -> Row:
        _, exact, noises, others = self.oracle(variant)
        got, beside, right = ours.values.get(name), native.values.get(name), exact.get(name)
        if right is None and got is not None and name in exact:
            right, beside = (
                torch.zeros_like(got, dtype=torch.float64),
                torch.zeros_like(got),
            )  # natively no gradient: 0
        if got is None and right is not None and name in ours.values and not right.any():
            got = torch.zeros_like(right, dtype=variant.dtype)  # none is 0
        message = _odd(name, got, beside, right)
        if got is None and right is None:
            return Row(self.case.name, name, variant, EQUAL)
        if message:
            self.subjects.append(Subject(name, variant, got, right, None, 0.0, values, ours, message))
            return Row(self.case.name, name, variant, WRONG, message=message)
        if not right.is_floating_point():
            wrong = (got != right).cpu()
            row = Row(
                self.case.name,
                name,
                variant,
                WRONG if wrong.any() else "equal",
                got.numel(),
                unexplained=int(wrong.sum()),
            )
        else:
            conventions = {key: found[name] for key, found in others.items() if found.get(name) is not None}
            row, wrong = measure(
                self.case.name, name, variant, got, beside if beside is not None else torch.zeros_like(got), right,
                noises.get(name, Noise()), conventions, self.case.kinks,
            )  # fmt: skip
        if row.status == WRONG:
            self.subjects.append(
                Subject(name, variant, got.double().cpu(), right.double().cpu(), wrong, row.tolerance, values, ours)
            )
        if self._worth_a_picture(name, row):
            self.pictures[name] = Shown(variant, row.status, got.double().cpu(), right.double().cpu())
        return row

    def _worth_a_picture(self, name: str, row: Row) -> bool:
        """The first that is wrong, else the plain run in float32, where errors are there to be seen."""
        before = self.pictures.get(name)
        if row.status == WRONG:
            return before is None or before.status != WRONG
        plain = Variant(row.variant.dtype, device=row.variant.device) == row.variant
        return plain and (before is None or (before.status != WRONG and row.variant.dtype is torch.float32))

    def _raised(self, variant: Variant, ours: Run, exact: dict, values: dict[str, Tensor]) -> Row:
        quantity = OUTPUT if OUTPUT not in ours.values else "backward"
        for name, raw in ours.raw.items():
            if exact.get(name) is not None and not _expandable(raw.shape, exact[name].shape):
                quantity = name
                break
        got, right = ours.raw.get(quantity), exact.get(quantity)
        self.subjects.append(Subject(quantity, variant, got, right, None, 0.0, values, ours, _told(ours.error)))
        return Row(self.case.name, quantity, variant, WRONG, message=_told(ours.error))

    def asked(self, variant: Variant) -> Asked:
        """On the values of ``variant``, what native answers to other incoming gradients, or to other inputs."""
        own = self.oracle(variant)[0]
        return lambda gradients, inputs=None: self._native(inputs or own, variant, gradients).values

    def notes(self) -> dict[str, str]:
        """What ours does to its arguments, and whether it answers twice alike; in the words of the finding."""
        values, _, noises, _ = self.oracle(self._plain)
        first, again = (run(self.case.ours, values, self._plain, self.seed) for _ in range(2))
        notes = {}
        for name in first.changed:
            notes[name] = "changes the incoming gradient" if name.startswith("the incoming") else "changes its input"
        for name, value in first.values.items():
            other = again.values.get(name)
            if first.error is None and again.error is None and value is not None and other is not None:
                largest = (
                    float((value.double() - other.double()).abs().nan_to_num(0.0).max()) if value.numel() else 0.0
                )
                if largest > noises.get(name, Noise()).element:
                    notes[name] = "not repeatable"
        return notes


def _odd(name: str, got: Tensor | None, beside: Tensor | None, right: Tensor | None) -> str:
    """What makes a comparison of numbers impossible, or nothing."""
    if right is None and got is not None:
        return "native returns no such output"
    if got is None and right is not None:
        return "there is no gradient" if name.startswith("gradient") else "there is no such output"
    if got is None or right is None:
        return ""
    if got.shape != right.shape:
        return f"the shape is {tuple(got.shape)}, natively {tuple(right.shape)}"
    if beside is not None and got.dtype != beside.dtype:
        kind = [str(t.dtype).removeprefix("torch.") for t in (got, beside)]
        return f"the dtype is {kind[0]}, natively {kind[1]}"
    return ""


def _expandable(shape: torch.Size, onto: torch.Size) -> bool:
    """Whether the engine would sum a gradient of ``shape`` down to ``onto`` without a word."""
    try:
        return torch.broadcast_shapes(shape, onto) == shape
    except RuntimeError:
        return False


def _told(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {textwrap.shorten(text[0], 160) if text else ''}"
