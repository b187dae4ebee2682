"""Attention: with a causal mask, with heads that share keys."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def causal_scores(q, k):
    """Scaled scores with -inf for later keys."""
    later = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1)
    return (q @ k.mT / q.shape[2] ** 0.5).masked_fill(later, float("-inf"))


def causal_attention(q, k, v):
    return causal_scores(q, k).softmax(2) @ v


def causal_backward(g, q, k, v, *, masked=True, summed=2):
    p = (causal_scores(q, k) if masked else q @ k.mT / q.shape[2] ** 0.5).softmax(2)
    grad_p = g @ v.mT
    grad_scores = p * (grad_p - (p * grad_p).sum(summed, keepdim=True)) / q.shape[2] ** 0.5
    return grad_scores @ k, grad_scores.mT @ q, p.mT @ g


def grouped_attention(q, k, v):
    """Attention of q (N, 4, T, D); each of the two heads of k and v serves two heads of q."""
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return (q @ k.mT / 2).softmax(3) @ v


def grouped_backward(g, q, k, v, *, groups=(2, 2), scale=2):
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    p = (q @ k.mT / 2).softmax(3)
    grad_p = g @ v.mT
    grad_scores = p * (grad_p - (p * grad_p).sum(3, keepdim=True)) / scale
    grad_k, grad_v = grad_scores.mT @ q, p.mT @ g
    over = 2 if groups == (2, 2) else 1
    return grad_scores @ k, grad_k.unflatten(1, (2, 2)).sum(over), grad_v.unflatten(1, (2, 2)).sum(2)


OPERATIONS = [
    Formulas(
        "causal attention",
        causal_attention,
        lambda: {"q": torch.randn(2, 4, 3), "k": torch.randn(2, 4, 3), "v": torch.randn(2, 4, 5)},
        causal_backward,
        (
            Mistake(
                "causal attention, unmasked",
                lambda g, q, k, v: causal_backward(g, q, k, v, masked=False),
                named="backward recomputes the probabilities without the causal mask",
                kinds=("step left out",),
                named_words=(r"mask", r"(later|above the diagonal|after|<|>)"),
                located=(r"gradient of q", r"gradient of .*k", r"v\b"),
            ),
            Mistake(
                "causal attention, sum over queries",
                lambda g, q, k, v: causal_backward(g, q, k, v, summed=1),
                named="in softmax's derivative the sum is over the queries instead of the keys",
                kinds=("wrong sum",),
                named_words=(
                    r"(sum|mean|softmax).* (over|along|dim).*(rows|columns|dimension|another)",
                    r"(1|-2) instead of (2|-1).*(sum|softmax)",
                ),
                located=(r"gradient of q.*k|gradient of q[\s\S]*gradient of k", r"softmax|sum"),
            ),
        ),
    ),
    Formulas(
        "grouped-query attention",
        grouped_attention,
        lambda: {"q": torch.randn(2, 4, 3, 4), "k": torch.randn(2, 2, 5, 4), "v": torch.randn(2, 2, 5, 3)},
        grouped_backward,
        (
            Mistake(
                "grouped-query attention, other heads",
                lambda g, q, k, v: grouped_backward(g, q, k, v, groups=(1, 3)),
                named="the gradient of k is summed over heads 0, 2 and 1, 3 instead of 0, 1 and 2, 3",
                kinds=("wrong sum", "permuted"),
                named_words=(
                    r"(heads?|channels?|dimension 1).*(order|other|permut|exchang|group|mod|wrong)",
                    r"(order|other|permut|exchang|group|mod|wrong).*(heads?|channels?|dimension 1)",
                    r"repeat",
                ),
                located=(r"gradient of k", r"channel|dimension 1|head|repeat"),
            ),
            Mistake(
                "grouped-query attention, unscaled",
                lambda g, q, k, v: grouped_backward(g, q, k, v, scale=1),
                named="the scores' factor 1/2 is missing in the gradients of q and k",
                kinds=("constant factor",),
                named_words=(r"\b2 times the expected", r"twice"),
                located=(r"gradient of q", r"\bk\b"),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
