"""The condition that separates wrong elements from right ones: x < 0, |x| > 1, label = 1, the first row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compare.gradients.diagnosis.features import Feature
from compare.gradients.diagnosis.wording import format_number

# A condition on values must be so unlikely to fit by chance: one over the number of ways to choose as many elements.
MAX_CHANCE = 1e-4
MIN_RIGHT = 2  # informative elements on the other side
THRESHOLDS = (
    0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    2.0,
    -2.0,
    3.0,
    -3.0,
    6.0,
    1.5,
    -1.5,
    0.1,
    -0.1,
    0.2,
    0.25,
    0.75,
    4.0,
    5.0,
    10.0,
)
TRIANGLES = {
    "the row < the column": " (above the diagonal)",
    "the row > the column": " (below the diagonal)",
    "the row equals the column": " (on the diagonal)",
}
MAX_VALUES = 3  # whole numbers that one condition lists


def separate(features: Sequence[Feature], wrong: Tensor, informative: Tensor) -> tuple[str, bool] | None:
    """The first condition that holds for every wrong element and no right one, and whether it is about indices.

    Args:
        features: of all elements; the simplest first.
        wrong: mask of the wrong elements, flat.
        informative: mask of the elements at which a mistake would show: one of the two gradients is not 0.
    """
    wrong, informative = wrong.flatten(), informative.flatten() | wrong.flatten()
    count, total = int(wrong.sum()), int(informative.sum())
    if not count or total - count < MIN_RIGHT:
        return None
    is_unlikely = _chance(count, total) <= MAX_CHANCE
    for feature in features:
        if not feature.is_index and not is_unlikely:
            continue
        inside, outside = feature.values[wrong], feature.values[informative & ~wrong]
        if not bool(inside.isfinite().all() & outside.isfinite().all()):
            continue
        for condition in _conditions(feature, inside, outside):
            return condition + TRIANGLES.get(condition, ""), feature.is_index
    return None


def _conditions(feature: Feature, inside: Tensor, outside: Tensor) -> Iterator[str]:
    name = feature.name
    if feature.is_whole or _is_whole(inside, outside):
        yield from _whole_conditions(name, inside, outside)
    if feature.is_whole:
        yield from _threshold(name, inside, outside, is_whole=True)
        return
    yield from _threshold(name, inside, outside)
    yield from _threshold(f"|{name}|", inside.abs(), outside.abs())


def _is_whole(*values: Tensor) -> bool:
    return all(bool((v == v.round()).all()) for v in values)


def _whole_conditions(name: str, inside: Tensor, outside: Tensor) -> Iterator[str]:
    values, others = inside.unique(), outside.unique()
    if torch.isin(values, others).any():
        return
    if len(others) == 1 and len(values) > 1:
        yield _relation(name, "is not", others.tolist())
    elif len(values) == 1 or (
        len(values) <= MAX_VALUES and (values.min() < others.max()) and (others.min() < values.max())
    ):
        yield _relation(name, "is", values.tolist())
    elif len(values) > 1 and len(others) > 1:
        parities = (values.remainder(2).unique(), others.remainder(2).unique())
        if all(len(p) == 1 for p in parities):
            yield f"{name} is {'odd' if parities[0].item() else 'even'}"


def _relation(name: str, verb: str, values: list[float]) -> str:
    """ "the row is 0"; a difference is told as an equation."""
    if " - " in name and not name.startswith("|") and len(values) == 1:
        a, b = name.split(" - ", 1)
        if not values[0]:
            return f"{a} {verb} {b}" if verb == "is not" else f"{a} equals {b}"
        sign = "+" if values[0] > 0 else "-"
        return f"{a} {'equals' if verb == 'is' else 'is not'} {b} {sign} {format_number(abs(values[0]))}"
    return f"{name} {verb} {' or '.join(format_number(v) for v in values)}"


def _threshold(name: str, inside: Tensor, outside: Tensor, *, is_whole: bool = False) -> Iterator[str]:
    """``inside`` is above or below all of ``outside``, or between two numbers."""
    low, high, out_low, out_high = (float(v) for v in (inside.min(), inside.max(), outside.min(), outside.max()))
    if low == high and len(inside) > 2 and not is_whole and not bool((outside == low).any()):
        yield _relation(name, "is", [low])
    elif low > out_high:
        yield _inequality(name, ">", out_high, low, is_whole)
    elif high < out_low:
        yield _inequality(name, "<", high, out_low, is_whole)
    elif not ((outside >= low) & (outside <= high)).any() and len(inside) > 2 and not name.startswith("|"):
        below, above = outside[outside < low], outside[outside > high]
        if len(below) and len(above):
            lower = _inequality(name, ">", float(below.max()), low, is_whole)
            upper = _inequality(name, "<", high, float(above.min()), is_whole)
            if is_whole and " - " not in name:
                yield f"{name} is from {format_number(low)} to {format_number(high)}"
            elif "about" not in lower + upper:
                yield f"{lower} and {upper}"


def _inequality(name: str, sign: str, a: float, b: float, is_whole: bool) -> str:
    """An inequality between a and b, a < b; a simple number between them if there is one.

    Above, all of the elements are at least b, so b itself is the number of "at least"; below, a is that of "at most".
    """
    if is_whole:
        number = format_number(a if sign == ">" else b)
        words = number
    else:
        simple = next((t for t in THRESHOLDS if a <= t <= b), None)
        words = format_number(simple) if simple is not None else f"about {(a + b) / 2:.3g}"
        if simple == (b if sign == ">" else a):
            sign += "="
    if " - " in name and words == "0" and not name.startswith("|"):
        first, second = name.split(" - ", 1)
        return f"{first} {sign} {second}"
    return f"{name} {sign} {words}"


def _chance(count: int, total: int) -> float:
    logarithm = math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
    return math.exp(-min(logarithm, 700.0))
