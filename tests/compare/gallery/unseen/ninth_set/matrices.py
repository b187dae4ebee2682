"""Matrices: Toeplitz matrices, products of quaternions, hyperbolic distances."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

CONJUGATE = torch.tensor([1, -1, -1, -1])


def toeplitz_index(size):
    t = torch.arange(size)
    return t[:, None] - t + size - 1


def toeplitz(c, x):
    return x @ c[toeplitz_index(x.shape[1])].mT


def toeplitz_backward(g, c, x, *, reverse=False):
    index = toeplitz_index(x.shape[1])
    grad_c = torch.zeros_like(c).index_put((index.mT if reverse else index,), g.mT @ x, accumulate=True)
    return grad_c, g @ c[index]


def quaternions(p, q):
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


def quaternions_backward(g, p, q, *, conjugate=CONJUGATE):
    return quaternions(g, q * CONJUGATE), quaternions(p * conjugate, g)


def hyperbolic(u, v):
    ratio = ((u - v) ** 2).sum(1) / ((1 - (u * u).sum(1)) * (1 - (v * v).sum(1)))
    return torch.acosh(1 + 2 * ratio)


def hyperbolic_backward(g, u, v, *, curved=True, sign=-1):
    d = u - v
    of_u, of_v = (1 - (each * each).sum(1, keepdim=True) for each in (u, v))
    ratio = (d**2).sum(1, keepdim=True) / (of_u * of_v)
    grad = 2 * g[:, None] / ((1 + 2 * ratio) ** 2 + sign).sqrt()
    grad_d = 2 * grad * d / (of_u * of_v)
    radial = 2 * grad * ratio
    return grad_d + (radial * u / of_u if curved else 0), -grad_d + radial * v / of_v


OPERATIONS = [
    Formulas(
        "Toeplitz matrix",
        toeplitz,
        lambda: {"c": torch.randn(9), "x": torch.randn(3, 5)},
        toeplitz_backward,
        (
            Mistake(
                "Toeplitz matrix, index reversed",
                lambda g, c, x: toeplitz_backward(g, c, x, reverse=True),
                named="the gradient of c is summed at j - i instead of i - j: in reverse order",
                kinds=("flipped", "permuted", "transposed"),
                named_words=(r"revers", r"flip", r"backwards"),
                located=(r"gradient of c",),
            ),
        ),
    ),
    Formulas(
        "product of quaternions",
        quaternions,
        lambda: {"p": torch.randn(5, 4), "q": torch.randn(5, 4)},
        quaternions_backward,
        (
            Mistake(
                "product of quaternions, not conjugated",
                lambda g, p, q: quaternions_backward(g, p, q, conjugate=1),
                named="the gradient of q is p times g, without the conjugate: forward again instead of its transpose",
                kinds=("not transposed", "factor of one term", "another operand", "conjugated"),
                named_words=(r"transpos", r"conjugat", r"\bsign\b", r"[-−]1\b", r"forward.*again", r"negat"),
                located=(r"gradient of q",),
            ),
        ),
    ),
    Formulas(
        "hyperbolic distance",
        hyperbolic,
        lambda: {"u": 0.8 * torch.rand(5, 3) - 0.4, "v": 0.8 * torch.rand(5, 3) - 0.4},
        hyperbolic_backward,
        (
            Mistake(
                "hyperbolic distance, divisor as a constant",
                lambda g, u, v: hyperbolic_backward(g, u, v, curved=False),
                named="the gradient of u lacks the part through the divisor 1 - |u|^2",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"one use|second use", r"\bdiv\b", r"divisor"),
                located=(r"gradient of u",),
            ),
            Mistake(
                "hyperbolic distance, derivative of asinh",
                lambda g, u, v: hyperbolic_backward(g, u, v, sign=1),
                named="the derivative is that of asinh, 1 / sqrt(z^2 + 1), instead of that of acosh",
                kinds=("factor by element", "another operand", "factor of one term"),
                named_words=(r"\bacosh\b", r"\basinh\b", r"factor of its own", r"another derivative", r"by example"),
                located=(r"gradient of u|\bu and v\b", r"\bv\b"),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
