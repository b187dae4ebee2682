"""One cause that makes several gradients wrong is told once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from compare.gradients.diagnosis import tape_findings
from compare.gradients.diagnosis.changed_native import gradient_of_changed, record
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_calls import call_native
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.wording import join_words
from compare.gradients.run_variant import gradient_name


def share_causes(findings: Sequence[Finding], mismatches: dict[str, Mismatch], probe: Probe) -> list[Finding]:
    """Give two gradients the same finding if the change of native that explains one explains the other too.

    Args:
        mismatches: one for each wrong gradient, in the probe's variant, by quantity.
    """
    shared = list(findings)
    for finding in findings:
        change = probe.explanations.get((finding.kind, finding.statement))
        if change is None:
            continue
        for n, other in enumerate(shared):
            mismatch = mismatches.get(other.quantity)
            if mismatch is None or other.statement == finding.statement or _has_change(other, probe, before=finding):
                continue
            if explains(change, mismatch, probe):
                shared[n] = replace(finding, quantity=other.quantity, evidence=other.evidence)
    return shared


def explains(change: Any, mismatch: Mismatch, probe: Probe) -> bool:
    """True if a change of native, or of one step of its backward, explains a gradient."""
    if isinstance(change, tape_findings.Change):
        return tape_findings.explains(change, mismatch, probe)
    got = gradient_of_changed(mismatch, probe, change, record(mismatch, probe).records)
    return got is not None and mismatch.equals(got)


def find_shared_cause(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """The finding about a gradient that backward computes earlier, if it explains this one too."""
    for (kind, statement), change in list(probe.explanations.items()):
        if explains(change, mismatch, probe):
            yield Finding(kind, mismatch.quantity, statement)


def in_backward_order(quantities: Sequence[str], probe: Probe) -> list[str]:
    """Quantities; of gradients those first that backward computes first: a mistake there makes others wrong."""
    distances = _distances(probe)
    return sorted(quantities, key=lambda quantity: distances.get(quantity, 0))


def _distances(probe: Probe) -> dict[str, int]:
    """Number of steps of native's backward to each input."""
    inputs = probe.draw(0)
    if probe.case.native is None or inputs is None:
        return {}
    leaves = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in inputs.items()}
    try:
        result = call_native(probe.case.native, leaves.values())
    except Exception:  # an integer input that native refuses as a copy, say: then the order is that of the inputs
        return {}
    outputs = result if isinstance(result, (tuple, list)) else (result,)
    level = [o.grad_fn for o in outputs if isinstance(o, Tensor) and o.grad_fn is not None]
    names = {id(value): gradient_name(name) for name, value in leaves.items()}
    depths: dict[str, int] = {}
    visited: set[Any] = set()
    distance = 0
    while level:
        for node in level:
            quantity = names.get(id(getattr(node, "variable", None)))
            if quantity is not None:
                depths.setdefault(quantity, distance)
        visited.update(level)
        level = list(dict.fromkeys(n for node in level for n, _ in node.next_functions if n and n not in visited))
        distance += 1
    return depths


def _has_change(finding: Finding, probe: Probe, before: Finding) -> bool:
    """True if the finding is of a change too, which others may share already."""
    return (finding.kind, finding.statement) in probe.explanations and finding.quantity < before.quantity


def tell_once(findings: Sequence[Finding]) -> list[Finding]:
    """Join the gradients about which the same is said."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        key = (finding.kind, finding.statement)
        if not finding.quantity.startswith("gradient") or finding.kind in ("unknown", "raises", "none"):
            key = (*key, finding.quantity)
        groups.setdefault(key, []).append(finding)
    return [
        group[0] if len(group) == 1 else replace(group[0], quantity=join_words([f.quantity for f in group]))
        for group in groups.values()
    ]
