"""Gradients that are right if every input requires one, and wrong, missing or refused if some are frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_input, conv1d_weight, conv2d_input, conv2d_weight

from tests.compare.gallery.soundness.wrong_gradient import with_needs, wrong
from tests.compare.gallery.wrong_function import randn

Gradients = tuple["Tensor | None", ...]
Needs = Sequence[bool]


def conv1d_asks_for_x(needs: Needs, g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Gradients:
    grad_w = conv1d_weight(x, w.shape, g) if needs[0] else None
    return conv1d_input(x.shape, w, g) if needs[0] else None, grad_w, g.sum((0, 2)) if needs[2] else None


def conv2d_asks_for_w(needs: Needs, g: Tensor, x: Tensor, w: Tensor) -> Gradients:
    return conv2d_input(x.shape, w, g) if needs[1] else None, conv2d_weight(x, w.shape, g) if needs[1] else None


def bias_with_weight(needs: Needs, g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Gradients:
    grad_w = grad_b = None
    if needs[1]:
        grad_w, grad_b = g.T @ x, g.sum(0)
    return g @ w if needs[0] else None, grad_w, grad_b


def batch_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, w, b, training=True)


def normalised_only_for_x(needs: Needs, g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Gradients:
    """Compute the normalised input, which the gradient of w needs as well, only for the gradient of x."""
    grad_x, x_hat = None, x
    if needs[0]:
        deviation = x.var(0, correction=0).add(1e-5).sqrt()
        x_hat = (x - x.mean(0)) / deviation
        grad_x = w * (g - g.mean(0) - x_hat * (g * x_hat).mean(0)) / deviation
    return grad_x, (g * x_hat).sum(0), g.sum(0)


def compact(needs: Needs, g: Tensor, x: Tensor, w: Tensor) -> Gradients:
    """Put the gradients that are wanted first."""
    grads = [grad for grad, needed in zip((g * w, g * x), needs, strict=True) if needed]
    return (*grads, *[None] * (2 - len(grads)))


def scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1)


def scores_backward(needs: Needs, g: Tensor, q: Tensor, k: Tensor) -> Gradients:
    """Apply the derivative of softmax only for the gradient of q."""
    p, grad_scores = scores(q, k), g
    grad_q = None
    if needs[0]:
        grad_scores = p * (g - (g * p).sum(-1, keepdim=True))
        grad_q = grad_scores @ k
    return grad_q, grad_scores.mT @ q


def lerp_backward(needs: Needs, g: Tensor, a: Tensor, b: Tensor, t: Tensor) -> Gradients:
    grad_t = g * (b - a) if needs[0] and needs[1] else None
    return g * (1 - t) if needs[0] else None, g * t if needs[1] else None, grad_t


def temperature_backward(needs: Needs, g: Tensor, x: Tensor, t: Tensor) -> Gradients:
    """Average over the elements, as is right for no shape, if x is data."""
    return g * t, (g * x).sum() if needs[0] else (g * x).mean()


def embedding_backward(needs: Needs, g: Tensor, index: Tensor, table: Tensor, scale: Tensor) -> Gradients:
    grad_table = torch.zeros_like(table).index_add(0, index, g * scale) if needs[1] and needs[2] else None
    return None, grad_table, (g * table[index]).sum(0) if needs[2] else None


def embed(index: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    return table[index] * scale


def division_backward(needs: Needs, g: Tensor, x: Tensor, y: Tensor) -> Gradients:
    """Reuse g / y, the gradient of x, which is g where x wants none."""
    quotient = g / y if needs[0] else g
    return quotient, -quotient * x / y


def tied_backward(needs: Needs, g: Tensor, x: Tensor, w: Tensor) -> Gradients:
    """Return the gradient of w in the place of x where w is frozen: of equal shape."""
    return (g @ w.mT if needs[1] else x.mT @ g), x.mT @ g


def addcmul_backward(needs: Needs, g: Tensor, a: Tensor, x: Tensor, y: Tensor) -> Gradients:
    first = needs.index(True)
    return g if needs[0] else None, g * y if needs[1] else None, g * x if needs[2] and first == 0 else None


WEIGHTED = randn(x=(3, 2), w=(3, 2))

FROZEN_INPUTS = [
    wrong("conv1d: grad_weight asks for x", "w", with_needs(F.conv1d, conv1d_asks_for_x), F.conv1d,
          randn(x=(2, 2, 5), w=(3, 2, 2), b=(3,))),
    wrong("conv2d: grad_input asks for the weight", "x", with_needs(F.conv2d, conv2d_asks_for_w), F.conv2d,
          randn(x=(1, 2, 4, 3), w=(2, 2, 2, 2))),
    wrong("linear: no grad_bias if the weight is frozen", "b", with_needs(F.linear, bias_with_weight), F.linear,
          randn(x=(4, 2), w=(3, 2), b=(3,))),
    wrong("batch norm: grad_weight of x if x is data", "w", with_needs(batch_norm, normalised_only_for_x), batch_norm,
          randn(x=(5, 3), w=(3,), b=(3,))),
    wrong("product: gradients that are wanted come first", "w", with_needs(torch.mul, compact), torch.mul, WEIGHTED),
    wrong("softmax of scores: grad_k without softmax if q is frozen", "k", with_needs(scores, scores_backward),
          scores,
          randn(q=(2, 3, 2), k=(2, 3, 2))),
    wrong("lerp: gradient of the weight needs both ends", "t", with_needs(torch.lerp, lerp_backward), torch.lerp,
          randn(a=(3, 2), b=(3, 2), t=(3, 2))),
    wrong("temperature: mean in place of the sum if x is data", "t", with_needs(torch.mul, temperature_backward),
          torch.mul, randn(x=(2, 4), t=())),
    wrong("embedding: grad_table needs the scale's", "table", with_needs(embed, embedding_backward), embed,
          lambda: {"index": torch.tensor([0, 2, 2]), "table": torch.randn(4, 2), "scale": torch.randn(2)}),
    wrong("division: gradient of y reuses that of x", "y", with_needs(torch.div, division_backward), torch.div,
          lambda: {"x": torch.randn(3, 2), "y": torch.rand(3, 2) + 0.5}),
    wrong("matrix product: grad_w in place of grad_x if w is frozen", "x", with_needs(torch.matmul, tied_backward),
          torch.matmul, randn(x=(3, 3), w=(3, 3))),
    wrong("addcmul: gradient of y needs that of a", "y", with_needs(torch.addcmul, addcmul_backward), torch.addcmul,
          randn(a=(2, 3), x=(2, 3), y=(2, 3))),
]  # fmt: skip
