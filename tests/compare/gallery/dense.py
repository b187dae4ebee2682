"""Wrong dense layers and other matrix products.

Shapes: x (N, in_features), weight (out_features, in_features), bias (out_features,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery.wrong_function import WrongFunction, hand_written, randn, wrong_function


def dense(
    name: str,
    kinds: str | set[str],
    quantity: str,
    sizes: tuple[int, int, int] = (5, 3, 4),
    expected_words: str | tuple[str, ...] = (),
    also_wrong: tuple[str, ...] = (),
    **wrong_formulas: Callable[..., Any],
) -> WrongFunction:
    """Make an entry; ``wrong_formulas`` of (g, x, w) replace the correct ones.

    ``sizes`` are N, in_features and out_features.
    """
    n, in_features, out_features = sizes
    formulas = {"x": lambda g, x, w: g @ w, "weight": lambda g, x, w: g.T @ x, "bias": lambda g, x, w: g.sum(0)}
    formulas |= wrong_formulas

    def backward(g: Tensor, x: Tensor, w: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        return formulas["x"](g, x, w), formulas["weight"](g, x, w), formulas["bias"](g, x, w)

    ours = hand_written(F.linear, backward)
    inputs = randn(x=(n, in_features), weight=(out_features, in_features), bias=(out_features,))
    return wrong_function(f"dense: {name}", kinds, quantity, ours, F.linear, inputs, expected_words, also_wrong)


def tied_autoencoder(x: Tensor, w: Tensor) -> Tensor:
    """Encode and decode with one matrix: the gradient of w has two terms."""
    return x @ w.T @ w


def expand_like(total: Tensor, x: Tensor) -> Tensor:
    return total.expand_as(x)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q, k and v, each (N, T, D) with D = 9."""
    return torch.softmax(q @ k.mT / 3, -1) @ v


def attention_backward(**mistakes: bool) -> Callable[..., Any]:
    def backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        p = torch.softmax(q @ k.mT / 3, -1)
        d = g @ v.mT
        d = p * (d if mistakes.get("unsummed") else d - (d * p).sum(-1, keepdim=True))
        scale = 1 if mistakes.get("unscaled") else 3
        grad_q, grad_k = d @ k / scale, d.mT @ q / 3
        if mistakes.get("swapped"):
            grad_q, grad_k = grad_k, grad_q
        return grad_q, grad_k, (p if mistakes.get("untransposed") else p.mT) @ g

    return backward


QKV = randn(q=(2, 5, 9), k=(2, 5, 9), v=(2, 5, 4))
INDICES = torch.tensor([2, 0, 2, 5, 2, 0])
ORDER = torch.tensor([2, 0, 3, 1, 4])


def overwriting_backward(g: Tensor, table: Tensor, index: Tensor) -> tuple[Tensor, None]:
    gradient = torch.zeros_like(table)
    gradient[index] = g
    return gradient, None


