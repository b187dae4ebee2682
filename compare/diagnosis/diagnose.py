"""Says what kind of wrong a wrong gradient is, and on what evidence.

First: in which variants is it wrong? If not in the plain one, that is the finding. Then, on one specimen, patterns
are tried from the special to the general: the whole tensor turned, scaled or replaced; places; parts of the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from compare.diagnosis import places
from compare.diagnosis.findings import Asked, Finding, Subject
from compare.diagnosis.hypotheses import whole_tensor
from compare.diagnosis.parts import elements, parts
from compare.diagnosis.terms import terms
from compare.diagnosis.uses import uses
from compare.errors import REFUSED, WRONG, Row
from compare.running import OUTPUT
from compare.variants import Variant


@dataclass(frozen=True)
class Trial:
    """What can be asked: the native function itself, and, on a variant's values, its answers to other gradients."""

    native: Callable[..., Any]
    asked: Callable[[Variant], Asked]
    seed: int


def diagnose(
    subjects: Sequence[Subject],
    rows: Sequence[Row],
    notes: dict[str, str],
    trial: Trial,
) -> list[Finding]:
    """One finding for each quantity that is wrong, outputs first; then what ours does to its arguments.

    Args:
        subjects: every quantity that is wrong, in every variant where it is.
        rows: all rows, the right ones too.
        notes: arguments that are changed, and results that differ from call to call, each with its kind.
    """
    quantities = dict.fromkeys(subject.quantity for subject in subjects)
    findings = [
        _diagnose_one([s for s in subjects if s.quantity == quantity], rows, trial) for quantity in quantities
    ]
    findings.sort(key=lambda f: not f.quantity.startswith(OUTPUT))
    if any(kind.startswith("changes") for kind in notes.values()):  # memory shared by many elements shows it again
        findings = [f for f in findings if f.kind not in ("only in one layout", "only in one dtype")]
    findings = [f for f in findings if notes.get(f.quantity) != "not repeatable"]
    for name, kind in notes.items():
        words = {
            "changes its input": f"the function writes into {name}, and its caller may still need that",
            "changes the incoming gradient": f"backward writes into {name}",
            "not repeatable": "a second call with the same arguments gives another answer",
        }[kind]
        findings.insert(0, Finding(kind, name.removeprefix("the "), words))
    return findings


def _diagnose_one(failing: list[Subject], rows: Sequence[Row], trial: Trial) -> Finding:
    quantity = failing[0].quantity
    compared = [row for row in rows if row.status != REFUSED]
    tested = {row.variant.dtype for row in compared if row.quantity == quantity or quantity == "backward"}
    wrong = {row.variant for row in rows if row.status == WRONG and row.quantity == quantity}
    plain = next((s for s in failing if s.variant == Variant(device=s.variant.device)), None)
    if plain is not None and {v.dtype for v in wrong} == {torch.float64} and len(tested) > 1 and _narrow(plain):
        statement = "it is wrong only in float64: no more exact than float32"
        return Finding("only in one dtype", quantity, statement, places.example(plain))
    if plain is not None:
        return _named(plain, trial)
    specimen = failing[0]
    dtypes = {v.dtype for v in wrong}
    if torch.float64 not in dtypes and torch.float64 in tested:
        return _one_dtype(specimen, wrong, rows)
    if all(v.data == "whole numbers" for v in wrong):
        return _at_kinks(specimen, trial)
    return _one_layout(specimen, wrong, trial)


def _narrow(subject: Subject) -> bool:
    """Whether what is wrong in float64 looks like float32: most elements, each by a few of its roundings."""
    if subject.message or not subject.ours.isfinite().all():
        return False
    error, size = float((subject.ours - subject.oracle).norm()), float(subject.oracle.norm())
    return float(subject.wrong.double().mean()) > 0.25 and error < 16 * torch.finfo(torch.float32).eps * size


def _one_dtype(specimen: Subject, wrong: set[Variant], rows: Sequence[Row]) -> Finding:
    names = sorted({str(v.dtype).removeprefix("torch.") for v in wrong})
    row = next(r for r in rows if r.quantity == specimen.quantity and r.variant == specimen.variant)
    statement = f"it is wrong only in {' and '.join(names)}"
    if specimen.message:
        return Finding("only in one dtype", specimen.quantity, statement, specimen.message)
    evidence = f"in {specimen.variant}: error {row.error:.3g}, natively {row.native_error:.3g}"
    evidence += f", granted {row.tolerance:.3g}"
    if row.by_norm or not specimen.ours.isfinite().all():
        evidence += "; " + (places.example(specimen))
    elif names != ["float32"] and not row.by_norm and row.share < 50:
        evidence += "; where a ReLU or a maximum follows a sum inside, say kinks=True"
    return Finding("only in one dtype", specimen.quantity, statement, evidence)


