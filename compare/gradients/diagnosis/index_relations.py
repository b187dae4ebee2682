"""Relations between the index of an output and that of an input: later steps, other examples, above the diagonal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.jacobian import Jacobian
from compare.gradients.diagnosis.wording import MAX_LISTED, format_number, index_name

MIN_SIGNS = 3
TRIANGLE = (
    ": as where a triangular matrix or mask (tril, triu) is not transposed, or where a running sum goes the other way"
)


def describe_entries(jacobian: Jacobian, *, of_pairs: bool) -> Iterator[tuple[str, str, str]]:
    """(kind, statement, evidence): the simplest relation that holds exactly for the wrong entries.

    Args:
        of_pairs: True for relations of an output's index and an input's; False for those of one index.
    """
    wrong = jacobian.wrong
    informative = (jacobian.ours.abs() > jacobian.limit) | (jacobian.expected.abs() > jacobian.limit)
    if not wrong.any() or not (informative & ~wrong).any():
        return
    ours, expected = jacobian.ours.abs() > jacobian.limit, jacobian.expected.abs() > jacobian.limit
    missing, surplus = wrong & ~ours, wrong & ~expected
    other = wrong & ours & expected
    relations = list(_pair_relations(jacobian) if of_pairs else _index_relations(jacobian))
    # Entries of one sort alone first: those that are missing, those that are surplus, those that are wrong.
    parts = [(mask, *_what(jacobian, mask)) for mask in (missing, surplus, other) if mask.any()]
    phrases = []
    for mask, verb, kind in parts:
        words = _relation_of(relations, mask, informative & ~mask)
        if words is None and not of_pairs:
            words = _set_of_indices(jacobian, mask, informative & ~mask)
        if words is not None:
            phrases.append((kind, f"{verb} where {words}"))
    if len(phrases) == len(parts):
        kind, mirrored = phrases[0][0], ""
        if missing.any() and surplus.any() and not other.any() and _are_mirrored(*(words for _, words in phrases)):
            kind, mirrored = "transposed", TRIANGLE
        statement = "the derivative of output[k] by input[i] is " + ", and ".join(words for _, words in phrases)
        yield kind, statement + mirrored, _worst(jacobian)
        return
    words = _relation_of(relations, wrong, informative & ~wrong)
    if words is not None:
        verb, kind = _what(jacobian, wrong)
        yield kind, f"the derivative of output[k] by input[i] is {verb} where {words}", _worst(jacobian)


def describe_signs(jacobian: Jacobian) -> Iterator[tuple[str, str, str]]:
    """(kind, statement, evidence): entries that are right but for the sign of some, by an index of each side."""
    wrong, limit = jacobian.wrong, jacobian.limit
    informative = jacobian.expected.abs() > limit
    if not bool(((jacobian.ours + jacobian.expected).abs()[wrong] <= limit).all()) or int(wrong.sum()) < MIN_SIGNS:
        return
    out, inp, outputs, inputs, k, i, shape = _grids(jacobian)
    for a in range(len(out)):
        for b in range(len(inp)):
            pairs = (k[a] * inp[b] + i[b]).expand(shape)
            values = pairs[wrong].unique()
            if len(values) > MAX_LISTED or torch.isin(pairs[informative & ~wrong], values).any():
                continue
            listed = [(int(v) // inp[b], int(v) % inp[b]) for v in values]
            words = (
                f"the derivative of output[k] by input[i] has the wrong sign where the output's {_bare(outputs, a)}"
            )
            words += f" and the input's {_bare(inputs, b)} are {', '.join(f'{m} and {n}' for m, n in listed)}"
            if {(n, m) for m, n in listed} == set(listed):
                words += ": as where the factors of a product that does not commute are in the other order"
            yield "factor of one term", words, _worst(jacobian)
            return


def _are_mirrored(first: str, second: str) -> bool:
    """True if entries are missing on one side of the diagonal, and surplus on the other."""
    relations = [words.split(" where ", 1)[1] for words in (first, second)]
    exchanged = relations[0].replace(" is after ", " is before ")
    return (
        exchanged == relations[1] != relations[0]
        or exchanged == relations[0] == relations[1].replace(" is after ", " is before ") != relations[1]
    )


def _relation_of(relations: list[tuple[str, Tensor]], mask: Tensor, others: Tensor) -> str | None:
    """The first relation that holds for all of ``mask`` and for none of ``others``."""
    return next(
        (words for words, r in relations if not bool((mask & ~r).any()) and not bool((others & r).any())), None
    )


def _set_of_indices(jacobian: Jacobian, mask: Tensor, others: Tensor) -> str | None:
    """Up to half of the indices along one dimension: the entries in ``mask`` have them, and no others have."""
    out, inp, outputs, inputs, k, i, shape = _grids(jacobian)
    for owner, sizes, example, grid in (("output", out, outputs, k), ("input", inp, inputs, i)):
        for d, size in enumerate(sizes):
            indices = grid[d].expand(shape)
            values = indices[mask].unique()
            if len(values) <= min(size // 2, MAX_LISTED) and not torch.isin(indices[others], values).any():
                return f"the {owner}'s {_bare(example, d)} is {' or '.join(str(int(v)) for v in values)}"
    return None


def _what(jacobian: Jacobian, wrong: Tensor) -> tuple[str, str]:
    """The wrong entries in words, and the kind of mistake."""
    ours, expected = jacobian.ours[wrong], jacobian.expected[wrong]
    if bool((ours.abs() <= jacobian.limit).all()):
        return "missing (0)", "missing term"
    if bool((expected.abs() <= jacobian.limit).all()):
        return "not 0 (as it should be)", "missing term"
    nonzero = expected.abs() > jacobian.limit
    quotients = ours[nonzero] / expected[nonzero]
    factor = float(quotients.median())
    if bool(nonzero.all()) and bool(((quotients - factor).abs() <= 1e-6 * abs(factor)).all()):
        return f"{format_number(factor)} times the right one", "factor of one term"
    return "wrong", "unknown"


def _worst(jacobian: Jacobian) -> str:
    error = (jacobian.ours - jacobian.expected).abs()
    row, column = divmod(int(error.argmax()), error.shape[1])
    k = [int(i) for i in torch.unravel_index(jacobian.rows[row], jacobian.output_shape)]
    i = [int(n) for n in torch.unravel_index(torch.tensor(column), jacobian.input_shape)]
    got, expected = float(jacobian.ours[row, column]), float(jacobian.expected[row, column])
    return f"k = {k}, i = {i}: got {got:.6g}, expected {expected:.6g}"


def _pair_relations(jacobian: Jacobian) -> Iterator[tuple[str, Tensor]]:
    """(words, mask of the entries) of each relation of two indices, the simplest first."""
    out, inp, outputs, inputs, k, i, shape = _grids(jacobian)
    pairs = [(a, b) for a in range(len(out)) for b in range(len(inp)) if out[a] == inp[b] > 1]
    pairs.sort(key=lambda pair: pair[0] != pair[1])
    for a, b in pairs:
        first, second = f"the output's {_bare(outputs, a)}", f"the input's {_bare(inputs, b)}"
        if a == b == 0:
            yield f"{first} is not {second} (between examples)", (k[a] != i[b]).expand(shape)
        else:
            yield f"{first} is not {second}", (k[a] != i[b]).expand(shape)
        yield f"{first} equals {second}", (k[a] == i[b]).expand(shape)
    for a, b in pairs:
        first, second = f"the output's {_bare(outputs, a)}", f"the input's {_bare(inputs, b)}"
        yield f"{first} is after {second}", (k[a] > i[b]).expand(shape)
        yield f"{first} is before {second}", (k[a] < i[b]).expand(shape)
        yield f"{first} is not before {second}", (k[a] >= i[b]).expand(shape)
        yield f"{first} is not after {second}", (k[a] <= i[b]).expand(shape)
        for d in range(1, out[a]):
            yield f"{first} is more than {d} after {second}", (k[a] > i[b] + d).expand(shape)
            yield f"{first} is more than {d} before {second}", (k[a] < i[b] - d).expand(shape)
            yield f"{first} is {d} after {second}", (k[a] == i[b] + d).expand(shape)
            yield f"{first} is {d} before {second}", (k[a] == i[b] - d).expand(shape)
            yield f"{first} and {second} differ by more than {d}", ((k[a] - i[b]).abs() > d).expand(shape)
            yield f"{first} and {second} differ by {d}", ((k[a] - i[b]).abs() == d).expand(shape)
    for a, b in pairs:
        for c, d in pairs:
            if (a, b) < (c, d) and a != c and b != d:
                same = (k[a] == i[b]) & (k[c] == i[d])
                names = f"{_bare(outputs, a)} and {_bare(outputs, c)}"
                yield f"the {names} of output and input are the same", same.expand(shape)
                yield f"the {names} of output and input are not both the same", (~same).expand(shape)


def _index_relations(jacobian: Jacobian) -> Iterator[tuple[str, Tensor]]:
    """(words, mask of the entries) of each relation of one index."""
    out, inp, outputs, inputs, k, i, shape = _grids(jacobian)
    for owner, sizes, example, grid in (("input", inp, inputs, i), ("output", out, outputs, k)):
        for d, size in enumerate(sizes):
            name = f"the {owner}'s {_bare(example, d)}"
            if size < 2:
                continue
            for value in range(min(size, 64)):
                yield (
                    f"{name} is {value}{' (the last)' if value == size - 1 else ''}",
                    (grid[d] == value).expand(shape),
                )
            yield f"{name} is odd", (grid[d] % 2 == 1).expand(shape)
            yield f"{name} is even", (grid[d] % 2 == 0).expand(shape)
            yield f"{name} is not 0", (grid[d] != 0).expand(shape)
            yield f"{name} is not the last", (grid[d] != size - 1).expand(shape)
            for value in range(1, min(size, 64)):
                yield f"{name} is below {value}", (grid[d] < value).expand(shape)
                yield f"{name} is at least {value}", (grid[d] >= value).expand(shape)


def _grids(jacobian: Jacobian) -> tuple[Any, ...]:
    """Shapes, examples for names, and indices of the entries: those of outputs as columns, of inputs as rows."""
    out, inp = jacobian.output_shape, jacobian.input_shape
    k = [t[:, None] for t in torch.unravel_index(jacobian.rows, out)] if len(out) else []
    i = [t[None, :] for t in torch.unravel_index(torch.arange(inp.numel()), inp)] if len(inp) else []
    shape = jacobian.expected.shape
    outputs, inputs = (torch.empty(s, device="meta") for s in (out, inp))
    return out, inp, outputs, inputs, k, i, shape


def _bare(example: Tensor, dim: int) -> str:
    return index_name(example, dim).removeprefix("the ")


def describe_order(sources: Tensor, targets: Tensor, shape: torch.Size) -> str | None:
    """The index relation of elements that have the number of another: shifted, reversed, exchanged; None without one.

    ``sources[n]`` is the place where the number of ``targets[n]`` belongs.
    """
    if not shape:
        return None
    s, t = (torch.stack(torch.unravel_index(x, shape)) for x in (sources, targets))
    example = torch.empty(shape, device="meta")
    words = []
    for d, size in enumerate(shape):
        name = _bare(example, d)
        if bool((s[d] == t[d]).all()):
            continue
        shift = (t[d] - s[d]).unique()
        if len(shift) == 1:
            words.append(f"{name} j has that of {name} j {'-' if shift.item() > 0 else '+'} {abs(int(shift.item()))}")
        elif len((t[d] - s[d]).remainder(size).unique()) == 1:
            amount = int((s[d] - t[d]).remainder(size)[0])
            words.append(f"{name} j has that of {name} (j + {amount}) mod {size}")
        elif bool((s[d] + t[d] == size - 1).all()):
            words.append(f"{name} j has that of {name} {size - 1} - j (reverse order)")
        elif len((t[d] + s[d]).remainder(size).unique()) == 1:
            amount = int((s[d] + t[d]).remainder(size)[0])
            words.append(f"{name} j has that of {name} ({amount} - j) mod {size}")
        else:
            mapping = {int(a): int(b) for a, b in zip(t[d], s[d], strict=True)}
            if len(s[d].unique()) == 1:
                said = f"every {name} has that of {name} {int(s[d][0])}"
                words.append(f"{said}, as where a shift or place that depends on the {name} is ignored")
            elif multiple := next((n for n in range(2, size) if all(a * n == b for a, b in mapping.items())), 0):
                words.append(f"{name} j has that of another {name}, {multiple} j")
            elif all(mapping[int(a)] == int(b) for a, b in zip(t[d], s[d], strict=True)) and len(mapping) <= 16:
                order = ", ".join(f"{a}: {b}" for a, b in sorted(mapping.items()))
                words.append(f"{name} has that of another {name} ({order})")
            else:
                return _flat_order(sources, targets, shape)
    return "; ".join(words) or None


def _flat_order(sources: Tensor, targets: Tensor, shape: torch.Size) -> str | None:
    """Memory order of a tensor with exchanged dimensions."""
    grid, example = torch.arange(shape.numel()).reshape(shape), torch.empty(shape, device="meta")
    for a in range(len(shape)):
        for b in range(a + 1, len(shape)):
            exchanged = grid.transpose(a, b).reshape(-1)
            names = f"{index_name(example, a)} and {index_name(example, b)}"
            if bool((exchanged[targets] == sources).all()):
                return f"they are in the memory order of the transpose ({names} exchanged)"
            if bool((exchanged.argsort()[targets] == sources).all()):
                return f"they are read in the memory order of the transpose ({names} exchanged)"
    return None
