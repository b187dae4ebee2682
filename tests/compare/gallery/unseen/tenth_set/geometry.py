"""Geometry: products of quaternions, rotations from two vectors."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def hamilton(p, q):
    a, b, c, d = p.unbind(-1)
    e, f, g, h = q.unbind(-1)
    return torch.stack(
        [
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        ],
        -1,
    )


def conjugate(q):
    return torch.cat([q[..., :1], -q[..., 1:]], -1)


def project(b, e):
    return b - (e * b).sum(1, keepdim=True) * e


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def rotation(a, b):
    first = unit(a)
    second = unit(project(b, first))
    return torch.stack([first, second, torch.linalg.cross(first, second)], 2)


def rotation_backward(g, a, b, *, through_projection=True):
    first = unit(a)
    rest = project(b, first)
    second = unit(rest)
    grad_first, grad_second, grad_third = g.unbind(2)
    grad_first = grad_first + torch.linalg.cross(second, grad_third)
    grad_second = grad_second + torch.linalg.cross(grad_third, first)
    grad_rest = project(grad_second, second) / rest.norm(dim=1, keepdim=True)
    if through_projection:
        along = (first * b).sum(1, keepdim=True) * grad_rest + (first * grad_rest).sum(1, keepdim=True) * b
        grad_first = grad_first - along
    return project(grad_first, first) / a.norm(dim=1, keepdim=True), project(grad_rest, first)


OPERATIONS = [
    Formulas(
        "product of quaternions",
        hamilton,
        lambda: {"p": torch.randn(5, 4), "q": torch.randn(5, 4)},
        lambda g, p, q: (hamilton(g, conjugate(q)), hamilton(conjugate(p), g)),
        (
            Mistake(
                "product of quaternions, order of the factors",
                lambda g, p, q: (hamilton(g, conjugate(q)), hamilton(g, conjugate(p))),
                named="the gradient of q has the factors in the other order: g times the conjugate of p",
                kinds=("another operand", "not transposed", "swapped", "factor of one term", "permuted"),
                named_words=(r"\border\b|exchang|swap|commut", r"transpos", r"\bsign\b|[-−]1\b|negat"),
                located=(r"gradient of q",),
            ),
        ),
    ),
    Formulas(
        "rotation from two vectors",
        rotation,
        lambda: {"a": torch.randn(5, 3), "b": torch.randn(5, 3)},
        rotation_backward,
        (
            Mistake(
                "rotation from two vectors, projection",
                lambda g, a, b: rotation_backward(g, a, b, through_projection=False),
                named="the first axis is treated as a constant where b is projected on it",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"detach", r"no effect", r"one use|second use"),
                located=(r"gradient of a",),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
