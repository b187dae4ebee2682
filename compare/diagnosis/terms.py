"""A term that a wrong gradient lacks: what lies between it and the right one, as a simple expression.

The expression is made of what a backward has at hand: inputs, the output, what comes from above, their products, and
the probabilities and labels of a classifier. One or two of them, each times a number, which is one for all elements,
or one for each row, column, channel and so on: the sums and means of a normalisation or a softmax.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from compare.diagnosis.findings import Finding, Subject, dimension, number
from compare.diagnosis.hypotheses import as_it_was
from compare.running import OUTPUT

G = "the incoming gradient"


def terms(subject: Subject, seed: int) -> Iterator[Finding]:
    """The first expression that is what is missing; the simplest first."""
    missing = subject.oracle - subject.ours
    if subject.quantity.startswith(OUTPUT):
        return
    if not missing.isfinite().all() or not missing.any() or missing.numel() < 4:
        return
    known = _known(subject, seed)
    for used in (1, 2):
        for names in itertools.combinations(known, used):
            for words, line in _scopes(missing):
                target = line(missing)
                if target.shape[1] < used + 2 or not _simple(target, names):
                    continue  # so few equations would fit anything
                columns = torch.stack([line(known[name]) for name in names], -1)
                weights = torch.linalg.lstsq(columns, target.unsqueeze(-1), driver="gelsd").solution
                rest = (columns @ weights).squeeze(-1) - target
                if not bool((rest.abs() <= max(4 * subject.tolerance, 1e-8 * float(missing.abs().max()))).all()):
                    continue
                yield Finding("missing term", subject.quantity, _said(names, weights, words))
                return


def _simple(target: Tensor, names: tuple[str, ...]) -> bool:
    """A constant for all elements at once is no term that anybody forgets, unless others go with it."""
    return not (len(target) == 1 and names == ("1",))


def _said(names: tuple[str, ...], weights: Tensor, words: str) -> str:
    if words:
        if names == ("1",):
            return f"what it is off by is the same all along {words}: a sum or mean over it"
        return f"what it is off by is {' and '.join(names)}, times factors that are the same all along {words}"
    mix = " and ".join(f"{number(float(w))} times {name}" for name, w in zip(names, weights.flatten(), strict=True))
    return f"what it lacks is {mix}"


def _scopes(tensor: Tensor) -> Iterator[tuple]:
    """(words, function): the function makes lines of a tensor; in each, one number is sought for each term."""
    yield "", lambda t: t.reshape(1, -1)
    dims = range(tensor.dim())
    groups = [(d,) for d in dims if tensor.dim() > 1]
    if tensor.dim() > 2:
        groups += [tuple(d for d in dims if d != 1), tuple(d for d in dims if d != 0), tuple(dims)[-2:]]
    for group in dict.fromkeys(groups):
        words = " and ".join(dimension(tensor, d) for d in group)
        kept = [d for d in dims if d not in group]
        size = 1
        for d in group:
            size *= tensor.shape[d]
        yield words, lambda t, order=(*kept, *group), size=size: t.permute(order).reshape(-1, size)


def _known(subject: Subject, seed: int) -> dict[str, Tensor]:
    """What a backward has at hand in the gradient's shape, and products with what comes from above."""
    shape = subject.oracle.shape
    found: dict[str, Tensor] = {"1": torch.ones(shape, dtype=torch.float64)}
    output = subject.run.values.get(OUTPUT)
    if output is not None and output.is_floating_point():
        incoming = as_it_was(subject, seed)(0, output).cpu()
        if output.shape == shape:
            found |= {G: incoming, "the output": output.double().cpu()}
        elif output.dim() < len(shape) and all(n in (1, m) for n, m in zip(output.shape, shape, strict=False)):
            # one cost for each example, or one for all
            found[G] = incoming.reshape(*incoming.shape, *[1] * (len(shape) - incoming.dim())).expand(shape)
    for name, value in subject.values.items():
        if value.is_floating_point() and value.shape == shape:
            found[name] = value.cpu()
            if len(shape) > 1:
                found[f"softmax of {name}"] = value.cpu().softmax(1)
        elif not value.is_floating_point() and len(shape) == 2 and value.shape == shape[:1]:
            found[f"one-hot {name}"] = torch.zeros(shape, dtype=torch.float64).scatter_(1, value.cpu()[:, None], 1.0)
    if G in found:
        found |= {f"{G}·{name}": found[G] * value for name, value in found.items() if name not in ("1", G)}
        if "the output" in found:
            found[f"{G}·the output squared"] = found[G] * found["the output"] ** 2
    return {name: value for name, value in found.items() if value.any() and value.isfinite().all()}
