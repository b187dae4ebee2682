"""Attention: with its normalizer as a second output, with queries that have no key, with a decay for each head."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import (
    Formulas,
    Mistake,
    Operation,
    wrong_and_right,
    wrong_and_right_formulas,
)

HAS_KEY = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]])


def with_normalizer(q, k, v):
    scores = q @ k.mT
    return scores.softmax(1) @ v, scores.logsumexp(1)


class AttentionWithNormalizer(Function):
    sign = 1

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return with_normalizer(q, k, v)

    @classmethod
    def backward(cls, ctx, g, g_normalizer):
        q, k, v = ctx.saved_tensors
        p = (q @ k.mT).softmax(1)
        grad_p = g @ v.mT
        along = (grad_p * p).sum(1, keepdim=True) - cls.sign * g_normalizer[:, None]
        grad = p * (grad_p - along)
        return grad @ k, grad.mT @ q, p.mT @ g


class AttentionWithNormalizerNegative(AttentionWithNormalizer):
    sign = -1


def probabilities(q, k, has_key):
    weights = (q @ k.mT).exp() * has_key
    total = weights.sum(1, keepdim=True)
    return weights / (total + (total == 0))


def some_without_keys(q, k, v, has_key):
    return probabilities(q, k, has_key) @ v


def some_without_keys_backward(g, q, k, v, has_key, *, guarded=True):
    if guarded:
        p = probabilities(q, k, has_key)
    else:
        p = (q @ k.mT).masked_fill(has_key == 0, -torch.inf).softmax(1)
    grad_p = g @ v.mT
    grad = p * (grad_p - (grad_p * p).sum(1, keepdim=True))
    return grad @ k, grad.mT @ q, p.mT @ g, None


def steps_between(q):
    steps = torch.arange(q.shape[1], dtype=q.dtype)
    return (steps[:, None] - steps).clamp(min=0)


def decaying(q, k, v, decay):
    return (q @ k.mT * (decay[:, None, None] ** steps_between(q)).tril()) @ v


def decaying_backward(g, q, k, v, decay, *, heads=slice(None)):
    steps, rate = steps_between(q), decay[heads, None, None]
    factors = (rate**steps).tril()
    grad = g @ v.mT * factors
    grad_scores = grad * (q @ k.mT)
    return grad @ k, grad.mT @ q, (q @ k.mT * factors).mT @ g, (grad_scores * steps / rate).sum((1, 2))


WITH_NORMALIZER = Operation(
    "attention and its normalizer, sign of the second output",
    AttentionWithNormalizer,
    AttentionWithNormalizerNegative,
    with_normalizer,
    lambda: {"q": torch.randn(4, 3), "k": torch.randn(5, 3), "v": torch.randn(5, 2)},
    named="the part of the normalizer's incoming gradient has the wrong sign",
    kinds=("factor of one term",),
    named_words=(r"\bsign\b", r"[-−]1\b", r"negat"),
    located=(r"gradient of q|\bq and k\b", r"\bk\b", r"logsumexp|output 1|second output"),
)

OPERATIONS = [
    Formulas(
        "attention with a query without keys",
        some_without_keys,
        lambda: {"q": torch.randn(4, 3), "k": 0.5 * torch.randn(5, 3), "v": torch.randn(5, 2), "has_key": HAS_KEY},
        some_without_keys_backward,
        (
            Mistake(
                "attention with a query without keys, NaN",
                lambda g, *inputs: some_without_keys_backward(g, *inputs, guarded=False),
                named="backward computes the softmax again without the guard for a row of -inf: NaN in all gradients",
                kinds=("not finite",),
                named_words=(r"\bNaN\b|not finite",),
                located=(r"gradient of q|\bq, k and v\b", r"\bk\b", r"\bv\b"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "attention that decays",
        decaying,
        lambda: {
            "q": torch.randn(2, 5, 3),
            "k": torch.randn(2, 5, 3),
            "v": torch.randn(2, 5, 2),
            "decay": torch.tensor([0.4, 0.8]) + 0.1 * torch.rand(2),
        },
        decaying_backward,
        (
            Mistake(
                "attention that decays, decay of the first head",
                lambda g, *inputs: decaying_backward(g, *inputs, heads=slice(1)),
                named="backward uses the decay of head 0 for both heads",
                kinds=("only at some indices", "another operand", "factor by element"),
                named_words=(
                    r"\bdecay\b",
                    r"\bpow\b",
                    r"\bheads?\b|dimension 0|\b(index|slice|example) [01]\b|first (slice|example)",
                ),
                located=(r"gradient of q|\bq, k\b", r"\bk\b", r"\bv\b"),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = (
    formulas + classes
    for formulas, classes in zip(
        wrong_and_right_formulas(OPERATIONS), wrong_and_right([WITH_NORMALIZER]), strict=True
    )
)
