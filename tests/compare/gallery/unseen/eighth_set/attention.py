"""Attention: weights of which some are dropped, a query over the steps of a sequence."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

KEPT = 0.8
KEEP = torch.tensor(
    [[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1], [1, 1, 1, 0, 1, 0], [1, 0, 1, 1, 1, 1]]
)


def dropped(q, k, v, keep):
    return ((q @ k.mT).softmax(1) * keep / KEPT) @ v


def dropped_backward(g, q, k, v, keep, *, mask_of_v=True, saved_kept=False):
    p = (q @ k.mT).softmax(1)
    kept = p * keep / KEPT
    along = kept * (g @ v.mT)
    grad = along - (kept if saved_kept else p) * along.sum(1, keepdim=True)
    return grad @ k, grad.mT @ q, (kept if mask_of_v else p).mT @ g, None


def over_steps(query, steps):
    p = torch.einsum("nd,ntd->nt", query, steps).softmax(1)
    return torch.einsum("nt,ntd->nd", p, steps)


def over_steps_backward(g, query, steps, *, as_keys=True, dim=1):
    p = torch.einsum("nd,ntd->nt", query, steps).softmax(1)
    gp = torch.einsum("nd,ntd->nt", g, steps)
    gs = p * (gp - (gp * p).sum(dim, keepdim=True))
    grad_steps = p[..., None] * g[:, None]
    grad_steps = grad_steps + gs[..., None] * query[:, None] if as_keys else grad_steps
    return torch.einsum("nt,ntd->nd", gs, steps), grad_steps


OPERATIONS = [
    Formulas(
        "attention with dropped weights",
        dropped,
        lambda: {"q": torch.randn(5, 3), "k": torch.randn(6, 3), "v": torch.randn(6, 4), "keep": KEEP},
        dropped_backward,
        (
            Mistake(
                "attention with dropped weights, values",
                lambda g, *inputs: dropped_backward(g, *inputs, mask_of_v=False),
                named="the gradient of v uses the probabilities before the dropout: not masked, not divided by 0.8",
                kinds=("another operand", "step left out", "only for some values"),
                named_words=(r"\bkeep\b", r"\bmul\b|\bdiv\b", r"left out", r"mask"),
                located=(r"gradient of v",),
            ),
            Mistake(
                "attention with dropped weights, saved probabilities",
                lambda g, *inputs: dropped_backward(g, *inputs, saved_kept=True),
                named="the derivative of the softmax uses the probabilities after the dropout, in one term",
                kinds=("another operand", "step left out", "missing term", "factor of one term"),
                named_words=(r"\bkeep\b", r"softmax", r"mask", r"missing"),
                located=(r"gradient of q|\bq and k\b", r"\bk\b"),
            ),
        ),
    ),
    Formulas(
        "query over steps",
        over_steps,
        lambda: {"query": torch.randn(3, 4), "steps": torch.randn(3, 5, 4)},
        over_steps_backward,
        (
            Mistake(
                "query over steps, as keys",
                lambda g, *inputs: over_steps_backward(g, *inputs, as_keys=False),
                named="the steps are keys and values, and backward has their gradient as values only",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"softmax", r"\bkey|one use"),
                located=(r"gradient of steps",),
            ),
            Mistake(
                "query over steps, sum over the batch",
                lambda g, *inputs: over_steps_backward(g, *inputs, dim=0),
                named="the sum in the derivative of the softmax runs over the batch instead of the steps",
                kinds=("wrong sum", "summed over the batch", "another operand"),
                named_words=(r"batch|between examples|other (rows|examples)|across", r"dim(ension)? ?[01]\b"),
                located=(r"gradient of query|\bquery and steps\b", r"\bsteps\b"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
