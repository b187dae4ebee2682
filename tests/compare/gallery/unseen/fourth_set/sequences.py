"""Sequences: pooling by weights, exclusive sums, last steps, positions, averages with learned weights."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def pool(x, s):
    """Sum of the steps of x (N, T, D), weighted by the softmax of s (N, T)."""
    return (s.softmax(1)[:, :, None] * x).sum(1)


def pool_backward(g, x, s, *, centred=True, weights="softmax"):
    p = s.softmax(1)
    inner = (g[:, None] * x).sum(2)
    grad_s = p * (inner - centred * (p * inner).sum(1, keepdim=True))
    return g[:, None] * (p if weights == "softmax" else s)[:, :, None], grad_s


def exclusive_sum(x):
    return x.cumsum(1) - x


def reversed_sum(g):
    return g.flip(1).cumsum(1).flip(1)


def last_step(x, lengths):
    return x[torch.arange(len(x)), lengths - 1]


def last_step_backward(g, x, lengths, *, step=None):
    grad = torch.zeros_like(x)
    grad[torch.arange(len(x)), lengths - 1 if step is None else step(lengths, x.shape[1])] = g
    return grad, None


def weighted_mean(x, w):
    """Mean of the steps of x (N, T, D) with weights w (N, T)."""
    return (w[:, :, None] * x).sum(1) / w.sum(1, keepdim=True)


def weighted_mean_backward(g, x, w, *, quotient=True, divided=True):
    total = w.sum(1, keepdim=True)
    y = weighted_mean(x, w)
    grad_w = (g[:, None] * (x - quotient * y[:, None])).sum(2) / total
    return g[:, None] * (w / total if divided else w)[:, :, None], grad_w


OPERATIONS = [
    Formulas(
        "attention pooling",
        pool,
        lambda: {"x": torch.randn(3, 4, 2), "s": torch.randn(3, 4)},
        pool_backward,
        (
            Mistake(
                "attention pooling, not centred",
                lambda g, x, s: pool_backward(g, x, s, centred=False),
                named="the sum in softmax's derivative is missing",
                kinds=("missing term",),
                named_words=(r"softmax.*missing", r"missing.*softmax"),
                located=(r"gradient of s", r"softmax|sum"),
            ),
            Mistake(
                "attention pooling, scores for weights",
                lambda g, x, s: pool_backward(g, x, s, weights="scores"),
                named="the gradient of x uses s instead of softmax(s)",
                kinds=("another operand", "step left out"),
                named_words=(r"\bs\b.*instead of", r"without softmax", r"softmax.*left out"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "exclusive sum",
        exclusive_sum,
        lambda: torch.randn(3, 5),
        lambda g, x: reversed_sum(g) - g,
        (
            Mistake(
                "exclusive sum, inclusive backward",
                lambda g, x: reversed_sum(g),
                named="the element itself counts too",
                kinds=("missing term", "step left out"),
                named_words=(
                    r"equals the input's column",
                    r"incoming gradient",
                    r"second argument.*sub.*missing",
                    r"diagonal|itself|same",
                ),
                located=(r"gradient of (x|input 0)", r"column|sub|incoming gradient"),
            ),
        ),
    ),
    Formulas(
        "last step",
        last_step,
        lambda: {"x": torch.randn(4, 5, 2), "lengths": torch.randint(2, 6, (4,))},
        last_step_backward,
        (
            Mistake(
                "last step, off by one",
                lambda g, x, n: last_step_backward(g, x, n, step=lambda n, steps: n - 2),
                named="the gradient is at the step before the last",
                kinds=("shifted", "permuted", "another operand"),
                named_words=(r"shift|off by one|too small|2 instead of 1|one too|rotat",),
                located=(r"gradient of x", r"row|lengths|step|index|sub"),
            ),
            Mistake(
                "last step, of the padded sequence",
                lambda g, x, n: last_step_backward(g, x, n, step=lambda n, steps: steps - 1),
                named="the gradient is at the last step of all, not at that of the length",
                kinds=("permuted", "another operand"),
                named_words=(r"other places|places", r"row 4|4, and should", r"the last", r"depends on the values"),
                located=(r"gradient of x", r"row|lengths|step"),
            ),
        ),
    ),
    Formulas(
        "weighted mean",
        weighted_mean,
        lambda: {"x": torch.randn(3, 4, 2), "w": 0.5 + torch.rand(3, 4)},
        weighted_mean_backward,
        (
            Mistake(
                "weighted mean, sum of weights constant",
                lambda g, x, w: weighted_mean_backward(g, x, w, quotient=False),
                named="the derivative of the denominator is missing in the gradient of w",
                kinds=("missing term",),
                named_words=(r"(second argument|sum|div).*(missing|constant)",),
                located=(r"gradient of w", r"div|sum"),
            ),
            Mistake(
                "weighted mean, not divided",
                lambda g, x, w: weighted_mean_backward(g, x, w, divided=False),
                named="the gradient of x is not divided by the sum of the weights",
                kinds=("missing term", "factor by element", "another operand"),
                named_words=(r"\bdiv", r"result of sum", r"example|dimension 0"),
                located=(r"gradient of x",),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
