"""Targets of the loss as the y of equation (14): class indices, class weights, smoothing and 1/B become part of y."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manualgrad.dispatch import dispatched
from manualgrad.ops import checks
from manualgrad.ops.precision import accumulation_dtype
from manualgrad.tensor_checks import can_read_values

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class TargetDistribution:
    """Targets of equation (14).

    ``y`` is the factor of −log S for each class, (N, ..., C), classes last. ``is_empty`` is True, or a bool tensor ()
    that is True, if no example counts in the mean.
    """

    y: Tensor
    is_empty: Tensor | bool


def target_distribution(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    label_smoothing: float,
) -> TargetDistribution:
    """Check the arguments of :func:`manualgrad.functional.softmax_cross_entropy` and return them as y.

    Raises:
        TypeError, ValueError, IndexError: as that function.
    """
    _check_arguments(logits, target, weight, ignore_index, reduction, label_smoothing)
    classes = logits.shape[1 if logits.dim() > 1 else 0]
    if target.is_floating_point():
        dtype = torch.promote_types(accumulation_dtype(logits.dtype), target.dtype)
        class_weight = logits.new_ones(classes, dtype=dtype) if weight is None else weight.to(dtype)
        y = target.to(dtype)
        y = y.movedim(1, -1) if y.dim() > 2 else y
        count = y.shape[:-1].numel()
        y = class_weight * ((1 - label_smoothing) * y + label_smoothing / classes)
        return TargetDistribution(y / count if reduction == "mean" else y, count == 0)  # the 1/B of eq. (13)
    return TargetDistribution(
        *targets_from_labels(target, logits, weight, classes, ignore_index, reduction == "mean", label_smoothing)
    )


@dispatched
def targets_from_labels(
    labels: Tensor,
    logits: Tensor,
    weight: Tensor | None,
    classes: int,
    ignore_index: int,
    mean: bool,
    label_smoothing: float,
) -> tuple[Tensor, Tensor | bool]:
    """y and ``is_empty`` of a :class:`TargetDistribution` for class indices. Of the logits it takes the dtype.

    Raises:
        IndexError: a label is no class. Where values cannot be read, on a GPU too, its y is NaN instead.
    """
    labels, dtype = labels.long(), accumulation_dtype(logits.dtype)
    class_weight = logits.new_ones(classes, dtype=dtype) if weight is None else weight.to(dtype)
    is_counted = (labels != ignore_index).unsqueeze(-1)
    is_invalid = ((labels < 0) | (labels >= classes)).unsqueeze(-1) & is_counted
    one_hot = labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)
    y = torch.where(one_hot & is_counted, class_weight, 0)
    total_weight = y.sum()
    if label_smoothing:
        y = (1 - label_smoothing) * y + label_smoothing / classes * class_weight
    if mean:
        y = y / total_weight  # the 1/B of eq. (13)
    y = torch.where(is_counted, y, 0)  # an ignored example has y = 0, even if total_weight is 0
    if not can_read_values(labels):  # values cannot be read: an invalid label gets NaN
        return torch.where(is_invalid, torch.nan, y), total_weight == 0
    if is_invalid.any():
        label = labels[is_invalid.squeeze(-1)].flatten()[0].item()
        raise IndexError(f"softmax_cross_entropy: a label must lie between 0 and {classes - 1}, got {label}")
    return y, total_weight == 0


def _check_arguments(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> None:
    name = "softmax_cross_entropy"
    checks.require_floating(name, input=logits)
    if not isinstance(target, Tensor):
        raise TypeError(f"{name}: target must be class indices or probabilities, got {type(target).__name__}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    checks.require_fraction(name, "label_smoothing", label_smoothing)
    if checks.integer_or_none(ignore_index) is None:
        raise TypeError(f"{name}: ignore_index must be an integer, got {ignore_index!r}")
    if not -(1 << 63) <= ignore_index < 1 << 63:
        raise ValueError(f"{name}: ignore_index must fit into 64 bits, as labels do, got {ignore_index}")
    shape = tuple(logits.shape)
    if not shape:
        raise ValueError(f"{name}: input must have shape (N, C), (N, C, d1, ...) or (C,), got a scalar")
    classes = shape[1] if len(shape) > 1 else shape[0]
    if classes == 0:
        raise ValueError(f"{name}: input must have at least one class, got shape {shape}")
    if target.device != logits.device:
        raise ValueError(f"{name}: input and target must be on one device, got {logits.device} and {target.device}")
    if target.is_floating_point():
        checks.require_floating(name, target=target)
        if tuple(target.shape) != shape:
            raise ValueError(
                f"{name}: probabilities must have the shape of input, {shape}, got {tuple(target.shape)}; class "
                f"indices must be integers, got {target.dtype}"
            )
        if ignore_index >= 0:
            raise ValueError(f"{name}: ignore_index requires class indices, got {ignore_index} with probabilities")
    else:
        _check_labels(name, target, shape)
    if weight is not None:
        checks.require_floating(name, weight=weight)
        if tuple(weight.shape) != (classes,):
            raise ValueError(
                f"{name}: weight must have shape ({classes},), one entry for each class, got {tuple(weight.shape)}"
            )
        if weight.device != logits.device:
            raise ValueError(f"{name}: weight must be on {logits.device} as input is, got {weight.device}")
        if weight.requires_grad and not target.is_floating_point():
            raise ValueError(f"{name}: weight has no gradient with class indices; pass weight.detach()")


def _check_labels(name: str, target: Tensor, shape: tuple[int, ...]) -> None:
    labels_shape = shape[:1] + shape[2:] if len(shape) > 1 else ()
    if target.dtype == torch.bool or target.is_complex():
        raise TypeError(f"{name}: target must be class indices (integers) or probabilities, got {target.dtype}")
    if tuple(target.shape) != labels_shape:
        raise ValueError(
            f"{name}: class indices for input of shape {shape} must have shape {labels_shape}, "
            f"got {tuple(target.shape)}"
        )
