"""Activations: softplus with a threshold, snake with learned frequencies, a ReLU with an upper bound."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

BETA, THRESHOLD = 2, 3


def softplus(x):
    return F.softplus(x, beta=BETA, threshold=THRESHOLD)


def softplus_backward(g, x, *, beta=BETA, above=1):
    return g * torch.where(BETA * x > THRESHOLD, torch.full_like(x, above), (beta * x).sigmoid())


def snake(x, a):
    a = a[:, None]
    return x + (a * x).sin() ** 2 / a


def snake_backward(g, x, a, *, divided=True, doubled=2):
    a = a[:, None]
    sine, cosine = (a * x).sin(), (a * x).cos()
    through_argument = 2 * sine * cosine * x / a
    grad_a = through_argument - sine**2 / a**2 if divided else through_argument
    return g * (1 + doubled * sine * cosine), (g * grad_a).sum((0, 2))


def bounded_backward(g, x, *, inclusive=False):
    return g * ((x >= 0) & (x <= 6) if inclusive else (x > 0) & (x < 6))


OPERATIONS = [
    Formulas(
        "softplus with a threshold",
        softplus,
        lambda: {"x": 2 * torch.randn(5, 6)},
        softplus_backward,
        (
            Mistake(
                "softplus with a threshold, beta left out",
                lambda g, x: softplus_backward(g, x, beta=1),
                named="sigmoid(x) instead of sigmoid(2 x), below the threshold",
                kinds=("another operand", "factor by element", "step left out", "only for some values"),
                named_words=(
                    r"\bbeta\b",
                    r"factor of its own",
                    r"another derivative",
                    r"x <=? 1\.[3-6]",
                    r"\b2 (instead|times)|by 2\b",
                ),
                located=(r"gradient of x",),
            ),
            Mistake(
                "softplus with a threshold, zero above it",
                lambda g, x: softplus_backward(g, x, above=0),
                named="the gradient is 0 where x > 1.5; it should be 1",
                kinds=("only for some values", "zero"),
                named_words=(r"x >=? ?1\.[3-9]", r"x >=? ?2", r"(output|result).*>=? ?1\.", r"threshold"),
                located=(r"gradient of x", r">|threshold"),
            ),
        ),
    ),
    Formulas(
        "snake",
        snake,
        lambda: {"x": torch.randn(3, 4, 5), "a": 0.5 + torch.rand(4)},
        snake_backward,
        (
            Mistake(
                "snake, division by the frequency",
                lambda g, x, a: snake_backward(g, x, a, divided=False),
                named="the gradient of a lacks the term of the division by a",
                kinds=("missing term",),
                named_words=(r"div.*missing|missing.*div", r"second argument", r"constant"),
                located=(r"gradient of a\b", r"div|/"),
            ),
            Mistake(
                "snake, factor of the square",
                lambda g, x, a: snake_backward(g, x, a, doubled=1),
                named="the factor 2 of the square is missing in the gradient of x",
                kinds=("factor of one term", "step left out"),
                named_words=(r"0\.5|1/2|\bhalf\b", r"square|pow"),
                located=(r"gradient of x", r"pow|sin|square|div|mul"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "bounded ReLU",
        F.relu6,
        lambda: {"x": 4 * torch.randn(5, 8)},
        bounded_backward,
        (
            Mistake(
                "bounded ReLU, bounds included",
                lambda g, x: bounded_backward(g, x, inclusive=True),
                named="the gradient at exactly 0 and 6 is passed; native has 0",
                kinds=("only at bounds", "only at zeros", "only for some values"),
                named_words=(r"bound", r"\b0\b.*\b6\b", r"x (=|is|==) [06]"),
                located=(r"gradient of x", r"\b[06]\b"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
