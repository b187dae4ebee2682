"""Wrong dense layers, and others that are a matrix product: x (B, I), weight (J, I), bias (J,)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery_wrong import Wrong, hand_written, randn, wrong


def dense(
    name: str,
    kinds: str | set[str],
    quantity: str,
    sizes: tuple[int, int, int] = (5, 3, 4),
    words: str | tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    **pieces: Callable[..., Any],
) -> Wrong:
    """``sizes`` are B, I, J; ``pieces`` are the formulas of (g, x, w) that stand in place of the right ones."""
    b, i, j = sizes
    right = {"x": lambda g, x, w: g @ w, "weight": lambda g, x, w: g.T @ x, "bias": lambda g, x, w: g.sum(0)}
    used = right | pieces

    def backward(g: Tensor, x: Tensor, w: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        return used["x"](g, x, w), used["weight"](g, x, w), used["bias"](g, x, w)

    ours = hand_written(F.linear, backward)
    inputs = randn(x=(b, i), weight=(j, i), bias=(j,))
    return wrong(f"dense: {name}", kinds, quantity, ours, F.linear, inputs, words, also)


def tied(x: Tensor, w: Tensor) -> Tensor:
    """An autoencoder that encodes and decodes with one matrix: the gradient of w has two terms."""
    return x @ w.T @ w


def columns_like(total: Tensor, x: Tensor) -> Tensor:
    return total.expand_as(x)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, T, D) each, D = 9."""
    return torch.softmax(q @ k.mT / 3, -1) @ v


def attention_backward(**mistakes: bool) -> Callable[..., Any]:
    def backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        p = torch.softmax(q @ k.mT / 3, -1)
        d = g @ v.mT
        d = p * (d if mistakes.get("unsummed") else d - (d * p).sum(-1, keepdim=True))
        scale = 1 if mistakes.get("unscaled") else 3
        for_q, for_k = d @ k / scale, d.mT @ q / 3
        if mistakes.get("swapped"):
            for_q, for_k = for_k, for_q
        return for_q, for_k, (p if mistakes.get("untransposed") else p.mT) @ g

    return backward


QKV = randn(q=(2, 5, 9), k=(2, 5, 9), v=(2, 5, 4))
EMBEDDED = torch.tensor([2, 0, 2, 5, 2, 0])
ORDER = torch.tensor([2, 0, 3, 1, 4])


def overwriting(g: Tensor, table: Tensor, index: Tensor) -> tuple[Tensor, None]:
    gradient = torch.zeros_like(table)
    gradient[index] = g
    return gradient, None


DENSE = [
    dense("weight gradient the other way round", "transposed", "weight", (5, 4, 4), weight=lambda g, x, w: x.T @ g),
    dense("the same, not square", {"wrong shape", "transposed"}, "weight", weight=lambda g, x, w: x.T @ g),
    dense(
        "both gradients, each returned for the other", "swapped", "x", (4, 4, 4), also=("weight",),
        x=lambda g, x, w: g.T @ x, weight=lambda g, x, w: g @ w,
    ),
    dense("product with the weight transposed", "transposed", "x", (5, 4, 4), "weight", x=lambda g, x, w: g @ w.T),
    dense(
        "as if it were the identity", "passes the incoming gradient through", "x", (5, 4, 4), x=lambda g, x, w: g
    ),
    dense(
        "weight gradient of a sum", "ignores the incoming gradient", "weight",
        weight=lambda g, x, w: torch.ones_like(g).T @ x,
    ),
    dense("weight gradient averaged", "constant factor", "weight", words=("1/B", "1/5", "0.2"),
          weight=lambda g, x, w: g.T @ x / len(x)),
    dense("bias gradient of a mean", "constant factor", "bias", words=("1/B", "1/5", "0.2"),
          bias=lambda g, x, w: g.mean(0)),
    dense("weight gradient times B", "constant factor", "weight", words=("B", "5"),
          weight=lambda g, x, w: len(x) * g.T @ x),
    dense(
        "weight gradient of the last example alone", "not summed over the batch", "weight",
        weight=lambda g, x, w: torch.outer(g[-1], x[-1]),
    ),
    dense("bias gradient of the first example alone", "not summed over the batch", "bias",
          bias=lambda g, x, w: g[0]),
    dense(
        "every example has the batch's gradient", "summed over the batch", "x",
        x=lambda g, x, w: columns_like((g @ w).sum(0), x),
    ),
    dense("no gradient for the bias", "none", "bias", bias=lambda g, x, w: None),
    dense("input gradient left at zero", "zero", "x", x=lambda g, x, w: torch.zeros_like(x)),
    wrong(
        "dense: one gradient too few", "raises", "",
        hand_written(F.linear, lambda g, x, w, b: (g @ w, g.T @ x)),
        F.linear, randn(x=(5, 3), weight=(4, 3), bias=(4,)),
    ),
    wrong(
        "one output, its dimension kept", {"wrong shape", "wrong output"}, "output",
        hand_written(
            lambda x, w: (x @ w).unsqueeze(1), lambda g, x, w: (g * w, (g * x).sum(0))
        ),
        lambda x, w: x @ w, randn(x=(5, 3), w=(3,)), "shape", ("x", "w"),
    ),
    wrong(
        "tied weights: only the decoder's term", "missing term", "w",
        hand_written(tied, lambda g, x, w: (g @ w.T @ w, (x @ w.T).T @ g)), tied, randn(x=(6, 4), w=(3, 4)),
    ),
    wrong(
        "batched product: second gradient the other way round", "transposed", "b",
        hand_written(torch.bmm, lambda g, a, b: (g @ b.mT, g.mT @ a)), torch.bmm, randn(a=(3, 5, 4), b=(3, 4, 4)),
    ),
    wrong(
        "attention: scale forgotten for the queries", "constant factor", "q", hand_written(
            attention, attention_backward(unscaled=True)), attention, QKV, words="3",
    ),
    wrong(
        "attention: queries and keys exchanged", "swapped", "q",
        hand_written(attention, attention_backward(swapped=True)), attention, QKV, also=("k",),
    ),
    wrong(
        "attention: sum over the row not subtracted in softmax", "missing term", "q",
        hand_written(attention, attention_backward(unsummed=True)), attention, QKV, also=("k",),
    ),
    wrong(
        "attention: values' product with P untransposed", "unknown", "v",
        hand_written(attention, attention_backward(untransposed=True)), attention, QKV,
    ),
    wrong(
        "embedding: a repeated row keeps one of its gradients", "missing term", "table",
        hand_written(lambda table, index: table[index], overwriting), lambda table, index: table[index],
        lambda: {"table": torch.randn(7, 3), "index": EMBEDDED},
    ),
    wrong(
        "reordered columns: the same order again, not the inverse", "permuted", "x",
        hand_written(lambda x: x[:, ORDER], lambda g, x: g[:, ORDER]), lambda x: x[:, ORDER], randn(x=(4, 5)),
    ),
    wrong(
        "scale of each example: one total for all", "summed over the batch", "scale",
        hand_written(torch.mul, lambda g, x, scale: (g * scale, (g * x).sum().expand(scale.shape))),
        torch.mul, randn(x=(6, 4), scale=(6, 1)),
    ),
    wrong(
        "mean of the rows: 1 // n", "zero", "x",
        hand_written(lambda x: x.mean(0), lambda g, x: g.expand_as(x) * (1 // len(x))), lambda x: x.mean(0),
        randn(x=(6, 4)),
    ),
]  # fmt: skip
