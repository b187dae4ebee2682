"""Patterns of the whole tensor: the expected gradient scaled, transposed, flipped, moved, permuted or replaced."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compare.case import CaseError
from compare.gradients.diagnosis.factors import name_factor
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.locations import worst_example, wrong_slices
from compare.gradients.diagnosis.mismatch import Incoming, Mismatch, RerunNative, equal_up_to_rounding
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.transformations import moves
from compare.gradients.diagnosis.wording import dimension_name, format_number
from compare.gradients.run_variant import OUTPUT

MAX_LISTED = 12  # slices of a permutation in one sentence
MIN_EXCHANGED = 3  # elements that another gradient has in their places


def find_whole_tensor_patterns(
    mismatch: Mismatch, rerun_native: RerunNative, seed: int, probe: Probe | None = None
) -> Iterator[Finding]:
    """Every pattern that explains all of the mismatch; the most special first."""
    yield from find_replaced(mismatch, rerun_native, seed)
    yield from find_factor(mismatch, probe)
    yield from find_transposed_or_flipped(mismatch)
    yield from find_same_in_every_example(mismatch)
    yield from find_permuted(mismatch)
    yield from find_changed_operand(mismatch, rerun_native, seed)
    if mismatch.is_output:
        yield from find_shifted(mismatch)


def find_replaced(mismatch: Mismatch, rerun_native: RerunNative, seed: int) -> Iterator[Finding]:
    """The incoming gradient, the gradient of another input, or that for an incoming gradient of ones."""
    if mismatch.is_output:
        return
    values = rerun_native(mismatch.incoming(seed))
    incoming = mismatch.incoming(seed)(0, values.get(OUTPUT))
    if mismatch.ours.shape == incoming.shape and mismatch.equals(incoming):
        statement = "equals the incoming gradient, unchanged"
        yield Finding("passes the incoming gradient through", mismatch.quantity, statement)
    for_ones = rerun_native(lambda n, output: torch.ones_like(output))
    if mismatch.equals(for_ones.get(mismatch.quantity)):
        statement = "equals the gradient computed with an incoming gradient of all ones"
        yield Finding("ignores the incoming gradient", mismatch.quantity, statement)
    for name, other in values.items():
        if name.startswith("gradient") and name != mismatch.quantity and mismatch.equals(other):
            yield Finding("swapped", mismatch.quantity, f"equals the {name}")
    wrong = mismatch.wrong
    if int(wrong.sum()) < MIN_EXCHANGED or wrong.all():
        return
    for name, other in values.items():
        if name.startswith("gradient") and name != mismatch.quantity and other is not None:
            part = mismatch.oracle.where(~wrong, other.double().cpu()) if other.shape == wrong.shape else None
            if part is not None and mismatch.equals(part):
                statement = f"equals the {name} in the {int(wrong.sum())} elements that are wrong"
                yield Finding("swapped", mismatch.quantity, statement + wrong_slices(mismatch))


def find_factor(mismatch: Mismatch, probe: Probe | None = None) -> Iterator[Finding]:
    """The expected tensor times a number. For a single nonzero element only well-known factors count."""
    ours, oracle = mismatch.ours, mismatch.oracle
    square = float((oracle * oracle).sum())
    if not square or not ours.isfinite().all():
        return
    factor = float((ours * oracle).sum()) / square
    if not mismatch.equals(factor * oracle):
        return
    cause = name_factor(factor, mismatch, probe)
    if oracle.count_nonzero() > 1 or cause:
        number = format_number(factor)
        statement = f"equals {number} times the expected {mismatch.noun}"
        statement += f" ({cause})" if cause else ""
        digits = f"{factor:.9g}"  # of the factor by least squares
        evidence = worst_example(mismatch) + (f"; the factor is {digits}" if digits != number else "")
        yield Finding("constant factor", mismatch.quantity, statement, evidence)


def find_transposed_or_flipped(mismatch: Mismatch) -> Iterator[Finding]:
    """The expected tensor transposed or flipped."""
    for move in moves(mismatch.oracle.shape):
        moved = move.apply(mismatch.oracle)
        is_move = move.kind in ("transposed", "flipped") and not equal_up_to_rounding(moved, mismatch.oracle)
        if is_move and mismatch.equals(moved):
            yield Finding(move.kind, mismatch.quantity, f"equals the expected {mismatch.noun} {move.description}")


def find_symmetric_part(mismatch: Mismatch) -> Iterator[Finding]:
    """A gradient that should be symmetric, and whose symmetric part is the expected one."""
    ours, oracle = mismatch.ours, mismatch.oracle
    if oracle.dim() < 2 or oracle.shape[-1] != oracle.shape[-2] or oracle.shape[-1] < 3:
        return
    if equal_up_to_rounding(oracle, oracle.mT) and mismatch.equals(2 * oracle - ours.mT):
        statement = "is not symmetric, and should be: (gradient + its transpose) / 2 is right"
        yield Finding("wrong half", mismatch.quantity, statement)


def find_same_in_every_example(mismatch: Mismatch) -> Iterator[Finding]:
    """The same in every example: the sum, the mean, or the gradient of one example."""
    ours, oracle = mismatch.ours, mismatch.oracle
    if oracle.dim() < 1 or len(oracle) < 2:
        return
    is_batch = len(oracle) == mismatch.batch_size
    slices = "examples" if is_batch else "slices"
    values = {f"the sum over all {slices}": oracle.sum(0), f"the mean over all {slices}": oracle.mean(0)}
    values |= {f"the {mismatch.noun} of {slices[:-1]} {n}": oracle[n] for n in (0, len(oracle) - 1)}
    for description, value in values.items():
        if mismatch.equals(value.expand_as(ours)) and not equal_up_to_rounding(value.expand_as(oracle), oracle):
            if is_batch:
                statement = f"every example has {description} instead of its own {mismatch.noun}"
                yield Finding("summed over the batch", mismatch.quantity, statement)
            else:  # dimension 0 is not the batch; that of a parameter, say
                statement = f"every slice along dimension 0 has {description} instead of its own"
                yield Finding("wrong sum", mismatch.quantity, statement)


def find_permuted(mismatch: Mismatch) -> Iterator[Finding]:
    """The expected slices along one dimension in another order."""
    ours, oracle = mismatch.ours, mismatch.oracle
    for dim in range(oracle.dim()):
        size = oracle.shape[dim]
        if not 2 <= size <= 256 or (oracle.numel() == size and size < 4):
            continue
        a, b = (t.transpose(0, dim).reshape(size, -1) for t in (ours, oracle))
        order = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        indices = order.tolist()
        if indices == list(range(size)) or sorted(indices) != list(range(size)):
            continue
        if mismatch.equals(oracle.index_select(dim, order)):
            listed = ", ".join(map(str, indices[:MAX_LISTED])) + (", …" if size > MAX_LISTED else "")
            slices = dimension_name(oracle, dim)
            slices = f"slices along {slices}" if slices.startswith("dimension") else slices
            statement = f"equals the expected {mismatch.noun} with its {slices} in the order {listed}"
            if indices == [(n + indices[0]) % size for n in range(size)]:
                statement += f" (shifted cyclically by {indices[0]})"
            yield Finding("permuted", mismatch.quantity, statement)


def find_shifted(mismatch: Mismatch) -> Iterator[Finding]:
    """The expected elements shifted by one or two; the elements that the shift leaves free may be anything."""
    ours, oracle = mismatch.ours, mismatch.oracle
    dims = oracle.dim()
    shifts = [{dim: s} for dim in range(dims) for s in (1, -1, 2, -2)]
    if dims > 1:
        shifts += [{dims - 2: s, dims - 1: t} for s in (1, -1) for t in (1, -1)]
    for shift in shifts:
        source, target, unshifted = oracle, ours, oracle
        for dim, s in shift.items():
            length = oracle.shape[dim] - abs(s)
            if length < 2:
                break
            source = source.narrow(dim, max(0, -s), length)
            target = target.narrow(dim, max(0, s), length)
            unshifted = unshifted.narrow(dim, max(0, s), length)
        else:
            if (
                source.count_nonzero() > 3
                and equal_up_to_rounding(target, source, 4 * mismatch.tolerance)
                and not equal_up_to_rounding(unshifted, source)
            ):
                amount = " and ".join(f"{s:+d} along {dimension_name(oracle, dim)}" for dim, s in shift.items())
                statement = f"equals the expected {mismatch.noun} shifted by {amount}"
                yield Finding("shifted", mismatch.quantity, statement)


def find_changed_operand(mismatch: Mismatch, rerun_native: RerunNative, seed: int) -> Iterator[Finding]:
    """The gradient for another input that is transposed, flipped or all ones."""
    incoming = mismatch.incoming(seed)
    for name, value in mismatch.inputs.items():
        if name == mismatch.input_name or not value.is_floating_point():
            continue
        for move in moves(value.shape):
            kind, description = move.kind, move.description
            changed = {name: move.apply(value).contiguous()}
            if not torch.equal(changed[name], value) and mismatch.equals(
                _gradient_for(mismatch, rerun_native, incoming, changed)
            ):
                yield Finding(
                    kind, mismatch.quantity, f"equals the {mismatch.noun} computed with {name} {description}"
                )
        if mismatch.equals(_gradient_for(mismatch, rerun_native, incoming, {name: torch.ones_like(value)})):
            statement = f"equals the {mismatch.noun} computed with {name} = 1; the factor {name} is missing"
            yield Finding("missing term", mismatch.quantity, statement)


def _gradient_for(
    mismatch: Mismatch, rerun_native: RerunNative, incoming: Incoming, changed_inputs: dict[str, Tensor]
) -> Tensor | None:
    try:
        return rerun_native(incoming, {**mismatch.inputs, **changed_inputs}).get(mismatch.quantity)
    except CaseError:  # native may reject a transposed input; then it explains nothing
        return None
