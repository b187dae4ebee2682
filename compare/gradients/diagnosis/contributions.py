"""Contributions to the sum that a gradient is: those of an example, a channel, a row or an output may be missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch, RerunNative, equal_up_to_rounding, solve_least_squares
from compare.gradients.diagnosis.wording import MAX_LISTED, dimension_name, format_number, join_words, slice_names
from compare.gradients.run_variant import OUTPUT, output_name

# Contributions are measured one by one, and each costs a run of native.
MAX_OUTPUTS = 5  # all but one of which may be ignored
MAX_SLICES = 64  # slices of the output
MAX_ELEMENTS = 400  # elements of the output
MAX_TERMS = 9  # contributions to one element, all of whose subsets are tried


def find_missing_contributions(mismatch: Mismatch, rerun_native: RerunNative, seed: int) -> Iterator[Finding]:
    """A gradient without the contributions of some examples, channels, rows, columns or outputs."""
    if mismatch.is_output:
        return
    output = mismatch.run.values.get(OUTPUT)
    if output is None or not output.is_floating_point():
        return
    for dim in range(output.dim()):
        if 2 <= output.shape[dim] <= MAX_SLICES:
            yield from _find_missing_slices(mismatch, rerun_native, seed, output, dim)


def find_missing_output(mismatch: Mismatch, rerun_native: RerunNative, seed: int) -> Iterator[Finding]:
    """A gradient without the contribution of one or more of several outputs."""
    incoming = mismatch.incoming(seed)
    num_outputs = sum(name.startswith(OUTPUT) for name in mismatch.run.values)
    for count in range(1, min(num_outputs, MAX_OUTPUTS)):
        for missing in itertools.combinations(range(num_outputs), count):
            values = rerun_native(lambda n, output, missing=missing: incoming(n, output) * (n not in missing))
            if mismatch.equals(values.get(mismatch.quantity)):
                names = join_words([output_name(n) for n in missing])
                contributions, gradients = f"the contribution of {names} is", f"the incoming gradient of {names} has"
                if count > 1:
                    contributions, gradients = f"the contributions of {names} are", "their incoming gradients have"
                statement = f"{contributions} missing: {gradients} no effect"
                yield Finding("missing term", mismatch.quantity, statement)


def _find_missing_slices(
    mismatch: Mismatch, rerun_native: RerunNative, seed: int, output: Tensor, dim: int
) -> Iterator[Finding]:
    """Ours as a weighted sum of the contributions of the output's slices: 1 is correct, 0 is missing."""
    incoming = mismatch.incoming(seed)
    contributions = []
    for index in range(output.shape[dim]):

        def only_slice(n: int, output: Tensor, index: int = index) -> Tensor:
            gradient = incoming(n, output)
            masked = torch.zeros_like(gradient)
            if n == 0:
                masked.select(dim, index).copy_(gradient.select(dim, index))
            return masked

        contribution = rerun_native(only_slice).get(mismatch.quantity)
        if contribution is None:
            return
        contributions.append(contribution)
    total = sum(contributions)
    if not equal_up_to_rounding(total, mismatch.oracle, 4 * mismatch.tolerance):
        return  # several outputs contribute
    dimension = "examples" if dim == 0 else dimension_name(output, dim)
    for index, contribution in enumerate(contributions):
        if dim == 0 and mismatch.equals(contribution) and len(contributions) > 1:
            statement = f"equals the gradient of example {index} instead of the sum over all examples"
            yield Finding("not summed over the batch", mismatch.quantity, statement)
            return
        if contribution.any() and mismatch.equals(total - contribution):
            last = " (the last)" if index == len(contributions) - 1 else ""
            row = f", its row {index}" if dim == 0 and output.dim() == 2 else ""
            of = f"{slice_names(dimension, [index])} of the output{row}{last}"
            statement = f"the contribution of {of} is missing"
            yield Finding("missing term", mismatch.quantity, statement)
            return
    basis = torch.stack([contribution.flatten() for contribution in contributions], 1)
    if basis.shape[1] * 2 > basis.shape[0]:
        return  # with so many free weights any gradient would fit
    weights = solve_least_squares(basis, mismatch.ours.flatten().unsqueeze(1))
    if weights is None or not mismatch.equals((basis @ weights).reshape(mismatch.ours.shape)):
        return
    weights = weights.flatten()
    nonzero = basis.any(0)
    missing = [k for k in range(len(contributions)) if nonzero[k] and abs(float(weights[k])) < 1e-6]
    correct = [k for k in range(len(contributions)) if nonzero[k] and abs(float(weights[k]) - 1) < 1e-6]
    if missing and len(missing) + len(correct) == int(nonzero.sum()):
        statement = f"the contributions of {slice_names(dimension, missing)} of the output are missing"
        yield Finding("missing term", mismatch.quantity, statement)
    else:
        slices = f"slices along {dimension}" if dimension.startswith("dimension") else dimension
        factors = ", ".join(format_number(float(w)) for w in weights[:MAX_LISTED])
        statement = f"the contributions of the output's {slices} have different factors instead of 1: {factors}"
        wrong = [k for k in range(len(contributions)) if nonzero[k] and k not in correct]
        if len({round(float(weights[k]), 6) for k in wrong}) == 1 and correct:
            of = slice_names(dimension, wrong)
            statement = (
                f"the contributions of {of} of the output count {format_number(float(weights[wrong[0]]))} times"
            )
        yield Finding("constant factor", mismatch.quantity, statement, f"factors: {factors}")


def find_overwritten_contributions(mismatch: Mismatch, rerun_native: RerunNative, seed: int) -> Iterator[Finding]:
    """Wrong elements that are the sum of some of their contributions, as when values are assigned and not added."""
    outputs = [value for name, value in mismatch.run.values.items() if name.startswith(OUTPUT)]
    output = outputs[0]
    if mismatch.is_output or len(outputs) > 1 or not 2 <= output.numel() <= MAX_ELEMENTS:
        return
    incoming = mismatch.incoming(seed)
    contributions = []
    for index in range(output.numel()):

        def only_element(n: int, output: Tensor, index: int = index) -> Tensor:
            gradient = incoming(n, output)
            masked = torch.zeros(gradient.numel(), dtype=gradient.dtype, device=gradient.device)
            if n == 0:
                masked[index] = gradient.flatten()[index]
            return masked.reshape(gradient.shape)

        gradient = rerun_native(only_element).get(mismatch.quantity)
        if gradient is None:
            return
        contributions.append(gradient[mismatch.wrong.to(gradient.device)].cpu())
    num_missing = 0
    for got, terms in zip(mismatch.ours[mismatch.wrong], torch.stack(contributions, 1), strict=True):
        terms = terms[terms != 0]
        if not 2 <= len(terms) <= MAX_TERMS:
            return
        subsets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(terms))), dtype=torch.float64)
        errors = (subsets @ terms - got).abs()
        best = int(errors.argmin())
        if float(errors[best]) > max(4 * mismatch.tolerance, 1e-9 * float(terms.abs().max())):
            return
        num_missing += int(len(terms) - subsets[best].sum())
    statement = "contributions of some output elements are missing from the sum"
    evidence = (
        f"{num_missing} contributions are missing in {int(mismatch.wrong.sum())} of {mismatch.wrong.numel()} "
        "elements, as when values are assigned instead of added"
    )
    yield Finding("missing term", mismatch.quantity, statement, evidence)