DENSE = [
    dense("weight gradient transposed", "transposed", "weight", (5, 4, 4), weight=lambda g, x, w: x.T @ g),
    dense("weight gradient of a matrix that is not square transposed", {"wrong shape", "transposed"}, "weight",
            weight=lambda g, x, w: x.T @ g),
    dense(
        "gradients of input and weight exchanged", "swapped", "x", (4, 4, 4), also_wrong=("weight",),
        x=lambda g, x, w: g.T @ x, weight=lambda g, x, w: g @ w,
    ),
    dense("product with the weight transposed", "transposed", "x", (5, 4, 4), "weight", x=lambda g, x, w: g @ w.T),
    dense(
        "backward of the identity", "passes the incoming gradient through", "x", (5, 4, 4), x=lambda g, x, w: g
    ),
    dense(
        "weight gradient of a sum", "ignores the incoming gradient", "weight",
        weight=lambda g, x, w: torch.ones_like(g).T @ x,
    ),
    dense("weight gradient averaged", "constant factor", "weight", expected_words=("1/B", "1/5", "0.2"),
          weight=lambda g, x, w: g.T @ x / len(x)),
    dense("bias gradient of a mean", "constant factor", "bias", expected_words=("1/B", "1/5", "0.2"),
          bias=lambda g, x, w: g.mean(0)),
    dense("weight gradient times B", "constant factor", "weight", expected_words=("B", "5"),
          weight=lambda g, x, w: len(x) * g.T @ x),
    dense(
        "weight gradient of the last example alone", "not summed over the batch", "weight",
        weight=lambda g, x, w: torch.outer(g[-1], x[-1]),
    ),
    dense("bias gradient of the first example alone", "not summed over the batch", "bias",
          bias=lambda g, x, w: g[0]),
    dense(
        "every example has the sum of all gradients", "summed over the batch", "x",
        x=lambda g, x, w: expand_like((g @ w).sum(0), x),
    ),
    dense("no gradient for the bias", "none", "bias", bias=lambda g, x, w: None),
    dense("input gradient left at zero", "zero", "x", x=lambda g, x, w: torch.zeros_like(x)),
    wrong_function(
        "dense: one gradient too few", "raises", "",
        hand_written(F.linear, lambda g, x, w, b: (g @ w, g.T @ x)),
        F.linear, randn(x=(5, 3), weight=(4, 3), bias=(4,)),
    ),
    wrong_function(
        "one output: dimension of size 1 not removed", {"wrong shape", "wrong output"}, "output",
        hand_written(
            lambda x, w: (x @ w).unsqueeze(1), lambda g, x, w: (g * w, (g * x).sum(0))
        ),
        lambda x, w: x @ w, randn(x=(5, 3), w=(3,)), "shape", ("x", "w"),
    ),
    wrong_function(
        "tied weights: only the decoder's term", "missing term", "w",
        hand_written(tied_autoencoder, lambda g, x, w: (g @ w.T @ w, (x @ w.T).T @ g)), tied_autoencoder,
        randn(x=(6, 4), w=(3, 4)),
    ),
    wrong_function(
        "batched product: second gradient transposed", "transposed", "b",
        hand_written(torch.bmm, lambda g, a, b: (g @ b.mT, g.mT @ a)), torch.bmm, randn(a=(3, 5, 4), b=(3, 4, 4)),
    ),
    wrong_function(
        "attention: scale forgotten for the queries", "constant factor", "q", hand_written(
            attention, attention_backward(unscaled=True)), attention, QKV, expected_words="3",
    ),
    wrong_function(
        "attention: queries and keys exchanged", "swapped", "q",
        hand_written(attention, attention_backward(swapped=True)), attention, QKV, also_wrong=("k",),
    ),
    wrong_function(
        "attention: sum over the row not subtracted in softmax", "missing term", "q",
        hand_written(attention, attention_backward(unsummed=True)), attention, QKV, also_wrong=("k",),
    ),
    wrong_function(
        "attention: probabilities not transposed in the values' gradient", "not transposed", "v",
        hand_written(attention, attention_backward(untransposed=True)), attention, QKV,
    ),
    wrong_function(
        "embedding: gradients of a repeated row overwritten", "missing term", "table",
        hand_written(lambda table, index: table[index], overwriting_backward), lambda table, index: table[index],
        lambda: {"table": torch.randn(7, 3), "index": INDICES},
    ),
    wrong_function(
        "reordered columns: the same order again, not the inverse", "permuted", "x",
        hand_written(lambda x: x[:, ORDER], lambda g, x: g[:, ORDER]), lambda x: x[:, ORDER], randn(x=(4, 5)),
    ),
    wrong_function(
        "scale of each example: one sum for all", "summed over the batch", "scale",
        hand_written(torch.mul, lambda g, x, scale: (g * scale, (g * x).sum().expand(scale.shape))),
        torch.mul, randn(x=(6, 4), scale=(6, 1)),
    ),
    wrong_function(
        "mean of the rows: 1 // n", "zero", "x",
        hand_written(lambda x: x.mean(0), lambda g, x: g.expand_as(x) * (1 // len(x))), lambda x: x.mean(0),
        randn(x=(6, 4)),
    ),
]  # fmt: skip
