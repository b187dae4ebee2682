"""What a cost is asked to aim at: labels, class weights, smoothing and 1/B, all made into the y of equation (14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manualgrad.cpu import small_kernels
from manualgrad.cpu.tensor_checks import is_plain_tensor
from manualgrad.ops import checks
from manualgrad.ops.precision import accumulator

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class Distribution:
    """``y``: the weight of −log S for each class, classes last; ``nothing``: whether the mean is one of no
    examples."""

    y: Tensor
    nothing: Tensor | bool


def target_distribution(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    label_smoothing: float,
) -> Distribution:
    """The arguments of :func:`manualgrad.functional.softmax_cross_entropy`, looked at and folded into y."""
    _check(logits, target, weight, ignore_index, reduction, label_smoothing)
    classes = logits.shape[1 if logits.dim() > 1 else 0]
    if target.is_floating_point():
        dtype = torch.promote_types(accumulator(logits.dtype), target.dtype)
        weight = logits.new_ones(classes, dtype=dtype) if weight is None else weight.to(dtype)
        y = target.to(dtype)
        y = y.movedim(1, -1) if y.dim() > 2 else y
        count = weight.new_tensor(float(y.shape[:-1].numel()))
        y = weight * ((1 - label_smoothing) * y + label_smoothing / classes)
        return Distribution(y / count if reduction == "mean" else y, count == 0)  # the 1/B of eq. (13)
    if weight is None and not label_smoothing:
        y = small_kernels.labels_distribution(target, logits, classes, ignore_index, reduction == "mean")
        if y is not None:
            return Distribution(y, False)
    dtype = accumulator(logits.dtype)
    weight = logits.new_ones(classes, dtype=dtype) if weight is None else weight.to(dtype)
    return _from_labels(target.long(), weight, ignore_index, reduction, label_smoothing)


def _from_labels(
    labels: Tensor, weight: Tensor, ignore_index: int, reduction: Reduction, smoothing: float
) -> Distribution:
    classes = len(weight)
    counts = (labels != ignore_index).unsqueeze(-1)
    outside = ((labels < 0) | (labels >= classes)).unsqueeze(-1) & counts
    hit = labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)
    y = torch.where(hit & counts, weight, 0)
    count = y.sum()
    if smoothing:
        y = (1 - smoothing) * y + smoothing / classes * weight
    if reduction == "mean":
        y = y / count  # the 1/B of eq. (13)
    y = torch.where(counts, y, 0)  # an ignored example asks for nothing, even where none counts
    if not is_plain_tensor(labels):  # no value can be looked at here
        return Distribution(torch.where(outside, torch.nan, y), count == 0)
    if outside.any():
        wrong = labels[outside.squeeze(-1)].flatten()[0].item()
        raise IndexError(f"softmax_cross_entropy: a label must lie between 0 and {classes - 1}, got {wrong}")
    return Distribution(y, count == 0)


def _check(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> None:
    name = "softmax_cross_entropy"
    checks.floating(name, input=logits)
    if not isinstance(target, Tensor):
        raise TypeError(f"{name}: target must be class indices or probabilities, got {type(target).__name__}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    checks.share(name, "label_smoothing", smoothing)
    if checks.index(ignore_index) is None:
        raise TypeError(f"{name}: ignore_index must be a whole number, got {ignore_index!r}")
    if not -(1 << 63) <= ignore_index < 1 << 63:
        raise ValueError(f"{name}: ignore_index must be a number of 64 bits, as labels are, got {ignore_index}")
    shape = tuple(logits.shape)
    if not shape:
        raise ValueError(f"{name}: input must be (B, C), (B, C, d1, ...) or (C,), got a single number")
    classes = shape[1] if len(shape) > 1 else shape[0]
    if classes == 0:
        raise ValueError(f"{name}: input must have at least one class, got shape {shape}")
    if target.device != logits.device:
        raise ValueError(f"{name}: input and target must be on one device, got {logits.device} and {target.device}")
    if target.is_floating_point():
        checks.floating(name, target=target)
        if tuple(target.shape) != shape:
            raise ValueError(
                f"{name}: probabilities must have the shape of input, {shape}, got {tuple(target.shape)}; class "
                f"indices must be whole numbers, got {target.dtype}"
            )
        if ignore_index >= 0:
            raise ValueError(f"{name}: ignore_index is for class indices, got {ignore_index} with probabilities")
    else:
        _check_labels(name, target, shape)
    if weight is not None:
        checks.floating(name, weight=weight)
        if tuple(weight.shape) != (classes,):
            raise ValueError(f"{name}: weight must have shape ({classes},), one a class, got {tuple(weight.shape)}")
        if weight.device != logits.device:
            raise ValueError(f"{name}: weight must be on {logits.device} as input is, got {weight.device}")
        if weight.requires_grad and not target.is_floating_point():
            raise ValueError(f"{name}: weight has no gradient with class indices; detach it")


def _check_labels(name: str, target: Tensor, shape: tuple[int, ...]) -> None:
    labels = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if target.dtype == torch.bool or target.is_complex():
        raise TypeError(f"{name}: target must be class indices (whole numbers) or probabilities, got {target.dtype}")
    if tuple(target.shape) != labels:
        raise ValueError(
            f"{name}: class indices for input of shape {shape} must have shape {labels}, got {tuple(target.shape)}"
        )
