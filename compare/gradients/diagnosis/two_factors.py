"""Gradients that are the expected one times one number where a condition holds, and times another elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.conditions import separate
from compare.gradients.diagnosis.features import Feature
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.locations import worst_example
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.wording import format_number

RTOL = 1e-6
MIN_OF_EACH = 3


def find_two_factors(draws: list[Mismatch], features_of: list[list[Feature]]) -> Iterator[Finding]:
    """Two numbers and the condition for the first; ``features_of`` are tried one list after the other."""
    ours, oracle = (torch.cat([getattr(m, name).flatten() for m in draws]) for name in ("ours", "oracle"))
    informative = oracle != 0
    if bool((ours[~informative] != 0).any()) or not bool(ours.isfinite().all()):
        return
    quotients = torch.where(informative, ours / oracle, torch.nan)
    masks = _two_values(quotients, informative)
    if masks is None:
        return
    for features in features_of:
        for first, second in (masks, masks[::-1]):
            separated = separate(features, first, informative)
            if separated is None:
                continue
            a, b = (format_number(float(quotients[mask].median())) for mask in (first, second))
            statement = f"equals the expected gradient times {a} where {separated[0]}, and "
            statement += "is right elsewhere" if b == "1" else f"times {b} elsewhere"
            kind = "only at some indices" if separated[1] else "only for some values"
            yield Finding(kind, draws[0].quantity, statement, worst_example(draws[0]))
            return


def _two_values(quotients: Tensor, informative: Tensor) -> tuple[Tensor, Tensor] | None:
    """Masks of the elements with the smaller quotient and with the larger; None if there are not two quotients."""
    values = quotients[informative]
    if len(values) < 2 * MIN_OF_EACH:
        return None
    low, high = float(values.min()), float(values.max())
    near = [informative & ((quotients - v).abs() <= RTOL * max(abs(low), abs(high))) for v in (low, high)]
    counts = [int(mask.sum()) for mask in near]
    if high - low <= RTOL * max(abs(low), abs(high)) or sum(counts) != len(values) or min(counts) < MIN_OF_EACH:
        return None
    return near[0], near[1]
