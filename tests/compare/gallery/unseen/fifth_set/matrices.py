"""Matrices: Cholesky factor, symmetric eigenvalues, the kernel of all pairs of points."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def positive_definite(*shape):
    root = torch.randn(*shape)
    return root @ root.mT + 2 * torch.eye(shape[-1])


def cholesky_backward(g, a, *, halved=True, symmetric=True):
    factor = torch.linalg.cholesky(a)
    inner = (factor.mT @ g).tril()
    inner = inner - 0.5 * inner.diagonal().diag() if halved else inner
    half = torch.linalg.solve_triangular(factor.mT, inner, upper=True)
    grad = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
    symmetrized = (grad + grad.mT) / 2
    return symmetrized if symmetric else symmetrized.tril()


def eigenvalues_backward(g, a, *, transposed=False):
    vectors = torch.linalg.eigh(a).eigenvectors
    vectors = vectors.mT if transposed else vectors
    return vectors * g[:, None, :] @ vectors.mT


def kernel(x, width):
    return (-width * ((x[:, None] - x) ** 2).sum(2)).exp()


def kernel_backward(g, x, width, *, both=True):
    k = kernel(x, width)
    differences = x[:, None] - x
    gk = (g + g.mT if both else g) * k
    return -2 * width * (gk[:, :, None] * differences).sum(1), -(g * k * (differences**2).sum(2)).sum()


OPERATIONS = [
    Formulas(
        "Cholesky factor",
        torch.linalg.cholesky,
        lambda: {"a": positive_definite(4, 4)},
        cholesky_backward,
        (
            Mistake(
                "Cholesky factor, diagonal not halved",
                lambda g, a: cholesky_backward(g, a, halved=False),
                named="the diagonal of the inner matrix L^T g is not halved",
                kinds=("wrong half", "factor of one term", "missing term"),
                named_words=(r"diagonal",),
                located=(r"gradient of a",),
            ),
            Mistake(
                "Cholesky factor, lower triangle",
                lambda g, a: cholesky_backward(g, a, symmetric=False),
                named="only the lower triangle of the symmetric gradient is returned",
                kinds=("wrong half", "zero", "only at some indices"),
                named_words=(r"triang", r"above the diagonal", r"symmetric", r"i < j|j > i"),
                located=(r"gradient of a", r"triang|upper|above|i < j|j > i|lower"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "symmetric eigenvalues",
        torch.linalg.eigvalsh,
        lambda: {"a": positive_definite(2, 4, 4)},
        eigenvalues_backward,
        (
            Mistake(
                "symmetric eigenvalues, vectors transposed",
                lambda g, a: eigenvalues_backward(g, a, transposed=True),
                named="V^T diag(g) V instead of V diag(g) V^T",
                kinds=("transposed", "not transposed", "another operand"),
                named_words=(r"transpos", r"exchang"),
                located=(r"gradient of a",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "kernel of all pairs",
        kernel,
        lambda: {"x": torch.randn(5, 3), "width": torch.tensor(0.4)},
        kernel_backward,
        (
            Mistake(
                "kernel of all pairs, second use",
                lambda g, x, width: kernel_backward(g, x, width, both=False),
                named="only x's use as the first point has a gradient, its use as the second point has none",
                kinds=("missing term",),
                named_words=(r"missing", r"second (argument|use)", r"constant"),
                located=(r"gradient of x",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
