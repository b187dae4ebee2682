"""Patterns that the whole of a wrong gradient shows: the right one scaled, turned, moved, mixed up or replaced."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from compare.case import CaseError
from compare.diagnosis.findings import Asked, Finding, Subject, dimension, number, same
from compare.running import OUTPUT
from compare.variants import incoming_gradient

Incoming = Callable[[int, Tensor], Tensor]


def whole_tensor(subject: Subject, asked: Asked, seed: int) -> Iterator[Finding]:
    """Every pattern that explains all of ``subject``; the most special first."""
    yield from replaced(subject, asked, seed)
    yield from factor(subject)
    yield from turned(subject)
    yield from spread_over_the_batch(subject)
    yield from permuted(subject)
    yield from shifted(subject)
    yield from from_other_operands(subject, asked, seed)


def replaced(subject: Subject, asked: Asked, seed: int) -> Iterator[Finding]:
    """Not this gradient at all: what came from above, what belongs to another input, or as if ones had come."""
    if subject.quantity.startswith(OUTPUT):
        return
    own = asked(as_it_was(subject, seed))
    output = own.get(OUTPUT)
    incoming = as_it_was(subject, seed)(0, output)
    if subject.ours.shape == incoming.shape and subject.equals(incoming):
        yield Finding(
            "passes the incoming gradient through", subject.quantity, "it is the incoming gradient, unchanged"
        )
    ones = asked(lambda n, output: torch.ones_like(output))
    if subject.equals(ones.get(subject.quantity)):
        yield Finding(
            "ignores the incoming gradient",
            subject.quantity,
            "it is what would be right if the incoming gradient were all ones",
        )
    for name, other in own.items():
        if name.startswith("gradient") and name != subject.quantity and subject.equals(other):
            yield Finding("swapped", subject.quantity, f"it is the {name}")


def factor(subject: Subject) -> Iterator[Finding]:
    """c times the right one; one number fits any number, so there only well-known factors count."""
    ours, oracle = subject.ours, subject.oracle
    square = float((oracle * oracle).sum())
    if not square or not ours.isfinite().all():
        return
    c = float((ours * oracle).sum()) / square
    if not subject.equals(c * oracle):
        return
    name = _named(c, subject)
    if oracle.count_nonzero() > 1 or name:
        statement = f"it is {number(c)} times the right one" + (f": {name}" if name else "")
        yield Finding("constant factor", subject.quantity, statement, f"least squares gives {c:.9g}")


def _named(c: float, subject: Subject) -> str:
    """What a factor usually comes from, or nothing."""
    sizes: dict[str, int] = {}
    batch = _batch(subject)
    if batch > 1:
        sizes["B, the number of examples"] = batch
    output = subject.run.values.get(OUTPUT)
    if output is not None and output.numel() > 1:
        sizes["the number of outputs"] = output.numel()
    names = {-1.0: "-1, the sign", 2.0: "2", 0.5: "1/2", -2.0: "-2", -0.5: "-1/2"}
    for name, size in sizes.items():
        names.setdefault(float(size), f"{size} is {name}")
        names.setdefault(1 / size, f"1/{size}, one over {name}")
    if batch > 1:  # the most frequent one, and worth its name even where it is 2
        names[float(batch)] = f"{batch} = B, the number of examples"
        names[1 / batch] = f"1/{batch} = 1/B, one over the number of examples"
    return next((name for value, name in names.items() if abs(c - value) <= 1e-6 * abs(value)), "")


def _batch(subject: Subject) -> int:
    output = subject.run.values.get(OUTPUT)
    if output is not None and output.dim():
        return len(output)
    first = next((value for value in subject.values.values() if value.dim()), None)
    return len(first) if first is not None else 1


def turned(subject: Subject) -> Iterator[Finding]:
    """Transposed or flipped."""
    for words, kind, turn in turns(subject.oracle):
        if subject.equals(turn(subject.oracle)) and not same(turn(subject.oracle), subject.oracle):
            yield Finding(kind, subject.quantity, f"it is the right one {words}")


def turns(tensor: Tensor) -> Iterator[tuple]:
    """(words, kind, function) for each pair of equal dimensions, and for each flip of rows, columns and both."""
    dims = tensor.dim()
    for a, b in itertools.combinations(range(dims), 2):
        if tensor.shape[a] == tensor.shape[b] > 1:
            words = f"transposed, {dimension(tensor, a)} and {dimension(tensor, b)} exchanged"
            yield words, "transposed", lambda t, a=a, b=b: t.transpose(a, b)
    if dims > 1:
        for flipped in ((dims - 2, dims - 1), (dims - 2,), (dims - 1,)):
            if all(tensor.shape[d] > 1 for d in flipped):
                words = "flipped in " + " and ".join(dimension(tensor, d) for d in flipped)
                yield words, "flipped", lambda t, flipped=flipped: t.flip(flipped)
    elif dims == 1 and len(tensor) > 1:
        yield "flipped, last to first", "flipped", lambda t: t.flip(0)


def spread_over_the_batch(subject: Subject) -> Iterator[Finding]:
    """The same in every example: the sum, the mean, or one of them."""
    ours, oracle = subject.ours, subject.oracle
    if oracle.dim() < 1 or len(oracle) < 2:
        return
    values = {"the sum over all": oracle.sum(0), "the mean over all": oracle.mean(0)}
    values |= {f"that of example {b}": oracle[b] for b in (0, len(oracle) - 1)}
    for words, value in values.items():
        if subject.equals(value.expand_as(ours)) and not same(value.expand_as(oracle), oracle):
            if len(oracle) == _batch(subject):
                yield Finding("summed over the batch", subject.quantity, f"every example has {words}, not its own")
            else:  # the first dimension of a parameter, say
                yield Finding(
                    "unknown",
                    subject.quantity,
                    f"every slice along dimension 0 has {words.replace('example', 'slice')}",
                )


def permuted(subject: Subject) -> Iterator[Finding]:
    """Slices along one dimension in another order."""
    ours, oracle = subject.ours, subject.oracle
    for dim in range(oracle.dim()):
        size = oracle.shape[dim]
        if not 2 <= size <= 256 or (oracle.numel() == size and size < 4):
            continue
        a, b = (t.transpose(0, dim).reshape(size, -1) for t in (ours, oracle))
        order = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        places = order.tolist()
        if places == list(range(size)) or sorted(places) != list(range(size)):
            continue
        if subject.equals(oracle.index_select(dim, order)):
            shown = ", ".join(map(str, places[:12])) + (", …" if size > 12 else "")
            yield Finding("permuted", subject.quantity, f"its {_slices(oracle, dim)} are in the order {shown}")


def _slices(tensor: Tensor, dim: int) -> str:
    name = dimension(tensor, dim)
    return f"slices along {name}" if name.startswith("dimension") else name


def shifted(subject: Subject) -> Iterator[Finding]:
    """The right numbers one or two places along; what fell in at the edge may be anything."""
    ours, oracle = subject.ours, subject.oracle
    dims = oracle.dim()
    steps = [{dim: s} for dim in range(dims) for s in (1, -1, 2, -2)]
    if dims > 1:
        steps += [{dims - 2: s, dims - 1: t} for s in (1, -1) for t in (1, -1)]
    for step in steps:
        moved, kept = oracle, ours
        for dim, s in step.items():
            length = oracle.shape[dim] - abs(s)
            if length < 2:
                break
            moved, kept = moved.narrow(dim, max(0, -s), length), kept.narrow(dim, max(0, s), length)
        else:
            unmoved = oracle
            for dim, s in step.items():
                unmoved = unmoved.narrow(dim, max(0, s), oracle.shape[dim] - abs(s))
            if moved.count_nonzero() > 3 and same(kept, moved, 4 * subject.tolerance) and not same(unmoved, moved):
                words = " and ".join(f"{s:+d} along {dimension(oracle, dim)}" for dim, s in step.items())
                yield Finding("shifted", subject.quantity, f"it is the right one shifted by {words}")


def from_other_operands(subject: Subject, asked: Asked, seed: int) -> Iterator[Finding]:
    """What would be right if another operand, or the incoming gradient, were turned, or an operand were not there."""
    incoming = as_it_was(subject, seed)
    own = subject.quantity.removeprefix("gradient of ")
    for name, value in subject.values.items():
        if name == own or not value.is_floating_point():
            continue
        for words, kind, turn in turns(value):
            if subject.equals(_gradient(subject, asked, incoming, {name: turn(value).contiguous()})):
                yield Finding(kind, subject.quantity, f"it is what would be right if {name} were {words}")
        if subject.equals(_gradient(subject, asked, incoming, {name: torch.ones_like(value)})):
            yield Finding(
                "missing term",
                subject.quantity,
                f"it is what would be right if {name} were all ones: a factor is missing",
            )
    first = subject.run.values.get(OUTPUT)
    if first is None or not first.is_floating_point():
        return
    for words, kind, turn in turns(first):
        turned_incoming = lambda n, output, turn=turn: turn(incoming(n, output)) if n == 0 else incoming(n, output)  # noqa: E731
        if subject.equals(_gradient(subject, asked, turned_incoming, {})):
            yield Finding(kind, subject.quantity, f"it is what would be right if the incoming gradient were {words}")


def _gradient(subject: Subject, asked: Asked, incoming: Incoming, changed: dict[str, Tensor]) -> Tensor | None:
    try:
        return asked(incoming, {**subject.values, **changed}).get(subject.quantity)
    except CaseError:  # a turned operand may be none that native takes; then it explains nothing
        return None


def as_it_was(subject: Subject, seed: int) -> Incoming:
    """The incoming gradients of the subject's own run."""
    return lambda n, output: incoming_gradient(output, subject.variant, seed + n)
