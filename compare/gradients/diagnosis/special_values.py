"""Values at which a derivative is a convention: exact zeros, the bounds of a clamp, ties."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.locations import constant_factor, worst_example
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.wording import format_number
from compare.gradients.run_variant import OUTPUT

MAX_TIE_DISTANCE = 3  # largest distance of two equal values that can still be in one pooling window
MAX_VALUES = 3  # values that one statement names
MAX_CHANCE = 0.05  # probability that elements which are wrong for another reason fit a pattern


def find_special_values(mismatch: Mismatch) -> Iterator[Finding]:
    """Wrong only where the input is exactly 0, where it or the output has one of a few values, or at ties."""
    if mismatch.wrong.any():
        yield from _find_zeros(mismatch)
        yield from _find_input_values(mismatch)
        yield from _find_output_bounds(mismatch)
        yield from _find_ties(mismatch)


def _find_zeros(mismatch: Mismatch) -> Iterator[Finding]:
    x, wrong = _own_input(mismatch), mismatch.wrong
    if x is None:
        return
    zero = x == 0
    if not (wrong & ~zero).any() and not zero.all():
        evidence = f"all {int(wrong.sum())} wrong elements are among the {int(zero.sum())} exact zeros of "
        evidence += (
            f"{x.numel()} input elements" + constant_factor(mismatch, "; the gradient there is ") + _example(mismatch)
        )
        yield Finding("only at zeros", mismatch.quantity, "is wrong only where the input is exactly 0", evidence)


def _find_input_values(mismatch: Mismatch) -> Iterator[Finding]:
    """Wrong wherever an input has one of a few repeated values, unless the gradient is 0 there, and nowhere else."""
    wrong = mismatch.wrong
    for name, x in mismatch.inputs.items():
        x = x.cpu()
        if x.shape != wrong.shape or x.dtype is torch.bool:  # a mask says where, not what
            continue
        values = x[wrong].unique()[: MAX_VALUES + 1]
        special = torch.isin(x, values)
        counts = [int((x == value).sum()) for value in values]
        right = special & ~wrong & ((mismatch.ours != 0) | (mismatch.oracle != 0))
        if len(values) > MAX_VALUES or min(counts, default=0) < 2 or right.any() or special.all():
            continue
        if len(x.unique()) == 2 and not constant_factor(mismatch, ""):
            continue  # the input is a mask: that says where, not what
        where = f"{name} is {_one_of(values)}"
        evidence = f"all {int(wrong.sum())} wrong elements are among the {int(special.sum())} of {x.numel()} where "
        evidence += where + constant_factor(mismatch, f"; the {mismatch.noun} there is ") + _example(mismatch)
        yield Finding("only at bounds", mismatch.quantity, f"is wrong only where {where}", evidence)


def _find_output_bounds(mismatch: Mismatch) -> Iterator[Finding]:
    """Wrong only where the output is at its smallest or largest value, which several elements have, as in a clamp."""
    output, wrong = mismatch.run.values.get(OUTPUT), mismatch.wrong
    if mismatch.is_output or output is None or output.shape != wrong.shape or output.isnan().any():
        return
    output = output.cpu()
    bounds = [(output.min(), "smallest"), (output.max(), "largest")]
    bounds = [(value, word) for value, word in bounds if (wrong & (output == value)).any()]
    if not bounds:
        return
    values = torch.stack([value for value, _ in bounds])
    special = torch.isin(output, values)
    repeated = all(int((output == value).sum()) > 1 for value in values)
    if (wrong & ~special).any() or not repeated or _chance(wrong, special) > MAX_CHANCE:
        return
    where = f"the output is {_one_of(values)}, its {' and '.join(word for _, word in bounds)} value"
    evidence = f"all {int(wrong.sum())} wrong elements are among the {int(special.sum())} of {output.numel()} where "
    evidence += (
        "the output has such a value" + constant_factor(mismatch, "; the gradient there is ") + _example(mismatch)
    )
    yield Finding("only at bounds", mismatch.quantity, f"is wrong only where {where}", evidence)


def _find_ties(mismatch: Mismatch) -> Iterator[Finding]:
    x, wrong = _own_input(mismatch), mismatch.wrong
    if x is None:
        return
    tied = _has_equal_neighbour(x)
    # Wrong for whole numbers alone is evidence by itself; where nearly all random values are tied, a tie is none.
    max_chance = MAX_CHANCE if mismatch.variant.data == "drawn" else 1.0
    if not (wrong & ~tied).any() and not tied.all() and _chance(wrong, tied) <= max_chance:
        evidence = f"all {int(wrong.sum())} wrong elements are among the {int(tied.sum())} of {x.numel()} input "
        evidence += (
            "elements with an equal neighbour"
            + constant_factor(mismatch, "; the gradient there is ")
            + _example(mismatch)
        )
        statement = "is wrong only where neighbouring input elements are equal"
        yield Finding("only at ties", mismatch.quantity, statement, evidence)


def _example(mismatch: Mismatch) -> str:
    return f"; {worst_example(mismatch)}"


def _own_input(mismatch: Mismatch) -> Tensor | None:
    """The input whose gradient is wrong."""
    x = mismatch.inputs.get(mismatch.input_name)
    return x.cpu() if x is not None and x.shape == mismatch.wrong.shape else None


def _chance(wrong: Tensor, special: Tensor) -> float:
    """Probability that so many wrong elements, drawn at random, would all be special."""
    n, candidates, total = int(wrong.sum()), int(special.sum()), wrong.numel()
    return math.exp(_log_binomial(candidates, n) - _log_binomial(total, n))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _one_of(values: Tensor) -> str:
    return " or ".join(format_number(float(value)) for value in values)


def _has_equal_neighbour(x: Tensor) -> Tensor:
    """Mask of the elements that have an equal element near them in the last two dimensions."""
    tied = torch.zeros_like(x, dtype=torch.bool)
    if not x.dim():
        return tied
    matrices = x if x.dim() > 1 else x.unsqueeze(0)
    tied_matrices = tied if x.dim() > 1 else tied.unsqueeze(0)
    for down in range(min(MAX_TIE_DISTANCE + 1, matrices.shape[-2])):
        for right in range(-MAX_TIE_DISTANCE, MAX_TIE_DISTANCE + 1):
            if (down, right) <= (0, 0) or abs(right) >= matrices.shape[-1]:
                continue
            height, width = matrices.shape[-2] - down, matrices.shape[-1] - abs(right)
            first = (0, max(0, -right))
            second = (down, max(0, right))

            def window(t: Tensor, corner: tuple[int, int], height: int = height, width: int = width) -> Tensor:
                return t.narrow(-2, corner[0], height).narrow(-1, corner[1], width)

            equal = window(matrices, first) == window(matrices, second)
            window(tied_matrices, first).logical_or_(equal)
            window(tied_matrices, second).logical_or_(equal)
    return tied
