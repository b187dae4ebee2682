"""One cause that makes several gradients wrong is told once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compare.gradients.diagnosis.changed_native import gradient_of_changed, record
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.wording import join_words


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
            got = gradient_of_changed(mismatch, probe, change, record(mismatch, probe).records)
            if got is not None and mismatch.equals(got):
                shared[n] = replace(finding, quantity=other.quantity, evidence=other.evidence)
    return shared


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
