"""Which part of the sum a wrong gradient lacks: what an example, a channel, a row or an output contributes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from compare.diagnosis.findings import Asked, Finding, Subject, dimension, number, same
from compare.diagnosis.hypotheses import as_it_was
from compare.running import OUTPUT, output_name

MOST = 64  # slices of the output that are asked for one by one: each costs a native run
MOST_ELEMENTS = 400  # elements of the output, likewise
MOST_SHARES = 9  # contributions to one element, all of whose subsets are tried


def parts(subject: Subject, asked: Asked, seed: int) -> Iterator[Finding]:
    """Patterns of the sum that the gradient is: examples, channels, rows, columns and outputs that are not in it."""
    if subject.quantity.startswith(OUTPUT):
        return
    names = [name for name in subject.run.values if name.startswith(OUTPUT)]
    yield from _outputs(subject, asked, seed, names)
    output = subject.run.values.get(OUTPUT)
    if output is None or not output.is_floating_point():
        return
    for dim in range(output.dim()):
        if 2 <= output.shape[dim] <= MOST:
            yield from _slices(subject, asked, seed, output, dim)


def _outputs(subject: Subject, asked: Asked, seed: int, names: list[str]) -> Iterator[Finding]:
    incoming = as_it_was(subject, seed)
    for silent in range(len(names)) if len(names) > 1 else ():
        without = asked(lambda n, output, silent=silent: incoming(n, output) * (n != silent))
        if subject.equals(without.get(subject.quantity)):
            statement = f"what {output_name(silent)} contributes is missing"
            yield Finding("missing term", subject.quantity, statement)


def _slices(subject: Subject, asked: Asked, seed: int, output: Tensor, dim: int) -> Iterator[Finding]:
    """Ours as a sum of what each slice of the output contributes, each times some number: 1 is right, 0 missing."""
    incoming = as_it_was(subject, seed)
    found = []
    for k in range(output.shape[dim]):

        def one(n: int, result: Tensor, k: int = k) -> Tensor:
            gradient = incoming(n, result)
            if n == 0:
                kept = torch.zeros_like(gradient)
                kept.select(dim, k).copy_(gradient.select(dim, k))
                return kept
            return torch.zeros_like(gradient)

        value = asked(one).get(subject.quantity)
        if value is None:
            return
        found.append(value)
    total = sum(found)
    if not same(total, subject.oracle, 4 * subject.tolerance):
        return  # several outputs contribute
    name = "examples" if dim == 0 else dimension(output, dim)
    for k, part in enumerate(found):
        if dim == 0 and subject.equals(part) and len(found) > 1:
            statement = f"it is the gradient of example {k} alone, not the sum over all"
            yield Finding("not summed over the batch", subject.quantity, statement)
            return
        if part.any() and subject.equals(total - part):
            yield Finding(
                "missing term", subject.quantity, f"what number {k} of the output's {name} contributes is missing"
            )
            return
    basis = torch.stack([part.flatten() for part in found], 1)
    if basis.shape[1] * 2 > basis.shape[0]:
        return  # so many free numbers would explain anything
    weights = torch.linalg.lstsq(basis, subject.ours.flatten().unsqueeze(1), driver="gelsd").solution
    if not subject.equals((basis @ weights).reshape(subject.ours.shape)):
        return
    weights = weights.flatten()
    present = basis.any(0)
    missing = [k for k in range(len(found)) if present[k] and abs(float(weights[k])) < 1e-6]
    whole = [k for k in range(len(found)) if present[k] and abs(float(weights[k]) - 1) < 1e-6]
    shown = ", ".join(str(k) for k in missing[:8])
    if missing and len(missing) + len(whole) == int(present.sum()):
        statement = f"what numbers {shown} of the output's {name} contribute is missing"
        yield Finding("missing term", subject.quantity, statement)
    else:
        values = ", ".join(number(float(w)) for w in weights[:8])
        statement = f"each of the output's {name} contributes with a factor of its own"
        yield Finding("constant factor", subject.quantity, statement, f"the factors are {values}")


def elements(subject: Subject, asked: Asked, seed: int) -> Iterator[Finding]:
    """Where an input is used more than once: each wrong element is the sum of some, not all, of what it is owed."""
    outputs = [value for name, value in subject.run.values.items() if name.startswith(OUTPUT)]
    output = outputs[0]
    if subject.quantity.startswith(OUTPUT) or len(outputs) > 1 or not 2 <= output.numel() <= MOST_ELEMENTS:
        return
    incoming = as_it_was(subject, seed)
    owed = []
    for k in range(output.numel()):

        def one(n: int, result: Tensor, k: int = k) -> Tensor:
            kept = torch.zeros_like(result, dtype=torch.float64)
            if n == 0:
                kept.view(-1)[k] = incoming(n, result).flatten()[k]
            return kept

        value = asked(one).get(subject.quantity)
        if value is None:
            return
        owed.append(value[subject.wrong.to(value.device)].cpu())
    lost = 0
    for got, shares in zip(subject.ours[subject.wrong], torch.stack(owed, 1), strict=True):
        shares = shares[shares != 0]
        if not 2 <= len(shares) <= MOST_SHARES:
            return
        chosen = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(shares))), dtype=torch.float64)
        off = (chosen @ shares - got).abs()
        best = int(off.argmin())
        if float(off[best]) > max(4 * subject.tolerance, 1e-9 * float(shares.abs().max())):
            return
        lost += int(len(shares) - chosen[best].sum())
    n = int(subject.wrong.sum())
    statement = "some of the outputs that an element goes into are not in its sum"
    evidence = f"in {n} of {subject.wrong.numel()} elements, {lost} contributions in all; written over, not added?"
    yield Finding("missing term", subject.quantity, statement, evidence)
