"""Activations: probabilities with zeros, the logarithm of a sum of two."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

EQUAL = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0]])


def threshold(z, kept):
    """Value t at which the squares of z - t sum to 1 over the kept elements."""
    count = kept.sum(1, keepdim=True)
    mean = (z * kept).sum(1, keepdim=True) / count
    spread = ((z - mean) ** 2 * kept).sum(1, keepdim=True)
    return mean - ((1 - spread) / count).sqrt()


def kept_elements(z):
    """Mask of the elements above their threshold: the longest such prefix of the sorted row."""
    ranked = z.sort(1, descending=True).values
    kept = torch.zeros_like(z)
    for count in range(1, z.shape[1] + 1):
        prefix = torch.zeros_like(z)
        prefix[:, :count] = 1
        smallest = ranked[:, count - 1 : count]
        is_kept = threshold(ranked, prefix) < smallest  # False where the root is NaN
        kept = torch.where(is_kept, (z >= smallest).to(z.dtype), kept)
    return kept


def roots(x):
    z = x / 2
    return (z - threshold(z, kept_elements(z.detach()))).relu()


def with_zeros(x):
    return roots(x) ** 2


def with_zeros_backward(g, x, *, power=1):
    s = roots(x) ** power
    return s * (g - (s * g).sum(1, keepdim=True) / s.sum(1, keepdim=True))


def log_of_sum_backward(g, a, b):
    return g * (a - b).sigmoid(), g * (b - a).sigmoid()


def of_maximum_and_distance(g, a, b):
    """Differentiate max(a, b) + log(1 + exp(-|a - b|)) step by step."""
    e = (-(a - b).abs()).exp()
    grad_distance = -g * e / (1 + e) * (a - b).sign()
    return g * (a > b) + grad_distance, g * (b > a) - grad_distance


def with_equal(a):
    return {"a": a, "b": torch.where(EQUAL == 1, a, torch.randn(4, 6))}


OPERATIONS = [
    Formulas(
        "probabilities with zeros, of power 2",
        with_zeros,
        lambda: {"x": 1.5 * torch.randn(5, 6)},
        with_zeros_backward,
        (
            Mistake(
                "probabilities with zeros, of power 2, root left out",
                lambda g, x: with_zeros_backward(g, x, power=2),
                named="the softmax formula with the probabilities, where their square roots belong",
                kinds=("another operand", "factor by element", "step left out", "factor of one term"),
                named_words=(r"\bpow|\bsquare|\bsqrt|\broot", r"softmax", r"(result|output).*instead of"),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
    Formulas(
        "logarithm of a sum of two",
        torch.logaddexp,
        lambda: with_equal(torch.randn(4, 6)),
        log_of_sum_backward,
        (
            Mistake(
                "logarithm of a sum of two, equal values",
                of_maximum_and_distance,
                named="0 instead of half of the incoming gradient where a and b are equal",
                kinds=("only at ties", "only for some values", "zero"),
                named_words=(r"\bequal\b(?!s)", r"\bties?\b|\btied\b", r"\ba ?==? ?b\b|\ba - b = 0"),
                located=(r"gradient of a|\ba and b\b", r"\bb\b"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
