"""Attention: a learned slope of distances (ALiBi), a sliding window."""

from __future__ import annotations

import math

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def offsets(length):
    """Position of the query minus that of the key."""
    return torch.arange(length)[:, None] - torch.arange(length)


def alibi_probabilities(q, k, slope):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores - slope[:, None, None] * offsets(q.shape[1]).abs()).softmax(-1)


def alibi(q, k, v, slope):
    return alibi_probabilities(q, k, slope) @ v


def alibi_backward(g, q, k, v, slope, *, scale_of_k=None, signed=False):
    p = alibi_probabilities(q, k, slope)
    gp = g @ v.mT
    gs = p * (gp - (gp * p).sum(-1, keepdim=True))
    scale = 1 / math.sqrt(q.shape[-1])
    distance = offsets(q.shape[1])
    distance = distance if signed else distance.abs()
    grad_slope = -(gs * distance).sum((1, 2))
    return scale * gs @ k, (scale if scale_of_k is None else scale_of_k) * gs.mT @ q, p.mT @ g, grad_slope


def window_probabilities(q, k, *, masked=True):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores.masked_fill(offsets(len(q)).abs() > 1, -math.inf) if masked else scores).softmax(-1)


def window(q, k, v):
    return window_probabilities(q, k) @ v


def window_backward(g, q, k, v, *, masked=True, dim=-1, transposed=True):
    p = window_probabilities(q, k, masked=masked)
    gp = g @ v.mT
    gs = p * (gp - (gp * p).sum(dim, keepdim=True)) / math.sqrt(q.shape[-1])
    p = window_probabilities(q, k)
    return gs @ k, gs.mT @ q, (p.mT if transposed else p) @ g


OPERATIONS = [
    Formulas(
        "attention with slopes",
        alibi,
        lambda: {
            "q": torch.randn(2, 5, 3),
            "k": torch.randn(2, 5, 3),
            "v": torch.randn(2, 5, 4),
            "slope": torch.rand(2),
        },
        alibi_backward,
        (
            Mistake(
                "attention with slopes, scale of keys",
                lambda g, q, k, v, s: alibi_backward(g, q, k, v, s, scale_of_k=1),
                named="the division by sqrt(3) is missing in the gradient of the keys",
                kinds=("constant factor", "step left out"),
                named_words=(r"1\.73", r"sqrt\(?3", r"div.*left out"),
                located=(r"gradient of k",),
            ),
            Mistake(
                "attention with slopes, signed distance",
                lambda g, q, k, v, s: alibi_backward(g, q, k, v, s, signed=True),
                named="the gradient of the slopes uses i - j instead of |i - j|",
                kinds=("step left out", "another operand", "factor of one term"),
                named_words=(r"\babs\b", r"signed", r"sign"),
                located=(r"gradient of slope",),
            ),
        ),
    ),
    Formulas(
        "attention in a window",
        window,
        lambda: {"q": torch.randn(6, 3), "k": torch.randn(6, 3), "v": torch.randn(6, 4)},
        window_backward,
        (
            Mistake(
                "attention in a window, mask left out",
                lambda g, q, k, v: window_backward(g, q, k, v, masked=False),
                named="the derivative of the softmax uses probabilities without the mask",
                kinds=("step left out",),
                named_words=(r"mask",),
                located=(r"gradient of q", r"\bk\b"),
            ),
            Mistake(
                "attention in a window, sum over queries",
                lambda g, q, k, v: window_backward(g, q, k, v, dim=0),
                named="the sum in the derivative of the softmax is over the queries instead of the keys",
                kinds=("wrong sum",),
                named_words=(r"(sum|softmax).*dimension (0|-2)", r"over the (queries|rows)"),
                located=(r"gradient of q", r"\bk\b"),
            ),
            Mistake(
                "attention in a window, probabilities of the values",
                lambda g, q, k, v: window_backward(g, q, k, v, transposed=False),
                named="the probabilities are not transposed in the gradient of the values",
                kinds=("not transposed", "transposed", "another operand"),
                named_words=(r"transpos", r"exchang", r"derivative of forward"),
                located=(r"gradient of v",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