def _one_layout(specimen: Subject, wrong: set[Variant], trial: Trial) -> Finding:
    what = []
    for v in wrong:
        if v.layout != "contiguous":
            what.append(f"{v.layout} inputs")
        if v.gradient_layout != "contiguous":
            what.append(f"{v.gradient_layout} incoming gradients")
    names = " and ".join(dict.fromkeys(sorted(what)))
    if specimen.message:
        return Finding("only in one layout", specimen.quantity, f"it is wrong only with {names}", specimen.message)
    inner = _named(specimen, trial)
    evidence = f"there {inner.statement}" + (f"; {inner.evidence}" if inner.evidence else "")
    return Finding("only in one layout", specimen.quantity, f"it is wrong only with {names}", evidence)


def _at_kinks(specimen: Subject, trial: Trial) -> Finding:
    """Right on drawn numbers, wrong on whole ones: zeros, or ties, in the input or inside."""
    if specimen.message:
        return _named(specimen, trial)
    for finding in places.at_conventions(specimen):
        return finding
    if (~specimen.ours.isfinite() & specimen.oracle.isfinite()).any():
        return next(places.nowhere_finite(specimen))
    kind = "only at zeros" if places.all_from_zero_outputs(specimen) else "only at ties"
    statement = "it is wrong only on whole numbers, where values inside vanish or are equal"
    return Finding(kind, specimen.quantity, statement, places.example(specimen))


def _named(subject: Subject, trial: Trial) -> Finding:
    """The first pattern that fits a specimen."""
    if subject.message:
        return _without_numbers(subject)
    finding = next(_patterns(subject, trial), None)
    if finding is None:
        n, total = int(subject.wrong.sum()), subject.wrong.numel()
        cosine = torch.nn.functional.cosine_similarity(subject.ours.flatten(), subject.oracle.flatten(), 0)
        statement = f"{n} of {total} elements are wrong{places.slices(subject)}"
        finding = Finding(
            "unknown", subject.quantity, statement, f"cosine {float(cosine):.6f}; {places.example(subject)}"
        )
    if subject.quantity.startswith(OUTPUT):
        return Finding("wrong output", subject.quantity, finding.statement, finding.evidence)
    return finding


def _patterns(subject: Subject, trial: Trial) -> Iterator[Finding]:
    """The special before the general, and what costs a few native runs before what costs hundreds."""
    asked, seed = trial.asked(subject.variant), trial.seed
    return chain(
        places.zero(subject) if not subject.ours.any() else (),
        places.nowhere_finite(subject),
        whole_tensor(subject, asked, seed),
        places.at_conventions(subject),
        places.few(subject, most=3),  # so few prove no border
        places.at_borders(subject),
        places.few(subject),
        places.zero(subject),
        parts(subject, asked, seed),
        uses(subject, trial.native, seed),
        terms(subject, seed),
        elements(subject, asked, seed),
    )


def _without_numbers(subject: Subject) -> Finding:
    """No gradient, another shape or dtype, an exception."""
    quantity, message = subject.quantity, subject.message
    if message.startswith("there is no"):
        return Finding("none", quantity, message)
    if subject.ours is not None and subject.oracle is not None and subject.ours.shape != subject.oracle.shape:
        ours, oracle = subject.ours.double().cpu(), subject.oracle.double().cpu()
        evidence = f"it has shape {tuple(ours.shape)}, where {tuple(oracle.shape)} is right"
        kind, statement = "wrong shape", "it has another shape than native's"
        if not quantity.startswith(OUTPUT):
            near = lambda a, b: a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)  # noqa: E731
            if oracle.dim() and any(near(ours, whole) for whole in (oracle.sum(0), oracle.mean(0))):
                kind, statement = "summed over the batch", "it is summed, where every example has its own"
            elif any(near(ours.sum(d), oracle) for d in range(ours.dim())):
                kind, statement = "not summed over the batch", "it is not summed, where the sum is right"
            elif oracle.dim() > 1 and near(ours, oracle.mT):
                kind, statement = "transposed", "it is transposed"
        return Finding(kind, quantity, statement, evidence)
    if message.startswith("the dtype"):
        return Finding("wrong output", quantity, message)
    return Finding("raises", quantity, "an exception ends the run", message)
