"""Missing terms: the difference between a wrong gradient and the expected one, as a simple expression.

The expression is made of tensors that a backward has: inputs, the output, the incoming gradient, their products, and
the probabilities and labels of a classifier. It has one or two of them, each times a factor. The factor is one number
for all elements, or one for each row, column, channel and so on, like the sums and means in a normalization's or a
softmax's backward.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch, solve_least_squares
from compare.gradients.diagnosis.wording import dimension_name, format_number, join_words
from compare.gradients.run_variant import OUTPUT

INCOMING = "incoming gradient"


def find_missing_term(mismatch: Mismatch, seed: int) -> Iterator[Finding]:
    """The simplest expression that equals the difference."""
    difference = mismatch.oracle - mismatch.ours
    if mismatch.is_output:
        return
    if not difference.isfinite().all() or not difference.any() or difference.numel() < 4:
        return
    candidates = candidate_terms(mismatch, seed)
    for num_terms in (1, 2):
        for names in itertools.combinations(candidates, num_terms):
            for factors_for, to_lines in _factor_shapes(difference):
                target = to_lines(difference)
                if target.shape[1] < num_terms + 2:
                    continue  # with so few equations any terms would fit
                if len(target) == 1 and names == ("1",):
                    continue  # one constant for all elements is a term that no backward has
                columns = torch.stack([to_lines(candidates[name]) for name in names], -1)
                factors = solve_least_squares(columns, target.unsqueeze(-1))
                if factors is None:
                    continue
                residual = (columns @ factors).squeeze(-1) - target
                if names == ("1",) and float(factors.max() - factors.min()) < 1e-9 * float(factors.abs().max()):
                    continue  # the same constant for all again
                limit = max(4 * mismatch.tolerance, 1e-8 * float(difference.abs().max()))
                if not bool((residual.abs() <= limit).all()):
                    continue
                yield Finding("missing term", mismatch.quantity, _statement(names, factors, factors_for))
                return


def _statement(names: tuple[str, ...], factors: Tensor, factors_for: str) -> str:
    if not factors_for:
        terms = [product(float(factor), name) for name, factor in zip(names, factors.flatten(), strict=True)]
        return f"the missing term is {' + '.join(terms).replace('+ -', '- ')}"
    if names == ("1",):
        return f"the missing term is one number for each {factors_for}, like a sum or mean over the other dimensions"
    if len(names) == 1:
        where = ": only the elements of the labels are wrong" if names[0].startswith("one_hot") else ""
        return f"the missing term is c · {names[0]}, with a factor c for each {factors_for}{where}"
    first = "a" if names[0] == "1" else f"a · {names[0]}"
    return f"the missing term is {first} + b · {names[1]}, with factors a and b for each {factors_for}"


def product(factor: float, name: str) -> str:
    """A number times a tensor, in words."""
    if abs(factor - 1) < 1e-6:
        return name
    if abs(factor + 1) < 1e-6:
        return f"-{name}"
    return format_number(factor) if name == "1" else f"{format_number(factor)} · {name}"


def _factor_shapes(tensor: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """(factors_for, to_lines) for each way in which the factor of a term may depend on the dimensions.

    ``factors_for`` names the slices that have a factor each, such as "row"; "" means one factor for all elements.
    ``to_lines`` reshapes a tensor to one line for each factor.
    """
    yield "", lambda t: t.reshape(1, -1)
    dims = range(tensor.dim())
    groups = [(d,) for d in dims if tensor.dim() > 1]
    if tensor.dim() > 2:
        groups += [tuple(d for d in dims if d != 1), tuple(d for d in dims if d != 0), tuple(dims)[-2:]]
    groups.sort(key=lambda group: -math.prod(tensor.shape[d] for d in group))  # those with the fewest factors first
    for group in dict.fromkeys(groups):
        others = [d for d in dims if d not in group]
        names = [dimension_name(tensor, d) for d in others]
        factors_for = join_words(
            [f"index of {n}" if n.startswith("dimension") else n.removesuffix("s") for n in names]
        )
        length = 1
        for d in group:
            length *= tensor.shape[d]
        yield factors_for, lambda t, order=(*others, *group), length=length: t.permute(order).reshape(-1, length)


def candidate_terms(mismatch: Mismatch, seed: int) -> dict[str, Tensor]:
    """Tensors that a backward has, in the gradient's shape, and their products with the incoming gradient."""
    shape = mismatch.oracle.shape
    terms: dict[str, Tensor] = {"1": torch.ones(shape, dtype=torch.float64)}
    output = mismatch.run.values.get(OUTPUT)
    if output is not None and output.is_floating_point():
        incoming = mismatch.incoming(seed)(0, output).cpu()
        if output.shape == shape:
            terms |= {INCOMING: incoming, "output": output.double().cpu()}
        elif output.dim() < len(shape) and all(n in (1, m) for n, m in zip(output.shape, shape, strict=False)):
            # a loss: one number for each example, or one for all
            terms[INCOMING] = incoming.reshape(*incoming.shape, *[1] * (len(shape) - incoming.dim())).expand(shape)
    for name, value in mismatch.inputs.items():
        if value.is_floating_point() and value.shape == shape:
            terms[name] = value.cpu()
            if len(shape) > 1:
                terms[f"softmax({name})"] = value.cpu().softmax(1)
        elif _are_labels(value, shape):
            one_hot = torch.zeros(shape, dtype=torch.float64).scatter_(1, value.cpu().long()[:, None], 1.0)
            terms[f"one_hot({name})"] = one_hot
    if INCOMING in terms:
        terms |= {
            f"{INCOMING} · {name}": terms[INCOMING] * value
            for name, value in terms.items()
            if name not in ("1", INCOMING)
        }
        if "output" in terms:
            terms[f"{INCOMING} · output²"] = terms[INCOMING] * terms["output"] ** 2
    return {name: value for name, value in terms.items() if value.any() and value.isfinite().all()}


def _are_labels(value: Tensor, shape: torch.Size) -> bool:
    """True for one class of each row of a matrix; lengths and positions may be larger than its columns."""
    if value.is_floating_point() or len(shape) != 2 or value.shape != shape[:1] or not len(value):
        return False
    return int(value.min()) >= 0 and int(value.max()) < shape[1]
