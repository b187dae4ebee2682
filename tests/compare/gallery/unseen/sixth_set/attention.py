"""Attention: capped scores, a learned table of offsets, linear attention, a learned temperature."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

CAP = 1.5


def capped(q, k, v):
    return (CAP * (q @ k.mT / CAP).tanh()).softmax(-1) @ v


def capped_backward(g, q, k, v, *, chained=True):
    t = (q @ k.mT / CAP).tanh()
    p = (CAP * t).softmax(-1)
    gp = g @ v.mT
    gs = p * (gp - (gp * p).sum(-1, keepdim=True))
    gs = gs * (1 - t * t) if chained else gs
    return gs @ k, gs.mT @ q, p.mT @ g


def offset_index(length):
    """Index in the table of each pair: query minus key, from 0."""
    return torch.arange(length)[:, None] - torch.arange(length) + length - 1


def offsets(scores, table):
    return (scores + table[offset_index(scores.shape[-1])]).softmax(-1)


def offsets_backward(g, scores, table, *, index=offset_index):
    p = offsets(scores, table)
    gs = p * (g - (g * p).sum(-1, keepdim=True))
    return gs, torch.zeros_like(table).index_add(0, index(scores.shape[-1]).flatten(), gs.sum(0).flatten())


def features(x):
    return F.elu(x) + 1


def linear_attention(q, k, v):
    fq, fk = features(q), features(k)
    return fq @ (fk.mT @ v) / (fq @ fk.sum(0))[:, None]


def linear_attention_backward(g, q, k, v, *, normalized=True, slope_of_q=None):
    fq, fk = features(q), features(k)
    state, total = fk.mT @ v, fk.sum(0)
    divisor = (fq @ total)[:, None]
    g_sum = g / divisor
    g_divisor = -(g_sum * (fq @ state) / divisor).sum(1, keepdim=True) * normalized
    slopes = [torch.where(x > 0, torch.ones_like(x), x.exp()) for x in (q, k)]
    slopes[0] = slopes[0] if slope_of_q is None else slope_of_q
    grad_fk = v @ (fq.mT @ g_sum).mT + (fq.mT @ g_divisor).mT
    return (g_sum @ state.mT + g_divisor * total) * slopes[0], grad_fk * slopes[1], fk @ (fq.mT @ g_sum)


def tempered(x, temperature):
    return (x / temperature).softmax(1)


def tempered_backward(g, x, temperature, *, learned=True):
    p = tempered(x, temperature)
    grad = p * (g - (g * p).sum(1, keepdim=True)) / temperature
    return grad, -(grad * x).sum() / temperature if learned else None


OPERATIONS = [
    Formulas(
        "attention with capped scores",
        capped,
        lambda: {"q": torch.randn(5, 3), "k": torch.randn(6, 3), "v": torch.randn(6, 4)},
        capped_backward,
        (
            Mistake(
                "attention with capped scores, derivative of the cap",
                lambda g, q, k, v: capped_backward(g, q, k, v, chained=False),
                named="the derivative of tanh is missing",
                kinds=("step left out", "another operand"),
                named_words=(r"tanh",),
                located=(r"gradient of q", r"\bk\b"),
            ),
        ),
    ),
    Formulas(
        "attention with a table of offsets",
        offsets,
        lambda: {"scores": torch.randn(2, 4, 4), "table": torch.randn(7)},
        offsets_backward,
        (
            Mistake(
                "attention with a table of offsets, reversed",
                lambda g, s, t: offsets_backward(g, s, t, index=lambda n: offset_index(n).mT),
                named="the gradient of the table is in reverse order: key minus query",
                kinds=("flipped", "permuted", "transposed"),
                named_words=(r"revers", r"flip", r"transpos", r"permut", r"order"),
                located=(r"gradient of table",),
            ),
            Mistake(
                "attention with a table of offsets, one too low",
                lambda g, s, t: offsets_backward(g, s, t, index=lambda n: (offset_index(n) - 1).clamp(min=0)),
                named="the index is one too low: element i has the gradient of element i + 1",
                kinds=("shifted", "permuted"),
                named_words=(r"shift", r"i ?\+ ?1|i ?- ?1", r"one (place|index|element)"),
                located=(r"gradient of table",),
            ),
        ),
    ),
    Formulas(
        "linear attention",
        linear_attention,
        lambda: {"q": torch.randn(5, 3), "k": torch.randn(6, 3), "v": torch.randn(6, 4)},
        linear_attention_backward,
        (
            Mistake(
                "linear attention, divisor as a constant",
                lambda g, q, k, v: linear_attention_backward(g, q, k, v, normalized=False),
                named="the divisor is treated as a constant",
                kinds=("missing term",),
                named_words=(r"\bdiv", r"constant"),
                located=(r"gradient of q", r"\bk\b", r"div|second argument"),
            ),
            Mistake(
                "linear attention, slope of the features",
                lambda g, q, k, v: linear_attention_backward(g, q, k, v, slope_of_q=1),
                named="the derivative of elu is missing in the gradient of q: wrong where q < 0",
                kinds=("step left out", "only for some values", "another operand"),
                named_words=(r"\belu\b", r"q <=? ?-?0"),
                located=(r"gradient of q", r"elu|q <"),
            ),
        ),
    ),
    Formulas(
        "softmax with a learned temperature",
        tempered,
        lambda: {"x": torch.randn(4, 5), "temperature": torch.tensor(1.6)},
        tempered_backward,
        (
            Mistake(
                "softmax with a learned temperature, none for it",
                lambda g, x, t: tempered_backward(g, x, t, learned=False),
                named="backward returns None for the temperature",
                kinds=("none",),
                named_words=(r"\bNone\b", r"no gradient"),
                located=(r"gradient of temperature",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
