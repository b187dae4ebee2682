"""Patterns of the Jacobian: rows alike, entries at other places, missing and surplus entries and where they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.index_relations import describe_entries, describe_order, describe_signs
from compare.gradients.diagnosis.jacobian import Jacobian
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.misplaced_entries import describe_factors, describe_misplaced
from compare.gradients.diagnosis.wording import format_number, index_name

MIN_MATCHED = 0.6  # of the rows with entries


def find_jacobian_patterns(
    mismatch: Mismatch, matrices: list[Jacobian], *, of_pairs: bool = True
) -> Iterator[Finding]:
    """Yield every pattern that fits. ``matrices`` are the Jacobians of all outputs.

    Without ``of_pairs``, only the places of wrong entries by one index.
    """
    wrong = [jacobian for jacobian in matrices if jacobian.wrong.any()]
    if not wrong or not all(bool(j.ours.isfinite().all() & j.expected.isfinite().all()) for j in matrices):
        return
    for jacobian in wrong[:1]:
        of = f", by the incoming gradient of {jacobian.output}" if len(matrices) > 1 else ""
        for kind, statement, evidence in (
            _patterns(jacobian) if of_pairs else describe_entries(jacobian, of_pairs=False)
        ):
            evidence = "; ".join(word for word in (evidence, jacobian.cap) if word)
            yield Finding(kind, mismatch.quantity, statement + of, evidence)


def _patterns(jacobian: Jacobian) -> Iterator[tuple[str, str, str]]:
    yield from _transposed(jacobian)
    yield from _rows_alike(jacobian)
    yield from _other_dimension(jacobian)
    yield from _moved(jacobian)
    for statement in describe_misplaced(jacobian):
        yield "permuted", statement, _example(jacobian, jacobian.wrong)
    for statement in describe_factors(jacobian):
        yield "factor by element", statement, _example(jacobian, jacobian.wrong)
    yield from describe_entries(jacobian, of_pairs=True)
    yield from describe_signs(jacobian)


def _example(jacobian: Jacobian, mask: Tensor) -> str:
    """The worst entry among ``mask``: indices, got and expected."""
    error = torch.where(mask, (jacobian.ours - jacobian.expected).abs(), -1.0)
    row, column = divmod(int(error.argmax()), error.shape[1])
    k = [int(i) for i in torch.unravel_index(jacobian.rows[row], jacobian.output_shape)]
    i = [int(n) for n in torch.unravel_index(torch.tensor(column), jacobian.input_shape)]
    got, expected = float(jacobian.ours[row, column]), float(jacobian.expected[row, column])
    return f"derivative of output{k} by input{i}: got {got:.6g}, expected {expected:.6g}"


def _transposed(jacobian: Jacobian) -> Iterator[tuple[str, str, str]]:
    """The Jacobian itself, or its inverse, in place of its transpose."""
    ours, expected = jacobian.ours, jacobian.expected
    if not jacobian.is_complete or len(ours) < 3:
        return
    if _equal(ours.T, torch.linalg.pinv(expected), jacobian.limit):
        statement = "the incoming gradient is multiplied by the inverse of forward's derivative"
        statement += " instead of its transpose (as when the function that undoes forward is applied to it)"
        yield "not transposed", statement, _example(jacobian, jacobian.wrong)
        return
    if ours.shape[0] != ours.shape[1]:
        return
    if _equal(expected, expected.T, jacobian.limit) or _equal(expected, -expected.T, jacobian.limit):
        return
    square = float((expected * expected).sum())
    factor = float((ours * expected.T).sum()) / square
    if abs(factor) > 1e-6 and _equal(ours, factor * expected.T, jacobian.limit):
        times = "" if abs(factor - 1) < 1e-6 else f", times {format_number(factor)}"
        statement = "the incoming gradient is multiplied by the derivative of forward instead of its transpose"
        statement += f" (as when the forward formula is applied to it again){times}"
        yield "not transposed", statement, _example(jacobian, jacobian.wrong)


def _rows_alike(jacobian: Jacobian) -> Iterator[tuple[str, str, str]]:
    """The incoming gradient enters as one number: its sum, its mean, or one element."""
    ours, expected = jacobian.ours, jacobian.expected
    if len(ours) < 3 or not ours.any():
        return
    if _equal(ours, ours[:1].expand_as(ours), jacobian.limit):
        if _equal(expected, expected[:1].expand_as(expected), jacobian.limit):
            return
        statement = "depends on the incoming gradient only by one number, such as its sum or mean"
        if jacobian.is_complete:
            total = expected.sum(0)
            for words, value in (("sum", total), ("mean", total / len(ours))):
                if _equal(ours[0], value, len(ours) * jacobian.limit):
                    statement = (
                        f"equals the gradient with the {words} of the incoming gradient in place of each element"
                    )
        yield "wrong sum", statement, _example(jacobian, jacobian.wrong)
        return
    used = (ours.abs() > jacobian.limit).any(1)
    needed = (expected.abs() > jacobian.limit).any(1)
    if int(used.sum()) == 1 and int(needed.sum()) > 2:
        row = int(used.nonzero()[0, 0])
        k = [int(i) for i in torch.unravel_index(jacobian.rows[row], jacobian.output_shape)]
        statement = f"uses only the element {k} of the incoming gradient, and no other"
        total = expected.sum(0)
        if jacobian.is_complete and _equal(ours[row], total, len(ours) * jacobian.limit):
            statement += "; it is used in place of each element"
        yield "wrong sum", statement, _example(jacobian, jacobian.wrong)


def _other_dimension(jacobian: Jacobian) -> Iterator[tuple[str, str, str]]:
    """Elements are coupled along another dimension than they should be: a sum over the wrong dimension."""
    shape = jacobian.output_shape
    if shape != jacobian.input_shape or len(shape) < 2:
        return
    k = torch.stack(torch.unravel_index(jacobian.rows, shape))  # (dimensions, rows)
    i = torch.stack(torch.unravel_index(torch.arange(jacobian.expected.shape[1]), shape))
    differs = k[:, :, None] != i[:, None, :]
    dims = range(len(shape))
    ours, expected = (t.abs() > jacobian.limit for t in (jacobian.ours, jacobian.expected))
    got, right = ({d for d in dims if (differs[d] & t).any()} for t in (ours, expected))
    got, right = {d for d in got if shape[d] > 1}, {d for d in right if shape[d] > 1}
    if got == right or not got or not right:
        return
    example = torch.empty(shape, device="meta")
    names = [_dims(example, dims_) for dims_ in (got, right)]
    kind = "wrong sum"
    if got - right and right - got:
        statement = f"sums over {names[0]}, and should over {names[1]}"
    elif right - got:  # a factor that couples elements may be missing, and no sum be wrong
        kind, missing = "missing term", expected & ~ours
        statement = f"elements that differ in {_dims(example, right - got)} contribute nothing, and should"
        yield kind, statement, _example(jacobian, missing)
        return
    else:
        statement = f"sums over {names[0]}, and should over {names[1]} only"
    surplus = ours & ~expected
    mask = surplus if surplus.any() else jacobian.wrong
    yield kind, statement, _example(jacobian, mask)


def _dims(example: Tensor, dims: set[int]) -> str:
    return " and ".join(
        index_name(example, d).removeprefix("the ").removeprefix("index of ") + "s"
        if not index_name(example, d).startswith("the index")
        else f"dimension {d}"
        for d in sorted(dims)
    )


def _moved(jacobian: Jacobian) -> Iterator[tuple[str, str, str]]:
    """The right rows or columns at other places."""
    ours, expected = jacobian.ours, jacobian.expected
    if bool((ours[jacobian.wrong].abs() <= jacobian.limit).all()):
        return  # entries are missing, and none is at another place
    for by_columns in (True, False):
        a, b = (t.T if by_columns else t for t in (ours, expected))
        shape = jacobian.input_shape if by_columns else jacobian.output_shape
        if not by_columns and not jacobian.is_complete:
            continue
        nonzero, needed = (t.abs().amax(1) > jacobian.limit for t in (a, b))
        if int(nonzero.sum()) < 3 or len(a) > 2048:
            continue
        distances = torch.cdist(a[nonzero], b, p=torch.inf)
        best, order = distances.min(1)
        matched = best <= jacobian.limit
        places = nonzero.nonzero().flatten()
        if int(matched.sum()) < max(3, MIN_MATCHED * int(needed.sum())) or not matched.all():
            continue
        unique = (distances <= jacobian.limit).sum(1) == 1
        sources, targets = order[matched & unique], places[matched & unique]
        if len(sources) < 3 or bool((sources == targets).all()):
            continue
        words = describe_order(sources, targets, shape)
        what = "element" if by_columns else "element of the incoming gradient"
        if words is None and len(set(sources.tolist())) < len(sources) / 2:
            continue
        statement = (
            f"has the right numbers at other places: {words}"
            if by_columns
            else (f"uses other elements of the incoming gradient: {words}")
        )
        if words is None:
            pairs = ", ".join(
                f"{_index(t, shape)} has that of {_index(s, shape)}"
                for s, t in list(zip(sources.tolist(), targets.tolist(), strict=True))[:4]
                if s != t
            )
            statement = f"has the right numbers at other places: the {what} {pairs}"
        missing = int((needed & ~nonzero).sum())
        evidence = _example(jacobian, jacobian.wrong)
        yield "permuted", statement, evidence + (f"; {missing} are missing" if missing else "")
        return


def _index(position: int, shape: torch.Size) -> list[int]:
    return [int(i) for i in torch.unravel_index(torch.tensor(position), shape)]


def _equal(a: Tensor, b: Tensor, limit: float) -> bool:
    return bool(((a - b).abs() <= limit).all())
