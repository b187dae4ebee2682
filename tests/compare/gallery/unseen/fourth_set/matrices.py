"""Matrices and norms: powers, quadratic distances, heads, layer norm, clipping by norm, distances."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def cube_backward(g, a, *, middle=True):
    t = a.mT
    return g @ t @ t + middle * (t @ g @ t) + t @ t @ g


def mahalanobis(x, m, p):
    d = x - m
    return (d @ p * d).sum(1)


def mahalanobis_backward(g, x, m, p, *, symmetric=False):
    d = x - m
    grad = g[:, None] * (2 * d @ p if symmetric else d @ (p + p.mT))
    return grad, -grad.sum(0), torch.einsum("n,ni,nj->ij", g, d, d)


def heads(x, w):
    """Projection of the heads of x (N, H, D) by w (H, D, E), summed over the heads."""
    return torch.einsum("nhd,hde->ne", x, w)


def heads_backward(g, x, w, *, order=1):
    grad_w = torch.einsum("ne,nhd->hde", g, x)
    return torch.einsum("ne,hde->nhd", g, w if order == 1 else w.flip(0)), grad_w


def layer_norm(x, w):
    return F.layer_norm(x, x.shape[-1:], w)


def layer_norm_backward(g, x, w, *, weighted=True, centred=True):
    scale = (x.var(1, correction=0, keepdim=True) + 1e-5).rsqrt()
    y = (x - x.mean(1, keepdim=True)) * scale
    grad_w = (g * y).sum(0)
    g = g * w if weighted else g
    mean = g.mean(1, keepdim=True) if centred else 0
    return scale * (g - mean - y * (g * y).mean(1, keepdim=True)), grad_w


LIMIT = 1.5


def clipped(x):
    """Rows of x, scaled down to norm LIMIT where it is larger."""
    norm = x.norm(dim=1, keepdim=True)
    return x * (LIMIT / norm).clamp(max=1)


def clipped_backward(g, x, *, projected=True):
    norm = x.norm(dim=1, keepdim=True)
    unit = x / norm
    inner = LIMIT / norm * (g - projected * unit * (unit * g).sum(1, keepdim=True))
    return torch.where(norm > LIMIT, inner, g)


def distances(a, b):
    return (a[:, None] - b).abs().sum(2)


def distances_backward(g, a, b, *, sign=True, negative=True):
    d = a[:, None] - b
    weighted = g[:, :, None] * (d.sign() if sign else d)
    return weighted.sum(1), (-1 if negative else 1) * (g[:, :, None] * d.sign()).sum(0)


OPERATIONS = [
    Formulas(
        "cube of a matrix",
        lambda a: a @ a @ a,
        lambda: {"a": torch.randn(3, 3)},
        cube_backward,
        (
            Mistake(
                "cube of a matrix, two terms",
                lambda g, a: cube_backward(g, a, middle=False),
                named="one of the three uses of a, that in the middle, is missing",
                kinds=("missing term",),
                named_words=(r"(use|argument).*missing",),
                located=(r"gradient of a", r"second|middle|use 2|first"),
            ),
        ),
    ),
    Formulas(
        "quadratic distance",
        mahalanobis,
        lambda: {"x": torch.randn(4, 3), "m": torch.randn(3), "p": torch.randn(3, 3)},
        mahalanobis_backward,
        (
            Mistake(
                "quadratic distance, as if symmetric",
                lambda g, x, m, p: mahalanobis_backward(g, x, m, p, symmetric=True),
                named="2 d P instead of d (P + P^T): right only if P is symmetric",
                kinds=("missing term", "transposed", "factor of one term"),
                named_words=(r"transpos|symmetr", r"missing, and .*(twice|2 times)", r"counts twice"),
                located=(r"gradient of x", r"\bm\b"),
            ),
        ),
    ),
    Formulas(
        "heads",
        heads,
        lambda: {"x": torch.randn(4, 3, 2), "w": torch.randn(3, 2, 5)},
        heads_backward,
        (
            Mistake(
                "heads, other order",
                lambda g, x, w: heads_backward(g, x, w, order=-1),
                named="the gradient of x uses the heads of w in reverse order",
                kinds=("flipped", "permuted"),
                named_words=(r"flip|revers|order",),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "layer norm with weight",
        layer_norm,
        lambda: {"x": torch.randn(4, 5), "w": torch.randn(5)},
        layer_norm_backward,
        (
            Mistake(
                "layer norm with weight, weight left out",
                lambda g, x, w: layer_norm_backward(g, x, w, weighted=False),
                named="the incoming gradient is not multiplied by w",
                kinds=("missing term",),
                named_words=(r"factor w is missing|w = 1|\bw\b.*missing|mul.*left out",),
                located=(r"gradient of x",),
            ),
            Mistake(
                "layer norm with weight, mean left out",
                lambda g, x, w: layer_norm_backward(g, x, w, centred=False),
                named="the derivative of the mean is missing",
                kinds=("missing term",),
                named_words=(r"mean.*(missing|constant)", r"missing.*mean"),
                located=(r"gradient of x", r"mean|row"),
            ),
        ),
    ),
    Formulas(
        "clipping by norm",
        clipped,
        lambda: torch.randn(5, 3),
        clipped_backward,
        (
            Mistake(
                "clipping by norm, norm constant",
                lambda g, x: clipped_backward(g, x, projected=False),
                named="the derivative of the norm is missing where rows are clipped",
                kinds=("missing term",),
                named_words=(r"(norm|div|clamp|second argument).*(missing|constant)",),
                located=(r"gradient of (x|input 0)", r"norm|div|clamp"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "absolute distances",
        distances,
        lambda: {"a": torch.randn(3, 2), "b": torch.randn(4, 2)},
        distances_backward,
        (
            Mistake(
                "absolute distances, difference for sign",
                lambda g, a, b: distances_backward(g, a, b, sign=False),
                named="the difference itself in place of its sign, the derivative of abs",
                kinds=("another operand", "missing term"),
                named_words=(r"\babs\b.*(times|derivative|operand|wrong|taken)", r"square"),
                located=(r"gradient of a", r"abs"),
            ),
            Mistake(
                "absolute distances, sign",
                lambda g, a, b: distances_backward(g, a, b, negative=False),
                named="the gradient of b has the wrong sign",
                kinds=("constant factor",),
                named_words=(r"-1 times|sign",),
                located=(r"gradient of b",),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
