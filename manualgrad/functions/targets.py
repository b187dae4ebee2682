"""What a cost is asked to aim at: labels, class weights, smoothing and 1/B, all made into the y of equation (14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manualgrad.functions import checks
from manualgrad.functions.precision import accumulator

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class Distribution:
    """``y``: the weight of −log S for each class, classes last; ``count``: what the mean was divided by."""

    y: Tensor
    count: Tensor


def target_distribution(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    label_smoothing: float,
) -> Distribution:
    """The arguments of :func:`manualgrad.functional.softmax_cross_entropy`, looked at and folded into y."""
    _check(logits, target, weight, reduction, label_smoothing)
    dtype = accumulator(logits.dtype)
    classes = logits.shape[1 if logits.dim() > 1 else 0]
    weight = logits.new_ones(classes, dtype=dtype) if weight is None else weight.detach().to(dtype)
    if target.is_floating_point():
        y = target.to(dtype)
        y = y.movedim(1, -1) if y.dim() > 1 else y
        count = weight.new_tensor(float(y.shape[:-1].numel()))
        y = weight * ((1 - label_smoothing) * y + label_smoothing / classes)
    else:
        y, count = _from_labels(target, weight, ignore_index, label_smoothing)
    return Distribution(y / count if reduction == "mean" else y, count)  # the 1/B of eq. (13)


def _from_labels(target: Tensor, weight: Tensor, ignore_index: int, smoothing: float) -> tuple[Tensor, Tensor]:
    classes = len(weight)
    target = target.long()
    counts = target != ignore_index
    outside = ((target < 0) | (target >= classes)) & counts
    hit = target.unsqueeze(-1) == torch.arange(classes, device=target.device)
    own = torch.where(hit & counts.unsqueeze(-1), weight, 0)
    count = own.sum()
    if smoothing:
        own = (1 - smoothing) * own + smoothing / classes * torch.where(counts.unsqueeze(-1), weight, 0)
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(target):
        return torch.where(outside.unsqueeze(-1), torch.nan, own), count  # no value can be looked at here
    if outside.any():
        wrong = target[outside].flatten()[0].item()
        raise IndexError(f"softmax_cross_entropy: a label must lie between 0 and {classes - 1}, got {wrong}")
    return own, count


def _check(logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float) -> None:
    name = "softmax_cross_entropy"
    checks.floating(name, input=logits)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing must lie between 0 and 1, got {smoothing}")
    shape = tuple(logits.shape)
    if not shape:
        raise ValueError(f"{name}: input must be (B, C), (B, C, d1, ...) or (C,), got a single number")
    if not isinstance(target, Tensor) or target.dtype == torch.bool or target.is_complex():
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"{name}: target must be class indices (whole numbers) or probabilities, got {kind}")
    if target.device != logits.device:
        raise ValueError(f"{name}: input and target must be on one device, got {logits.device} and {target.device}")
    labels = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if target.is_floating_point() and tuple(target.shape) != shape:
        raise ValueError(
            f"{name}: probabilities must have the shape of input, {shape}, got {tuple(target.shape)}; class indices "
            f"must be whole numbers, got {target.dtype}"
        )
    if not target.is_floating_point() and tuple(target.shape) != labels:
        raise ValueError(
            f"{name}: class indices for input of shape {shape} must have shape {labels}, got {tuple(target.shape)}"
        )
    classes = shape[1] if len(shape) > 1 else shape[0]
    if weight is not None and tuple(weight.shape) != (classes,):
        raise ValueError(f"{name}: weight must have shape ({classes},), one a class, got {tuple(weight.shape)}")
    if weight is not None and (weight.device != logits.device or not weight.is_floating_point()):
        raise ValueError(
            f"{name}: weight must be floating point on {logits.device}, got {weight.dtype} on {weight.device}"
        )
