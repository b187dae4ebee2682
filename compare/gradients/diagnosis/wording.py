"""Words for dimensions, slices and numbers in the sentences of findings."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

MAX_DENOMINATOR = 16
MAX_LISTED = 8  # indices or numbers in one sentence


def dimension_name(tensor: Tensor, dim: int) -> str:
    """Name of a dimension: "rows" and "columns" are the last two, "channels" is dimension 1 of four."""
    if tensor.dim() > 1 and dim == tensor.dim() - 1:
        return "columns"
    if tensor.dim() > 1 and dim == tensor.dim() - 2:
        return "rows"
    if tensor.dim() == 4 and dim == 1:
        return "channels"
    return f"dimension {dim}"


def slice_names(dimension: str, indices: Sequence[int]) -> str:
    """Names of slices: "row 3", "columns 0, 2", "slices 0, 1 along dimension 2"."""
    numbers = ", ".join(map(str, indices[:MAX_LISTED])) + (", …" if len(indices) > MAX_LISTED else "")
    if dimension.startswith("dimension"):
        return f"{'slice' if len(indices) == 1 else 'slices'} {numbers} along {dimension}"
    return f"{dimension.removesuffix('s') if len(indices) == 1 else dimension} {numbers}"


def join_words(words: Sequence[str]) -> str:
    """Join words as in "rows, columns and channels"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def got_and_expected(index: Sequence[int], ours: float, oracle: float) -> str:
    """The element at ``index``, ours and expected, with as many digits as it takes to tell the two apart."""
    for digits in range(6, 18):
        if f"{ours:.{digits}g}" != f"{oracle:.{digits}g}":
            break
    at = f"at {list(index)}: " if index else ""
    return f"{at}got {ours:.{digits}g}, expected {oracle:.{digits}g}"


def format_number(value: float) -> str:
    """A number as a person writes it: -1, 2, 0.3333, and 1 + 1e-06 instead of 1.000001."""
    if 1e-12 < abs(value - 1) < 1e-5:
        return f"1 {'+' if value > 1 else '-'} {abs(value - 1):.2g}"
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    fraction = Fraction(value).limit_denominator(MAX_DENOMINATOR)
    is_fraction = fraction.denominator > 2 and abs(value - float(fraction)) < 1e-9 * abs(value)
    return (
        f"{value:.6g} = {fraction}" if is_fraction and fraction.denominator not in (4, 5, 8, 10) else f"{value:.6g}"
    )


def index_name(tensor: Tensor, dim: int) -> str:
    """Name of the index along a dimension: "the row", "the column", "the index of dimension 1"."""
    name = dimension_name(tensor, dim)
    return f"the index of {name}" if name.startswith("dimension") else f"the {name.removesuffix('s')}"
