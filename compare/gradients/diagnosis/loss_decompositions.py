"""Losses of PyTorch in terms of simpler functions, so that the paths of a gradient in them can be told apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compare.gradients.diagnosis.more_decompositions import log_softmax


def reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def mse_loss(a: Tensor, b: Tensor, *_: Any, reduction: str = "mean", **__: Any) -> Tensor:
    difference = a - b
    return reduced(difference * difference, reduction)


def l1_loss(a: Tensor, b: Tensor, *_: Any, reduction: str = "mean", **__: Any) -> Tensor:
    return reduced((a - b).abs(), reduction)


def smooth_l1_loss(a: Tensor, b: Tensor, *_: Any, reduction: str = "mean", beta: float = 1.0, **__: Any) -> Tensor:
    d = a - b
    return reduced(torch.where(d.abs() < beta, 0.5 * d * d / beta, d.abs() - 0.5 * beta), reduction)


def huber_loss(a: Tensor, b: Tensor, reduction: str = "mean", delta: float = 1.0, *_: Any, **__: Any) -> Tensor:
    d = a - b
    return reduced(torch.where(d.abs() <= delta, 0.5 * d * d, delta * (d.abs() - 0.5 * delta)), reduction)


def binary_cross_entropy(
    p: Tensor, y: Tensor, weight: Any = None, *_: Any, reduction: str = "mean", **__: Any
) -> Tensor:
    losses = -(y * p.log() + (1 - y) * (1 - p).log())
    return reduced(losses if weight is None else weight * losses, reduction)


def binary_cross_entropy_with_logits(
    z: Tensor, y: Tensor, weight: Any = None, *_: Any, reduction: str = "mean", pos_weight: Any = None, **__: Any
) -> Tensor:
    positive, negative = y * F.softplus(-z), (1 - y) * F.softplus(z)
    losses = (positive if pos_weight is None else pos_weight * positive) + negative
    return reduced(losses if weight is None else weight * losses, reduction)


def kl_div(x: Tensor, y: Tensor, *_: Any, reduction: str = "mean", log_target: bool = False) -> Tensor:
    losses = y.exp() * (y - x) if log_target else y * y.log() - y * x
    return losses.sum() / len(x) if reduction == "batchmean" else reduced(losses, reduction)


def cross_entropy(
    z: Tensor, y: Tensor, weight: Any = None, size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    log_p = log_softmax(z, 1)
    if y.is_floating_point():
        losses = -(y * log_p if weight is None else y * log_p * weight).sum(1)
        return losses.sum() / len(z) if reduction == "mean" else reduced(losses, reduction)
    kept = y != ignore_index
    labels = y.where(kept, 0)
    losses = -log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    weights = kept.to(z.dtype) if weight is None else weight[labels] * kept
    losses = losses * weights
    if label_smoothing:
        smooth = -(log_p if weight is None else log_p * weight).sum(1) * kept
        losses = (1 - label_smoothing) * losses + label_smoothing / z.shape[1] * smooth
    return losses.sum() / weights.sum() if reduction == "mean" else reduced(losses, reduction)


def nll_loss(
    x: Tensor, y: Tensor, weight: Any = None, *_: Any, ignore_index: int = -100, reduction: str = "mean", **__: Any
) -> Tensor:
    kept = y != ignore_index
    labels = y.where(kept, 0)
    weights = kept.to(x.dtype) if weight is None else weight[labels] * kept
    losses = -x.gather(1, labels.unsqueeze(1)).squeeze(1) * weights
    return losses.sum() / weights.sum() if reduction == "mean" else reduced(losses, reduction)


def poisson_nll_loss(
    x: Tensor, y: Tensor, log_input: bool = True, full: bool = False, *_: Any, eps: float = 1e-8,
    reduction: str = "mean", **__: Any,
) -> Tensor:  # fmt: skip
    return reduced(torch.exp(x) - y * x if log_input else x - y * torch.log(x + eps), reduction)


def gaussian_nll_loss(
    x: Tensor, y: Tensor, var: Tensor, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    losses = 0.5 * (torch.log(var) + (x - y) * (x - y) / var)
    return reduced(losses + 0.5 * math.log(2 * math.pi) if full else losses, reduction)


def soft_margin_loss(x: Tensor, y: Tensor, *_: Any, reduction: str = "mean", **__: Any) -> Tensor:
    return reduced(torch.log(1 + torch.exp(-y * x)), reduction)


def hinge_embedding_loss(
    x: Tensor, y: Tensor, margin: float = 1.0, *_: Any, reduction: str = "mean", **__: Any
) -> Tensor:
    return reduced(torch.where(y == 1, x, (margin - x).clamp_min(0)), reduction)


def margin_ranking_loss(
    a: Tensor, b: Tensor, y: Tensor, margin: float = 0.0, *_: Any, reduction: str = "mean", **__: Any
) -> Tensor:
    return reduced((-y * (a - b) + margin).clamp_min(0), reduction)


def cosine_embedding_loss(
    a: Tensor, b: Tensor, y: Tensor, margin: float = 0.0, *_: Any, reduction: str = "mean", **__: Any
) -> Tensor:
    cosine = (a * b).sum(-1) / ((a * a).sum(-1).sqrt() * (b * b).sum(-1).sqrt())
    return reduced(torch.where(y == 1, 1 - cosine, (cosine - margin).clamp_min(0)), reduction)


def triplet_margin_loss(
    a: Tensor, p: Tensor, n: Tensor, margin: float = 1.0, *_: Any, reduction: str = "mean", **__: Any
) -> Tensor:
    near, far = F.pairwise_distance(a, p), F.pairwise_distance(a, n)
    return reduced((near - far + margin).clamp_min(0), reduction)


def multi_margin_loss(
    z: Tensor, y: Tensor, p: int = 1, margin: float = 1.0, *_: Any, reduction: str = "mean", **__: Any
) -> Tensor:
    own = z.gather(1, y.unsqueeze(1))
    others = (margin - own + z).clamp_min(0).scatter(1, y.unsqueeze(1), 0.0)
    return reduced(others.sum(1) / z.shape[1], reduction)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse_loss": mse_loss, "l1_loss": l1_loss, "smooth_l1_loss": smooth_l1_loss, "huber_loss": huber_loss,
    "binary_cross_entropy": binary_cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits, "kl_div": kl_div,
    "cross_entropy": cross_entropy, "nll_loss": nll_loss, "poisson_nll_loss": poisson_nll_loss,
    "gaussian_nll_loss": gaussian_nll_loss, "soft_margin_loss": soft_margin_loss,
    "hinge_embedding_loss": hinge_embedding_loss, "margin_ranking_loss": margin_ranking_loss,
    "cosine_embedding_loss": cosine_embedding_loss, "triplet_margin_loss": triplet_margin_loss,
    "multi_margin_loss": multi_margin_loss,
}  # fmt: skip
