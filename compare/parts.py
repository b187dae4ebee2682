"""Which part of the sum a wrong gradient lacks: what one slice of the output contributes, or one of its terms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compare.findings import Asked, Finding, Subject, dimension, number, same
from compare.hypotheses import as_it_was
from compare.running import OUTPUT, output_name

MOST = 64  # slices of the output that are asked for one by one: each costs a native run


def parts(subject: Subject, asked: Asked, seed: int) -> Iterator[Finding]:
    """Patterns of the sum that the gradient is: examples, channels, rows, columns and outputs that are not in it."""
    if subject.quantity.startswith(OUTPUT):
        return
    yield from _outputs(subject, asked, seed)
    output = subject.run.values.get(OUTPUT)
    if output is None or not output.is_floating_point():
        return
    for dim in range(output.dim()):
        if 2 <= output.shape[dim] <= MOST:
            yield from _slices(subject, asked, seed, output, dim)


def _outputs(subject: Subject, asked: Asked, seed: int) -> Iterator[Finding]:
    incoming = as_it_was(subject, seed)
    names = [name for name in subject.run.values if name.startswith(OUTPUT)]
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


def terms(subject: Subject, seed: int) -> Iterator[Finding]:
    """What lies between ours and the right one, as a simple expression of what backward knows."""
    missing = subject.oracle - subject.ours
    if not missing.isfinite().all() or not missing.any():
        return
    known = _known(subject, seed)
    for name, value in known.items():
        c = float((missing * value).sum() / (value * value).sum())
        if abs(c) > 1e-9 and _negligible(missing - c * value, subject) and missing.numel() > 1:
            yield Finding("missing term", subject.quantity, f"{number(c)} times {name} is missing from it")
            return
    for dim in range(missing.dim()):
        if missing.shape[dim] < 3:
            continue
        if _negligible(missing - missing.mean(dim, keepdim=True), subject):
            statement = f"what is missing is the same all along {dimension(missing, dim)}: a sum or mean over it"
            yield Finding("missing term", subject.quantity, statement)
            return
        for name, value in known.items():
            share = (missing * value).sum(dim, keepdim=True) / (value * value).sum(dim, keepdim=True)
            if _negligible(missing - share * value, subject):
                statement = (
                    f"what is missing is {name} times a number that is the same all along {dimension(missing, dim)}"
                )
                yield Finding("missing term", subject.quantity, statement)
                return
    yield from _together(subject, missing, known)


def _together(subject: Subject, missing: Tensor, known: dict[str, Tensor]) -> Iterator[Finding]:
    """Two or more terms at once, each times a number, for all elements or along one dimension."""
    named = {"1": torch.ones_like(missing), **{k: v for k, v in known.items() if "·" not in k}}
    for dim in range(missing.dim()):
        columns = torch.stack([v.movedim(dim, -1) for v in named.values()], -1)
        if columns.shape[-2] <= columns.shape[-1] + 1:
            continue
        target = missing.movedim(dim, -1).unsqueeze(-1)
        weights = torch.linalg.lstsq(columns, target, driver="gelsd").solution
        if _negligible((columns @ weights - target), subject):
            statement = (
                f"what is missing is a mix of {', '.join(named)}, the same all along {dimension(missing, dim)}"
            )
            yield Finding("missing term", subject.quantity, statement)
            return
    if known and missing.numel() > 3 * len(known):
        columns, target = torch.stack([v.flatten() for v in known.values()], 1), missing.flatten().unsqueeze(1)
        weights = torch.linalg.lstsq(columns, target, driver="gelsd").solution
        if _negligible(columns @ weights - target, subject):
            present = [(float(w), name) for name, w in zip(known, weights.flatten(), strict=True) if abs(w) > 1e-9]
            mix = " + ".join(f"{number(w)} {name}" for w, name in present)
            yield Finding("missing term", subject.quantity, f"what is missing is {mix}")


def _known(subject: Subject, seed: int) -> dict[str, Tensor]:
    """What a backward has at hand in the gradient's shape: inputs, output, what comes from above, and products."""
    shape = subject.oracle.shape
    simple: dict[str, Tensor] = {}
    output = subject.run.values.get(OUTPUT)
    if output is not None and output.is_floating_point() and output.shape == shape:
        simple["the incoming gradient"] = as_it_was(subject, seed)(0, output).cpu()
        simple["the output"] = output.double().cpu()
    for name, value in subject.values.items():
        if value.is_floating_point() and value.shape == shape:
            simple[name] = value.cpu()
    products = {
        f"{a}·{b}": simple[a] * simple[b] for a in simple for b in simple if a == "the incoming gradient" and a != b
    }
    return {name: value for name, value in (simple | products).items() if value.any()}


def _negligible(rest: Tensor, subject: Subject) -> bool:
    missing = (subject.oracle - subject.ours).abs().max()
    return bool((rest.abs() <= max(4 * subject.tolerance, 1e-8 * float(missing))).all())
