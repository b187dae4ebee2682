"""Geometry and physics: splats, distance from a segment, upwind differences, front over back."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

PIXELS = torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]])
STEP = 0.4


def splat_weights(centre, conic):
    d = PIXELS[:, None] - centre
    a, b, c = conic.unbind(1)
    return d, (-(a * d[..., 0] ** 2 + c * d[..., 1] ** 2) / 2 - b * d[..., 0] * d[..., 1]).exp()


def splats(centre, conic, colour):
    return splat_weights(centre, conic)[1] @ colour


def splats_backward(g, centre, conic, colour, *, mixed=1.0):
    d, w = splat_weights(centre, conic)
    a, b, c = conic.unbind(1)
    x, y = d.unbind(2)
    grad = w * (g @ colour.mT)
    grad_centre = torch.stack([(grad * (a * x + b * y)).sum(0), (grad * (c * y + b * x)).sum(0)], 1)
    grad_conic = torch.stack(
        [-(grad * x * x).sum(0) / 2, -mixed * (grad * x * y).sum(0), -(grad * y * y).sum(0) / 2], 1
    )
    return grad_centre, grad_conic, w.mT @ g


def foot_share(p, a, b):
    return ((p - a) * (b - a)).sum(1) / ((b - a) ** 2).sum(1)


def from_segment(p, a, b):
    share = foot_share(p, a, b).clamp(0, 1)[:, None]
    return ((p - a - share * (b - a)) ** 2).sum(1)


def from_segment_backward(g, p, a, b, *, clamped=True):
    share = foot_share(p, a, b)[:, None]
    share = share.clamp(0, 1) if clamped else share
    grad = 2 * g[:, None] * (p - a - share * (b - a))
    return grad, -grad * (1 - share), -grad * share


def upwind(u, velocity):
    difference = torch.where(velocity > 0, u - u.roll(1, 1), u.roll(-1, 1) - u)
    return u - STEP * velocity * difference


def upwind_backward(g, u, velocity, *, both_sides=True):
    from_left = (velocity > 0) if both_sides else torch.ones_like(velocity, dtype=torch.bool)
    difference = torch.where(from_left, u - u.roll(1, 1), u.roll(-1, 1) - u)
    flux = -STEP * g * velocity
    left, right = flux * from_left, flux * ~from_left
    return g + left - left.roll(-1, 1) + right.roll(1, 1) - right, -STEP * (g * difference).sum(0)


def front_over_back(front, back, opacity):
    return opacity[:, None] * front + (1 - opacity[:, None]) * back


def front_over_back_backward(g, front, back, opacity, *, parentheses=True):
    along = (front - back) * g if parentheses else front - back * g
    return g * opacity[:, None], g * (1 - opacity[:, None]), along.sum(1)


OPERATIONS = [
    Formulas(
        "splats",
        splats,
        lambda: {
            "centre": 2 * torch.rand(3, 2),
            "conic": torch.tensor([1.0, 0.0, 1.0]) + 0.5 * torch.rand(3, 3),
            "colour": torch.randn(3, 2),
        },
        splats_backward,
        (
            Mistake(
                "splats, mixed element of the conic",
                lambda g, *inputs: splats_backward(g, *inputs, mixed=0.5),
                named="the gradient of the mixed element, column 1 of conic, has the factor 1/2 of the squares",
                kinds=("only at some indices", "factor by element", "factor of one term", "constant factor"),
                named_words=(r"\b0\.5\b|\b1/2\b|\bhalf\b",),
                located=(r"gradient of conic", r"column 1|column = 1|columns? .*\b1\b|\bmul\b|, 1\]"),
            ),
        ),
    ),
    Formulas(
        "distance from a segment",
        from_segment,
        lambda: {"p": 1.5 * torch.randn(7, 2), "a": torch.randn(7, 2), "b": torch.randn(7, 2)},
        from_segment_backward,
        (
            Mistake(
                "distance from a segment, beyond its ends",
                lambda g, *inputs: from_segment_backward(g, *inputs, clamped=False),
                named="backward uses the foot on the line: the clamp to the segment is left out",
                kinds=("step left out", "only for some values", "another operand", "missing term"),
                named_words=(r"\bclamp", r"\bsegment\b|beyond|outside of"),
                located=(r"gradient of p|\bp, a and b\b", r"\ba\b", r"\bb\b"),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
    Formulas(
        "upwind differences",
        upwind,
        lambda: {"u": torch.randn(3, 7), "velocity": torch.randn(7)},
        upwind_backward,
        (
            Mistake(
                "upwind differences, always from the left",
                lambda g, u, velocity: upwind_backward(g, u, velocity, both_sides=False),
                named="backward takes the difference from the left also where velocity < 0",
                kinds=("step left out", "only for some values", "another operand", "only at some indices"),
                named_words=(r"\bvelocity (<|>|<=|≤|is neg)", r"\bwhere\b", r"negative"),
                located=(r"gradient of u|\bu and velocity\b", r"gradient of velocity|\bu and velocity\b"),
            ),
        ),
        options={"kinks": True},
    ),
    Formulas(
        "front over back",
        front_over_back,
        lambda: {"front": torch.randn(4, 3), "back": torch.randn(4, 3), "opacity": torch.rand(4)},
        front_over_back_backward,
        (
            Mistake(
                "front over back, parentheses",
                lambda g, *inputs: front_over_back_backward(g, *inputs, parentheses=False),
                named="front - back * g instead of (front - back) * g: a part of the gradient of opacity has no g",
                kinds=(
                    "not linear in the incoming gradient",
                    "ignores the incoming gradient",
                    "another operand",
                    "missing term",
                ),
                named_words=(
                    r"\blinear",
                    r"(without|not multiplied by|independent of|ignor\w+|no|other) (the )?incoming gradient",
                    r"incoming gradient.*(\b0\b|zero|times|twice|sum of two)",
                ),
                located=(r"gradient of opacity",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
