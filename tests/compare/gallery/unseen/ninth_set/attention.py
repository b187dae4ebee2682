"""Attention: sigmoids with a mask, retention with a decay."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

DECAY, OFFSET = 0.8, 1.0
MASK = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1], [1, 1, 1, 0, 1, 1]])


def of_sigmoids(q, k, v, mask):
    return ((q @ k.mT - OFFSET).sigmoid() * mask) @ v


def of_sigmoids_backward(g, q, k, v, mask, *, centred=False, mask_of_v=True):
    p = (q @ k.mT - OFFSET).sigmoid()
    gp = g @ v.mT * mask
    grad = p * (gp - (gp * p).sum(1, keepdim=True)) if centred else gp * p * (1 - p)
    return grad @ k, grad.mT @ q, (p * mask if mask_of_v else p).mT @ g, None


def decays(steps, dtype):
    """Matrix with decay^(t - s) for each earlier step s of t, and 0 for later ones."""
    t = torch.arange(steps)
    return torch.tensor(DECAY, dtype=dtype) ** (t[:, None] - t).clamp(min=0) * (t[:, None] >= t)


def retention(q, k, v):
    return (q @ k.mT * decays(q.shape[1], q.dtype)) @ v


def retention_backward(g, q, k, v, *, of_scores=True):
    decay = decays(q.shape[1], q.dtype)
    grad = g @ v.mT * (decay if of_scores else 1)
    return grad @ k, grad.mT @ q, (q @ k.mT * decay).mT @ g


OPERATIONS = [
    Formulas(
        "attention of sigmoids",
        of_sigmoids,
        lambda: {"q": torch.randn(4, 3), "k": torch.randn(6, 3), "v": torch.randn(6, 2), "mask": MASK},
        of_sigmoids_backward,
        (
            Mistake(
                "attention of sigmoids, derivative of the softmax",
                lambda g, *inputs: of_sigmoids_backward(g, *inputs, centred=True),
                named="the derivative of the softmax, p (gp - sum(gp p)), instead of the sigmoid's, gp p (1 - p)",
                kinds=("another operand", "wrong sum", "missing term", "step left out"),
                named_words=(
                    r"\bsigmoid\b",
                    r"softmax",
                    r"\bsum\b",
                    r"another derivative",
                    r"other (columns|elements)",
                ),
                located=(r"gradient of q|\bq and k\b", r"\bk\b"),
            ),
            Mistake(
                "attention of sigmoids, mask of the values",
                lambda g, *inputs: of_sigmoids_backward(g, *inputs, mask_of_v=False),
                named="the gradient of v uses the weights before the mask",
                kinds=("step left out", "another operand", "missing term", "only for some values"),
                named_words=(r"mask", r"\bmul\b.*left out", r"left out"),
                located=(r"gradient of v",),
            ),
        ),
    ),
    Formulas(
        "retention",
        retention,
        lambda: {"q": torch.randn(2, 5, 3), "k": torch.randn(2, 5, 3), "v": torch.randn(2, 5, 4)},
        retention_backward,
        (
            Mistake(
                "retention, later steps in the scores",
                lambda g, *inputs: retention_backward(g, *inputs, of_scores=False),
                named="the gradient of the scores lacks the matrix of decays: later steps count, earlier ones fully",
                kinds=("step left out", "another operand", "missing term"),
                named_words=(r"\bmul\b", r"left out", r"mask", r"decay", r"later steps|above the diagonal"),
                located=(r"gradient of q|\bq and k\b", r"\bk\b"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
