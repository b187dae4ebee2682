"""Locations of wrong elements: borders, a few elements, elements that are zero or not finite."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.wording import (
    dimension_name,
    format_number,
    got_and_expected,
    join_words,
    slice_names,
)
from compare.gradients.run_variant import OUTPUT


def find_borders(mismatch: Mismatch) -> Iterator[Finding]:
    """Wrong only in the first or last rows or columns."""
    wrong = mismatch.wrong
    if wrong.dim() < 3 or not wrong.any():
        return
    rows = wrong.flatten(0, -3).any(0).any(1)
    columns = wrong.flatten(0, -3).any(0).any(0)
    for width in (1, 2):
        if min(len(rows), len(columns)) <= 2 * width:
            return
        borders = {
            f"first {width} rows": rows[:width].any(),
            f"last {width} rows": rows[-width:].any(),
            f"first {width} columns": columns[:width].any(),
            f"last {width} columns": columns[-width:].any(),
        }
        if wrong[..., width:-width, width:-width].any():
            continue
        # An element in a corner is in a row border and in a column border; the fewest that cover all are told.
        names = _covering_borders(wrong, width, [name for name, has_wrong in borders.items() if has_wrong])
        where = join_words([name.replace("1 rows", "row").replace("1 columns", "column") for name in names])
        evidence = f"{int(wrong.sum())} of {wrong.numel()} elements are wrong, none of them in the interior"
        evidence += constant_factor(mismatch, f"; the {mismatch.noun} there is ")
        yield Finding("only at borders", mismatch.quantity, f"is wrong only in the {where}", evidence)
        return


def _covering_borders(wrong: Tensor, width: int, names: list[str]) -> list[str]:
    """The fewest borders that contain every wrong element."""
    for count in range(1, len(names)):
        for chosen in itertools.combinations(names, count):
            outside = wrong.clone()
            for name in chosen:
                dim = -2 if "rows" in name else -1
                start = 0 if name.startswith("first") else wrong.shape[dim] - width
                outside.narrow(dim, start, width).fill_(False)
            if not outside.any():
                return list(chosen)
    return names


def find_nonfinite(mismatch: Mismatch) -> Iterator[Finding]:
    """NaN or infinite where the oracle is finite."""
    nonfinite = ~mismatch.ours.isfinite() & mismatch.oracle.isfinite() & mismatch.wrong
    if nonfinite.any():
        values = mismatch.ours[nonfinite]
        value = "NaN" if values.isnan().all() else "infinite" if values.isinf().all() else "NaN or infinite"
        all_elements = nonfinite.all()
        where = (
            "everywhere"
            if all_elements
            else f"in {int(nonfinite.sum())} of {nonfinite.numel()} elements{_slices_of(nonfinite)}"
        )
        yield Finding("not finite", mismatch.quantity, f"is {value} {where}", _first_example(mismatch, nonfinite))


def find_zero(mismatch: Mismatch) -> Iterator[Finding]:
    """Zero in every wrong element."""
    wrong = mismatch.wrong
    if wrong.any() and not mismatch.ours[wrong].any():
        if not mismatch.ours.any():
            statement = "is zero everywhere"
        else:
            statement = f"is zero in {int(wrong.sum())} of {wrong.numel()} elements where a nonzero value is expected"
            statement += wrong_slices(mismatch)
        yield Finding("zero", mismatch.quantity, statement, _first_example(mismatch, wrong))


def find_few_elements(mismatch: Mismatch, most: int | None = None) -> Iterator[Finding]:
    """Wrong in at most ``most`` elements, or in at most one of sixteen."""
    n, total = int(mismatch.wrong.sum()), mismatch.wrong.numel()
    if 0 < n <= min(most or total, max(1, min(3, total // 4), total // 16)):
        statement = f"{n} of {total} elements {'is' if n == 1 else 'are'} wrong"
        statement += constant_factor(mismatch, ": got ")
        yield Finding("few elements", mismatch.quantity, statement, _first_example(mismatch, mismatch.wrong))


def wrong_slices(mismatch: Mismatch) -> str:
    """Names of the slices that contain all wrong elements, if they are at most half of a dimension; otherwise ""."""
    return _slices_of(mismatch.wrong)


def _slices_of(mask: Tensor) -> str:
    for dim in range(mask.dim()):
        others = [d for d in range(mask.dim()) if d != dim]
        is_wrong = mask.any(dim=others) if others else mask
        if 0 < int(is_wrong.sum()) <= len(is_wrong) // 2:
            indices = is_wrong.nonzero().flatten().tolist()
            return f", all of them in {slice_names(dimension_name(mask, dim), indices)}"
    return ""


def _first_example(mismatch: Mismatch, mask: Tensor) -> str:
    index = tuple(int(i) for i in mask.nonzero()[0])
    return got_and_expected(index, float(mismatch.ours[index]), float(mismatch.oracle[index]))


def worst_example(mismatch: Mismatch) -> str:
    """The wrong element with the largest error: its index, ours and the expected value."""
    if not mismatch.wrong.any():
        return ""
    error = (mismatch.ours - mismatch.oracle).abs().nan_to_num(torch.inf)
    masked = torch.where(mismatch.wrong, error, -1.0)
    index = tuple(int(i) for i in torch.unravel_index(masked.argmax(), error.shape))
    return got_and_expected(index, float(mismatch.ours[index]), float(mismatch.oracle[index]))


def output_has_zeros(mismatch: Mismatch) -> bool:
    """Return True if the output has exact zeros, which indicates a kink inside the function."""
    output = mismatch.run.values.get(OUTPUT)
    return output is not None and bool((output == 0).any())


def constant_factor(mismatch: Mismatch, prefix: str) -> str:
    """``prefix`` and the quotient of ours and the oracle, if all wrong elements have the same; otherwise ""."""
    expected, ours = mismatch.oracle[mismatch.wrong], mismatch.ours[mismatch.wrong]
    if not ours.any():
        return f"{prefix}0"
    quotients = (ours / expected)[expected != 0]
    if len(quotients) and bool(((quotients - quotients[0]).abs() < 1e-6 * quotients[0].abs()).all()):
        return f"{prefix}{format_number(float(quotients[0]))} times the expected value"
    return ""
