"""Losses: overlap of boxes, the partial likelihood of survival times, a cross-correlation that should be one."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

REDUNDANCY = 0.1


def boxes(count):
    """Boxes (count, 4) of which some meet: x and y of the lowest corner, x and y of the highest."""
    low = 1.3 * torch.rand(count, 2)
    return torch.cat([low, low + 0.3 + 0.5 * torch.rand(count, 2)], 1)


def sides(a, b):
    """Signed sides of the intersection, (count, 2)."""
    return torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])


def overlap(a, b):
    common = sides(a, b).clamp(min=0).prod(1)
    return common / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - common)


def overlap_backward(g, a, b, *, quotient=True, clamped=True):
    side = sides(a, b)
    clamp = side.clamp(min=0)
    common, size_a, size_b = clamp.prod(1), a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    union = size_a.prod(1) + size_b.prod(1) - common
    through_union = g * common / union**2 if quotient else torch.zeros_like(g)
    grad_side = (g / union + through_union)[:, None] * clamp.flip(1)
    grad_side = grad_side * (side > 0) if clamped else grad_side
    grads = []
    for box, other, size in ((a, b, size_a), (b, a, size_b)):
        grad_size = -through_union[:, None] * size.flip(1)
        grad_low = -grad_side * (box[:, :2] > other[:, :2]) - grad_size
        grad_high = grad_side * (box[:, 2:] < other[:, 2:]) + grad_size
        grads.append(torch.cat([grad_low, grad_high], 1))
    return tuple(grads)


def at_risk(scores):
    """Log of the sum of exponentials from each patient to the last."""
    return scores.flip(1).logcumsumexp(1).flip(1)


def survival(scores, event):
    return (event * (at_risk(scores) - scores)).sum(1) / event.sum(1)


def survival_backward(g, scores, event, *, own=True, total=None):
    total = event.sum(1, keepdim=True) if total is None else total
    share = g[:, None] * event / total
    shares = share * (-at_risk(scores)).exp()
    summed = shares.cumsum(1) if own else shares.cumsum(1) - shares
    return scores.exp() * summed - share, None


def correlations(x, y):
    """Cross-correlation minus the identity, and the weight of each element, (D, D)."""
    one = torch.eye(x.shape[1], dtype=x.dtype)
    return x.mT @ y / len(x) - one, one + REDUNDANCY * (1 - one)


def twins(x, y):
    difference, weight = correlations(x, y)
    return (weight * difference**2).sum()


def twins_backward(g, x, y, *, weighted=True, transposed=False):
    difference, weight = correlations(x, y)
    gc = 2 * g * difference / len(x)
    gc = gc * weight if weighted else gc
    return y @ gc.mT, x @ (gc.mT if transposed else gc)


OPERATIONS = [
    Formulas(
        "overlap of boxes",
        overlap,
        lambda: {"a": boxes(7), "b": boxes(7)},
        overlap_backward,
        (
            Mistake(
                "overlap of boxes, union as a constant",
                lambda g, a, b: overlap_backward(g, a, b, quotient=False),
                named="the union, by which the intersection is divided, is treated as a constant",
                kinds=("missing term",),
                named_words=(r"\bdiv", r"constant"),
                located=(r"gradient of a", r"\bb\b", r"div|second argument"),
            ),
            Mistake(
                "overlap of boxes, boxes that do not meet",
                lambda g, a, b: overlap_backward(g, a, b, clamped=False),
                named="the mask of the clamp is missing: wrong for boxes that meet in one dimension only",
                kinds=("step left out", "only for some values"),
                named_words=(r"clamp",),
                located=(r"gradient of a", r"\bb\b"),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
    Formulas(
        "survival",
        survival,
        lambda: {"scores": torch.randn(2, 6), "event": torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 0]])},
        survival_backward,
        (
            Mistake(
                "survival, own score not at risk",
                lambda g, scores, event: survival_backward(g, scores, event, own=False),
                named="the sum over earlier events excludes the own one: off by one",
                kinds=("missing term", "shifted", "only at some indices"),
                named_words=(r"missing", r"no effect", r"\bown\b", r"shift"),
                located=(r"gradient of scores",),
            ),
            Mistake(
                "survival, mean over all",
                lambda g, scores, event: survival_backward(g, scores, event, total=scores.shape[1]),
                named="divided by 6, the number of patients, instead of the number of events of each row",
                kinds=("another operand", "factor by element", "only at some indices"),
                named_words=(r"(by|instead|times).*\b6\b", r"0\.[56]\d*", r"each (row|example|slice)", r"\bdiv\b"),
                located=(r"gradient of scores",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "cross-correlation of twins",
        twins,
        lambda: {"x": torch.randn(6, 3), "y": torch.randn(6, 3)},
        twins_backward,
        (
            Mistake(
                "cross-correlation of twins, weight left out",
                lambda g, x, y: twins_backward(g, x, y, weighted=False),
                named="the weight 0.1 of the elements beside the diagonal is missing",
                kinds=("step left out", "another operand", "factor of one term"),
                named_words=(r"\b0\.1\b", r"\b10\b", r"mul\b.*left out", r"weight"),
                located=(r"gradient of x", r"\by\b"),
            ),
            Mistake(
                "cross-correlation of twins, transposed",
                lambda g, x, y: twins_backward(g, x, y, transposed=True),
                named="the gradient of the cross-correlation is transposed in the gradient of y",
                kinds=("transposed", "another operand"),
                named_words=(r"transpos", r"exchang"),
                located=(r"gradient of y",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
