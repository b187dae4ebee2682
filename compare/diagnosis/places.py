"""Where a gradient is wrong: at zeros, at ties, at the borders, or in a few elements."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compare.diagnosis.findings import Finding, Subject, dimension, number, two
from compare.running import OUTPUT

NEAR = 3  # how far apart two equal values may lie and still be in one window


def at_conventions(subject: Subject) -> Iterator[Finding]:
    """Wrong only where the input is exactly 0, or has an equal neighbour."""
    x, wrong = subject.input, subject.wrong
    if x is None or x.shape != wrong.shape or not wrong.any():
        return
    x = x.cpu()
    zero = x == 0
    n = int(wrong.sum())
    if not (wrong & ~zero).any() and not zero.all():
        factors = _factors(subject)
        evidence = f"{n} wrong elements, all among the {int(zero.sum())} exact zeros of {x.numel()}{factors}"
        yield Finding("only at zeros", subject.quantity, "it is wrong only where its input is exactly 0", evidence)
        return
    tied = _tied(x)
    if not (wrong & ~tied).any():
        evidence = f"{n} wrong elements, all among the {int(tied.sum())} of {x.numel()} with an equal neighbour"
        evidence += _factors(subject)
        yield Finding("only at ties", subject.quantity, "it is wrong only where neighbours are equal", evidence)


def _tied(x: Tensor) -> Tensor:
    """Which elements have an equal one near them in the last two dimensions."""
    tied = torch.zeros_like(x, dtype=torch.bool)
    flat = x if x.dim() > 1 else x.unsqueeze(0)
    found = tied if x.dim() > 1 else tied.unsqueeze(0)
    for down in range(min(NEAR + 1, flat.shape[-2])):
        for right in range(-NEAR, NEAR + 1):
            if (down, right) <= (0, 0) or abs(right) >= flat.shape[-1]:
                continue
            columns = flat.shape[-1] - abs(right)
            here, there = max(0, -right), max(0, right)
            rows = flat.shape[-2] - down
            a = flat.narrow(-2, 0, rows).narrow(-1, here, columns)
            b = flat.narrow(-2, down, rows).narrow(-1, there, columns)
            equal = a == b
            found.narrow(-2, 0, rows).narrow(-1, here, columns).logical_or_(equal)
            found.narrow(-2, down, rows).narrow(-1, there, columns).logical_or_(equal)
    return tied


def _factors(subject: Subject) -> str:
    """The factor between ours and the right one, where it is the same at all wrong places."""
    right, ours = subject.oracle[subject.wrong], subject.ours[subject.wrong]
    if not ours.any():
        return "; it is 0 there"
    quotients = (ours / right)[right != 0]
    if len(quotients) and bool(((quotients - quotients[0]).abs() < 1e-6 * quotients[0].abs()).all()):
        return f"; it is {number(float(quotients[0]))} times the right one there"
    return ""


def at_borders(subject: Subject) -> Iterator[Finding]:
    """Wrong in the first or last rows or columns only."""
    wrong = subject.wrong
    if wrong.dim() < 3 or not wrong.any():
        return
    rows = wrong.flatten(0, -3).any(0).any(1)
    columns = wrong.flatten(0, -3).any(0).any(0)
    for width in (1, 2):
        if min(len(rows), len(columns)) <= 2 * width:
            return
        ends = {
            f"first {width} rows": rows[:width].any(),
            f"last {width} rows": rows[-width:].any(),
            f"first {width} columns": columns[:width].any(),
            f"last {width} columns": columns[-width:].any(),
        }
        if wrong[..., width:-width, width:-width].any():
            continue
        # What lies in a corner is in a row and in a column; those that alone cover all of it are named.
        named = _fewest(wrong, width, [name for name, hit in ends.items() if hit])
        where = ", ".join(name.replace("1 rows", "row").replace("1 columns", "column") for name in named)
        evidence = f"{int(wrong.sum())} wrong elements of {wrong.numel()}, none further inside{_factors(subject)}"
        yield Finding("only at borders", subject.quantity, f"it is wrong only in the {where}", evidence)
        return


def _fewest(wrong: Tensor, width: int, names: list[str]) -> list[str]:
    """The fewest of the named ends that hold every wrong element, tried one by one, then all."""
    for name in names:
        rest = wrong.clone()
        dim = -2 if "rows" in name else -1
        start = 0 if name.startswith("first") else wrong.shape[dim] - width
        rest.narrow(dim, start, width).fill_(False)
        if not rest.any():
            return [name]
    return names


def nowhere_finite(subject: Subject) -> Iterator[Finding]:
    """NaN or infinity where the oracle has a number."""
    odd = ~subject.ours.isfinite() & subject.oracle.isfinite() & subject.wrong
    if odd.any():
        kinds = (
            "NaN"
            if subject.ours[odd].isnan().all()
            else "infinite"
            if subject.ours[odd].isinf().all()
            else "NaN or infinite"
        )
        where = "everywhere" if odd.all() else f"in {int(odd.sum())} of {odd.numel()} elements"
        yield Finding("not finite", subject.quantity, f"it is {kinds} {where}", _example(subject, odd))


def zero(subject: Subject) -> Iterator[Finding]:
    """Zero wherever it is wrong."""
    wrong = subject.wrong
    if wrong.any() and not subject.ours[wrong].any():
        if not subject.ours.any():
            yield Finding("zero", subject.quantity, "it is zero everywhere", _example(subject, wrong))
        else:
            statement = f"it is zero in {int(wrong.sum())} of {wrong.numel()} elements where it should not be"
            yield Finding("zero", subject.quantity, statement + slices(subject), _example(subject, wrong))


def few(subject: Subject, most: int | None = None) -> Iterator[Finding]:
    """A few elements, without a pattern: ``most``, or one in sixteen."""
    n, total = int(subject.wrong.sum()), subject.wrong.numel()
    if 0 < n <= min(most or total, max(1, min(3, total // 4), total // 16)):
        statement = (
            f"{n} of {total} elements {'is' if n == 1 else 'are'} wrong{_factors(subject).replace('; it is', ',')}"
        )
        yield Finding("few elements", subject.quantity, statement, _example(subject, subject.wrong))


def slices(subject: Subject) -> str:
    """Names the slices that hold all that is wrong, where they are fewer than half."""
    for dim in range(subject.wrong.dim()):
        rest = [d for d in range(subject.wrong.dim()) if d != dim]
        hit = subject.wrong.any(dim=rest) if rest else subject.wrong
        n = int(hit.sum())
        if 0 < n <= len(hit) // 2:
            shown = ", ".join(str(int(i)) for i in hit.nonzero().flatten()[:6])
            return f", all at {shown}{', …' if n > 6 else ''} of {dimension(subject.wrong, dim)}"
    return ""


def _example(subject: Subject, among: Tensor) -> str:
    index = tuple(int(i) for i in among.nonzero()[0])
    return f"at {list(index)} {two(float(subject.ours[index]), float(subject.oracle[index]))}"


def example(subject: Subject) -> str:
    """The worst element, with both values."""
    if not subject.wrong.any():
        return ""
    error = (subject.ours - subject.oracle).abs().nan_to_num(torch.inf)
    index = tuple(int(i) for i in torch.unravel_index(torch.where(subject.wrong, error, -1.0).argmax(), error.shape))
    return f"at {list(index)} {two(float(subject.ours[index]), float(subject.oracle[index]))}"


def all_from_zero_outputs(subject: Subject) -> bool:
    """Whether the output has exact zeros: kinks that lie inside, where neither input is 0 nor neighbours tie."""
    output = subject.run.values.get(OUTPUT)
    return output is not None and bool((output == 0).any())
