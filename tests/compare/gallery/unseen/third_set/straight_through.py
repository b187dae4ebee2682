"""Straight-through estimators: a quantiser with a learned step, a hard choice with the softmax's gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

LOW, HIGH = -4, 3


def quantise(x, step):
    """Round x / step to whole numbers from LOW to HIGH, times step; rounding has derivative 1."""
    v = (x / step).clamp(LOW, HIGH)
    return (v + (v.round() - v).detach()) * step


def quantise_backward(g, x, step, *, offset=True, masked=True):
    v = x / step
    inside = (v >= LOW) & (v <= HIGH)
    rounded = v.clamp(LOW, HIGH).round()
    grad_step = (g * (rounded - v * inside if offset else rounded)).sum()
    return g * inside if masked else g.clone(), grad_step


def hard_choice(x):
    """The one-hot vector of the largest element; its derivative is that of softmax."""
    p = x.softmax(1)
    return (F.one_hot(x.argmax(1), x.shape[1]) - p).detach() + p


def softmax_backward(g, y):
    return y * (g - (y * g).sum(1, keepdim=True))


OPERATIONS = [
    Formulas(
        "learned step",
        quantise,
        lambda: {"x": 2 * torch.randn(4, 6), "step": torch.tensor(0.7)},
        quantise_backward,
        (
            Mistake(
                "learned step, without the input's part",
                lambda g, x, step: quantise_backward(g, x, step, offset=False),
                named="the gradient of step lacks the part through x / step",
                kinds=("missing term",),
                named_words=(r"(div|x / step|clamp).*(missing|constant)", r"missing.*(div|x / step|clamp)"),
                located=(r"gradient of step", r"div|x / step|clamp"),
            ),
            Mistake(
                "learned step, mask ignored",
                lambda g, x, step: quantise_backward(g, x, step, masked=False),
                named="elements that were clamped get a gradient and should get none",
                kinds=("step left out", "passes the incoming gradient through", "only for some values"),
                named_words=(r"mask|clamp", r"unchanged", r"bound"),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "hard choice",
        hard_choice,
        lambda: torch.randn(4, 5),
        lambda g, x: softmax_backward(g, x.softmax(1)),
        (
            Mistake(
                "hard choice, passed through",
                lambda g, x: g.clone(),
                named="the incoming gradient is returned as it is: softmax's derivative is left out",
                kinds=("passes the incoming gradient through",),
                named_words=(r"unchanged", r"softmax.*left out"),
                located=(r"gradient of (x|input 0)",),
            ),
            Mistake(
                "hard choice, no sum",
                lambda g, x: x.softmax(1) * g,
                named="the second term of softmax's derivative, the sum over p g, is missing",
                kinds=("missing term",),
                named_words=(r"missing.*(softmax|sum|output|row)", r"(softmax|sum).*missing"),
                located=(r"gradient of (x|input 0)", r"softmax|sum|row"),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
