"""Norms: instance normalization, standardization with N - 1, a weight divided by its singular value."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

EPS = 1e-5


def instance_norm(x, w, b):
    return F.instance_norm(x, weight=w, bias=b, eps=EPS)


def instance_norm_backward(g, x, w, b, *, dims=(2,), weighted=True, normalized=True):
    mean = x.mean(2, keepdim=True)
    rstd = ((x - mean) ** 2).mean(2, keepdim=True).add(EPS).rsqrt()
    xhat = (x - mean) * rstd
    gx = g * w[:, None] if weighted else g
    centred = gx - gx.mean(dims, keepdim=True) - xhat * (gx * xhat).mean(dims, keepdim=True)
    return centred * rstd, (g * xhat if normalized else g).sum((0, 2)), g.sum((0, 2))


def standardize(x):
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def standardize_backward(g, x, *, total=None):
    deviation = x.std(1, keepdim=True)
    y = (x - x.mean(1, keepdim=True)) / deviation
    total = x.shape[1] - 1 if total is None else total
    return (g - g.mean(1, keepdim=True) - y * (g * y).sum(1, keepdim=True) / total) / deviation


def spectral(w, u, v):
    return w / (u @ w @ v)


def spectral_backward(g, w, u, v, *, outer_transposed=False, w_of_v=None):
    sigma = u @ w @ v
    slope = -(g * w).sum() / sigma**2
    outer = torch.outer(v, u) if outer_transposed else torch.outer(u, v)
    return g / sigma + slope * outer, slope * (w @ v), slope * ((w.mT if w_of_v is None else w_of_v(w)) @ u)


OPERATIONS = [
    Formulas(
        "instance norm",
        instance_norm,
        lambda: {"x": torch.randn(2, 3, 7), "w": 0.5 + torch.rand(3), "b": torch.randn(3)},
        instance_norm_backward,
        (
            Mistake(
                "instance norm, means over the batch",
                lambda g, x, w, b: instance_norm_backward(g, x, w, b, dims=(0, 2)),
                named="the means in backward are over the batch too, which forward does not normalize over",
                kinds=("wrong sum", "missing term"),
                named_words=(r"(sum|mean).*(dimension|batch)", r"batch", r"between examples|other examples"),
                located=(r"gradient of x", r"dimension 0|dimensions 0|batch|example"),
            ),
            Mistake(
                "instance norm, weight left out",
                lambda g, x, w, b: instance_norm_backward(g, x, w, b, weighted=False),
                named="the incoming gradient is not multiplied by the weight of its channel",
                kinds=("step left out", "another operand", "missing term", "factor by element"),
                named_words=(r"\bw\b", r"weight", r"factor for each (channel|slice)|each channel", r"mul.*left out"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "instance norm, input of the weight",
                lambda g, x, w, b: instance_norm_backward(g, x, w, b, normalized=False),
                named="the gradient of the weight is that of the bias: the normalized input is missing",
                kinds=("swapped", "step left out", "another operand"),
                named_words=(r"gradient of b\b", r"normali[sz]ed", r"left out", r"1 instead|ones"),
                located=(r"gradient of w",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "standardization",
        standardize,
        lambda: {"x": torch.randn(4, 6)},
        standardize_backward,
        (
            Mistake(
                "standardization, divided by N",
                lambda g, x: standardize_backward(g, x, total=x.shape[1]),
                named="the sum in the derivative of std is divided by 6 instead of 5",
                kinds=("factor of one term", "wrong sum", "another operand"),
                named_words=(r"5/6|0\.833", r"N - 1|n-1|correction|unbiased", r"\b6\b.*instead of.*\b5\b"),
                located=(r"gradient of x", r"std|0\.833|5/6"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "weight over its singular value",
        spectral,
        lambda: {"w": 0.2 + torch.rand(4, 4), "u": 0.5 + torch.rand(4), "v": 0.5 + torch.rand(4)},
        spectral_backward,
        (
            Mistake(
                "weight over its singular value, outer product",
                lambda g, w, u, v: spectral_backward(g, w, u, v, outer_transposed=True),
                named="the outer product of u and v is transposed: v u^T instead of u v^T",
                kinds=("transposed", "another operand", "factor of one term"),
                named_words=(r"transpos", r"exchang", r"\bv\b.*instead of.*\bu\b", r"\bu\b.*instead of.*\bv\b"),
                located=(r"gradient of w",),
            ),
            Mistake(
                "weight over its singular value, w not transposed",
                lambda g, w, u, v: spectral_backward(g, w, u, v, w_of_v=lambda w: w),
                named="the gradient of v is computed with w instead of its transpose",
                kinds=("transposed", "not transposed", "another operand"),
                named_words=(r"transpos", r"exchang"),
                located=(r"gradient of v",),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
