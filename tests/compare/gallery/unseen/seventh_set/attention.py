"""Attention: a learned sink for each head, cosines of queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

SHARPNESS = 4


def with_sink(scores, sink):
    """Probabilities of the keys and, in the last column, of the sink."""
    column = sink[:, None, None].expand(-1, scores.shape[1], 1)
    return torch.cat([scores, column], 2).softmax(2)


def sunk(scores, sink):
    return with_sink(scores, sink)[..., :-1]


def sunk_backward(g, scores, sink, *, in_scores=True):
    p = with_sink(scores, sink)
    along = (g * p[..., :-1]).sum(2, keepdim=True)
    grad_sink = -(p[..., -1:] * along).sum((1, 2))
    if not in_scores:
        p = scores.softmax(2)
        return p * (g - (g * p).sum(2, keepdim=True)), grad_sink
    return p[..., :-1] * (g - along), grad_sink


def cosine_attention(q, k, v):
    return (SHARPNESS * F.normalize(q, dim=1) @ F.normalize(k, dim=1).mT).softmax(1) @ v


def normalize_backward(g, x, *, projected=True):
    norm = x.norm(dim=1, keepdim=True)
    direction = x / norm
    return (g - direction * (g * direction).sum(1, keepdim=True) if projected else g) / norm


def cosine_attention_backward(g, q, k, v, *, projected=True):
    unit_q, unit_k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    p = (SHARPNESS * unit_q @ unit_k.mT).softmax(1)
    gp = g @ v.mT
    gs = SHARPNESS * p * (gp - (gp * p).sum(1, keepdim=True))
    return normalize_backward(gs @ unit_k, q), normalize_backward(gs.mT @ unit_q, k, projected=projected), p.mT @ g


OPERATIONS = [
    Formulas(
        "attention with a sink",
        sunk,
        lambda: {"scores": torch.randn(2, 4, 5), "sink": torch.randn(2)},
        sunk_backward,
        (
            Mistake(
                "attention with a sink, probabilities without it",
                lambda g, scores, sink: sunk_backward(g, scores, sink, in_scores=False),
                named="the derivative of the softmax uses probabilities without the sink",
                kinds=("step left out", "another operand"),
                named_words=(r"\bsink\b", r"\bcat\b|concat"),
                located=(r"gradient of scores",),
            ),
        ),
    ),
    Formulas(
        "attention of cosines",
        cosine_attention,
        lambda: {"q": torch.randn(5, 3), "k": torch.randn(6, 3), "v": torch.randn(6, 4)},
        cosine_attention_backward,
        (
            Mistake(
                "attention of cosines, norm of keys as a constant",
                lambda g, q, k, v: cosine_attention_backward(g, q, k, v, projected=False),
                named="the norm of each key is treated as a constant",
                kinds=("missing term",),
                named_words=(r"\bnorm", r"\bdiv", r"constant"),
                located=(r"gradient of k", r"norm|div|second argument"),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
