"""Matrices: log-determinant, ridge regression, products of rows, distances of all pairs."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def logdet(a):
    return torch.linalg.slogdet(a).logabsdet


def logdet_backward(g, a, *, transposed=True):
    inverse = torch.linalg.inv(a)
    return g[:, None, None] * (inverse.mT if transposed else inverse)


def gram(x, strength):
    return x.mT @ x + strength * torch.eye(x.shape[1], dtype=x.dtype)


def ridge(x, y, strength):
    return torch.linalg.solve(gram(x, strength), x.mT @ y)


def ridge_backward(g, x, y, strength, *, uses=2, sign=-1):
    w = ridge(x, y, strength)
    u = torch.linalg.solve(gram(x, strength), g)
    grad_x = torch.outer(y, u)
    grad_x = grad_x - x @ torch.outer(w, u) if uses > 0 else grad_x
    grad_x = grad_x - x @ torch.outer(u, w) if uses > 1 else grad_x
    return grad_x, x @ u, sign * w @ u


def product(x):
    return x.prod(1)


def product_backward(g, x, *, divided=False):
    if divided:
        return g[:, None] * product(x)[:, None] / x
    ones = torch.ones_like(x[:, :1])
    before = torch.cat([ones, x[:, :-1]], 1).cumprod(1)
    after = torch.cat([ones, x.flip(1)[:, :-1]], 1).cumprod(1).flip(1)
    return g[:, None] * before * after


def distances(a, b):
    return ((a[:, None] - b) ** 2).sum(2).sqrt()


def distances_backward(g, a, b, *, divided=True):
    slope = g / distances(a, b) if divided else 2 * g
    grad = slope[..., None] * (a[:, None] - b)
    return grad.sum(1), -grad.sum(0)


OPERATIONS = [
    Formulas(
        "log-determinant",
        logdet,
        lambda: {"a": torch.randn(2, 4, 4) + 3 * torch.eye(4)},
        logdet_backward,
        (
            Mistake(
                "log-determinant, not transposed",
                lambda g, a: logdet_backward(g, a, transposed=False),
                named="the inverse is not transposed",
                kinds=("transposed",),
                named_words=(r"transpos", r"exchang"),
                located=(r"gradient of a",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "ridge regression",
        ridge,
        lambda: {"x": torch.randn(6, 3), "y": torch.randn(6), "strength": torch.tensor(0.8)},
        ridge_backward,
        (
            Mistake(
                "ridge regression, Gram matrix as a constant",
                lambda g, *inputs: ridge_backward(g, *inputs, uses=0),
                named="the gradient of x lacks the part through the matrix x^T x",
                kinds=("missing term",),
                named_words=(r"missing", r"constant"),
                located=(r"gradient of x", r"solve|gram|matmul|first argument"),
            ),
            Mistake(
                "ridge regression, sign of the strength",
                lambda g, *inputs: ridge_backward(g, *inputs, sign=1),
                named="the gradient of the strength has the wrong sign",
                kinds=("constant factor",),
                named_words=(r"-1 times|sign|negative",),
                located=(r"gradient of strength",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "product of rows",
        product,
        lambda: {"x": torch.randn(4, 5)},
        product_backward,
        (
            Mistake(
                "product of rows, divided by zero",
                lambda g, x: product_backward(g, x, divided=True),
                named="the product divided by x is NaN where x is 0",
                kinds=("not finite", "only at zeros"),
                named_words=(r"\bNaN\b", r"finite", r"\bzero|\b0\b"),
                located=(r"gradient of x", r"\bx\b"),
            ),
        ),
    ),
    Formulas(
        "distances of all pairs",
        distances,
        lambda: {"a": torch.randn(4, 3), "b": torch.randn(5, 3)},
        distances_backward,
        (
            Mistake(
                "distances of all pairs, root left out",
                lambda g, a, b: distances_backward(g, a, b, divided=False),
                named="the derivative of the square root is missing: the gradient of the squared distances",
                kinds=("step left out", "another operand"),
                named_words=(r"sqrt", r"square root"),
                located=(r"gradient of a", r"\bb\b"),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
