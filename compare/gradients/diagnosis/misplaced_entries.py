"""Entries of the Jacobian that are right numbers at other inputs, and factors taken at another index."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.jacobian import Jacobian
from compare.gradients.diagnosis.wording import MAX_LISTED, format_number, index_name

MIN_ENTRIES = 3


def describe_misplaced(jacobian: Jacobian) -> Iterator[str]:
    """Each row has the right numbers, at other inputs: where they are and where they should be, by index."""
    rows, sources, targets = [], [], []
    for row, (ours, expected) in enumerate(zip(jacobian.ours, jacobian.expected, strict=True)):
        s, t = ((e.abs() > jacobian.limit).nonzero().flatten() for e in (expected, ours))
        if len(s) != len(t):
            return
        s, t = s[expected[s].argsort(stable=True)], t[ours[t].argsort(stable=True)]
        if len(s) and not bool(((expected[s] - ours[t]).abs() <= jacobian.limit).all()):
            return
        rows.append(torch.full_like(s, row))
        sources.append(s)
        targets.append(t)
    k, s, t = torch.cat(rows), torch.cat(sources), torch.cat(targets)
    if len(k) < MIN_ENTRIES or bool((s == t).all()):
        return
    output, shape = jacobian.output_shape, jacobian.input_shape
    k, s, t = (_unravel(x, e) for x, e in ((jacobian.rows[k], output), (s, shape), (t, shape)))
    words = []
    for d in range(len(shape)):
        if bool((s[d] == t[d]).all()):
            continue
        got = _formula(t[d], k, output, s[d], shape, d)
        if got is None:
            return
        should = _formula(s[d], k, output, None, shape, d)
        name = index_name(torch.empty(shape, device="meta"), d).removeprefix("the ")
        should = f"{name} {should}" if should else f"a {name} that depends on the values"
        words.append(f"at the input's {name} {got}, and should be at {should}")
    yield "has the right numbers at other places: the derivative of output[k] is " + "; ".join(words)


def _unravel(positions: Tensor, shape: torch.Size) -> list[Tensor]:
    return list(torch.unravel_index(positions, shape)) if len(shape) else []


def _formula(
    value: Tensor, k: list[Tensor], output: torch.Size, source: Tensor | None, shape: torch.Size, dim: int
) -> str | None:
    """An index as a simple expression of the output's index, or of the index where the number belongs."""
    if len(value.unique()) == 1:
        return str(int(value[0]))
    example = torch.empty(output, device="meta")
    for e, index in enumerate(k):
        name = f"(the output's {index_name(example, e).removeprefix('the ')})"
        offset = value - index
        if bool((offset == offset[0]).all()):
            return name if not offset[0] else f"{name} {'+' if offset[0] > 0 else '-'} {abs(int(offset[0]))}"
        for n in range(2, max(3, output[e])):
            if bool((value == index % n).all()):
                return f"{name} modulo {n}"
            if bool((value == index // n).all()):
                return f"{name} divided by {n} (rounded down)"
            if bool((value == index * n).all()):
                return f"{n} {name}"
        if bool((value == output[e] - 1 - index).all()):
            return f"{output[e] - 1} - {name}"
    if source is not None:
        offset = (value - source).remainder(shape[dim])
        if bool((offset == offset[0]).all()):
            return f"(j + {int(offset[0])}) modulo {shape[dim]}, where j is the right one"
        if bool((value + source == shape[dim] - 1).all()):
            return f"{shape[dim] - 1} - j, where j is the right one"
    return None


def describe_factors(jacobian: Jacobian) -> Iterator[str]:
    """Right entries times a factor of the output's index, or one that belongs to the output and is the input's."""
    ours, expected = jacobian.ours, jacobian.expected
    nonzero = expected.abs() > jacobian.limit
    if bool(((ours.abs() > jacobian.limit) != nonzero).any()) or int(nonzero.sum()) < MIN_ENTRIES:
        return
    rows, columns = nonzero.nonzero(as_tuple=True)
    quotients = (ours / expected)[nonzero]
    k, i = _unravel(jacobian.rows[rows], jacobian.output_shape), _unravel(columns, jacobian.input_shape)
    outputs = torch.empty(jacobian.output_shape, device="meta")
    for a, size in enumerate(jacobian.output_shape):
        factors = _factors(quotients, k[a], size)
        if factors is not None and len(rows) > size:
            listed = ", ".join(format_number(float(f)) for f in factors[:MAX_LISTED])
            more = ", …" if size > MAX_LISTED else ""
            name = index_name(outputs, a).removeprefix("the ")
            yield f"uses the incoming gradient times a factor for each {name} of the output: {listed}{more}"
            return
    if bool((quotients <= 0).any()):
        return
    for a, size in enumerate(jacobian.output_shape):
        for b, other in enumerate(jacobian.input_shape):
            if size != other or size < 3 or len(rows) < 3 * size:
                continue
            basis = torch.zeros(len(rows), size, dtype=torch.float64)
            # A factor f gives f[input] / f[output]: one unknown for each index.
            basis[torch.arange(len(rows)), i[b]] += 1
            basis[torch.arange(len(rows)), k[a]] -= 1
            target = quotients.log()
            solution = torch.linalg.lstsq(basis, target.unsqueeze(1), driver="gelsd").solution
            if not bool(((basis @ solution).squeeze(1) - target).abs().max() <= 1e-6):
                continue
            factors = (solution.flatten() - solution[0]).exp()
            listed = ", ".join(format_number(float(f)) for f in factors[:MAX_LISTED])
            names = [
                f"the {owner}'s {index_name(torch.empty(s, device='meta'), d).removeprefix('the ')}"
                for owner, s, d in (
                    ("input", jacobian.input_shape, b), ("output", jacobian.output_shape, a)
                )
            ]  # fmt: skip
            yield (
                f"a factor that belongs to {names[1]} is taken at {names[0]} (it is applied on the wrong side of the "
                f"sum): up to a constant {listed}"
            )
            return


def _factors(quotients: Tensor, index: Tensor, size: int) -> list[Tensor] | None:
    """One factor for each index, not all alike; None if there is no such."""
    factors = []
    for n in range(size):
        own = quotients[index == n]
        if not len(own) or bool(((own - own[0]).abs() > 1e-6 * own[0].abs()).any()):
            return None
        factors.append(own[0])
    return None if len({round(float(f), 6) for f in factors}) == 1 else factors
