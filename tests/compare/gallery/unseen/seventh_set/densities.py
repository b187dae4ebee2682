"""Logarithms of densities: gamma, a mixture of Gaussians, a Gaussian given by a Cholesky factor."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def gamma(x, a, b):
    return a * b.log() - a.lgamma() + (a - 1) * x.log() - b * x


def gamma_backward(g, x, a, b, *, slope=torch.digamma, shaped=True):
    grad_a = (g * (b.log() - slope(a) + x.log())).sum(0)
    grad_b = (g * ((a if shaped else 1) / b - x)).sum(0)
    return g * ((a - 1) / x - b), grad_a, grad_b


def joint(x, mean, log_sd, logits):
    """Log of the probability of each component and of x, up to a constant; and the standardized x, (N, K)."""
    z = (x[:, None] - mean) / log_sd.exp()
    return logits.log_softmax(0) - z**2 / 2 - log_sd, z


def mixture(x, mean, log_sd, logits):
    return joint(x, mean, log_sd, logits)[0].logsumexp(1)


def mixture_backward(g, x, mean, log_sd, logits, *, normalized=1):
    scores, z = joint(x, mean, log_sd, logits)
    gr = g[:, None] * scores.softmax(1)
    slope = gr * z / log_sd.exp()
    grad_log_sd = (gr * (z**2 - normalized)).sum(0)
    return -slope.sum(1), slope.sum(0), grad_log_sd, gr.sum(0) - g.sum() * logits.softmax(0)


def gaussian(x, mean, factor):
    y = torch.linalg.solve_triangular(factor, (x - mean).mT, upper=False)
    return -(y**2).sum(0) / 2 - factor.diagonal().log().sum()


def gaussian_backward(g, x, mean, factor, *, triangular=True):
    y = torch.linalg.solve_triangular(factor, (x - mean).mT, upper=False)
    gu = g * torch.linalg.solve_triangular(factor.mT, y, upper=True)
    grad_factor = gu @ y.mT - (g.sum() / factor.diagonal()).diag()
    return -gu.mT, gu.sum(1), grad_factor.tril() if triangular else grad_factor


OPERATIONS = [
    Formulas(
        "gamma density",
        gamma,
        lambda: {"x": 0.3 + torch.rand(5, 3), "a": 1.5 + torch.rand(3), "b": 0.5 + torch.rand(3)},
        gamma_backward,
        (
            Mistake(
                "gamma density, log for digamma",
                lambda g, x, a, b: gamma_backward(g, x, a, b, slope=torch.log),
                named="the derivative of lgamma(a) is log(a) instead of digamma(a)",
                kinds=("another operand", "step left out", "factor of one term"),
                named_words=(r"gamma",),
                located=(r"gradient of a\b",),
            ),
            Mistake(
                "gamma density, shape left out",
                lambda g, x, a, b: gamma_backward(g, x, a, b, shaped=False),
                named="the factor a is missing in the term a/b of the gradient of b",
                kinds=("step left out", "another operand", "factor of one term"),
                named_words=(
                    r"mul\b.*left out",
                    r"\blog\b",
                    r"\ba\b.*(missing|left out|\b1\b)",
                    r"(missing|left out|instead of) a\b",
                ),
                located=(r"gradient of b\b", r"mul|log|\ba\b"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "mixture of Gaussians",
        mixture,
        lambda: {
            "x": torch.randn(5),
            "mean": torch.randn(3),
            "log_sd": 0.5 * torch.randn(3),
            "logits": torch.randn(3),
        },
        mixture_backward,
        (
            Mistake(
                "mixture of Gaussians, normalization of the deviation",
                lambda g, *inputs: mixture_backward(g, *inputs, normalized=0),
                named="the term of -log_sd, the normalization of each Gaussian, is missing",
                kinds=("missing term", "step left out"),
                named_words=(r"missing", r"sub\b.*left out", r"constant"),
                located=(r"gradient of log_sd",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "Gaussian with a Cholesky factor",
        gaussian,
        lambda: {
            "x": torch.randn(5, 3),
            "mean": torch.randn(3),
            "factor": 2 * torch.eye(3) + 0.3 * torch.randn(3, 3),
        },
        gaussian_backward,
        (
            Mistake(
                "Gaussian with a Cholesky factor, upper triangle",
                lambda g, x, mean, factor: gaussian_backward(g, x, mean, factor, triangular=False),
                named="the gradient of the factor is nonzero above the diagonal, which forward does not read",
                kinds=("wrong half", "only at some indices"),
                named_words=(r"triang|triu|tril", r"diagonal", r"i < j|j > i"),
                located=(r"gradient of factor", r"upper|above|i < j|j > i|triu"),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
