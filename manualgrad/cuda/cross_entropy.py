"""Cross-entropy on CUDA, of target probabilities or labels: takes and returns tensors. Nothing waits for the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from manualgrad.cuda.kernels import cross_entropy as kernels
from manualgrad.cuda.kernels import label_cross_entropy as label_kernels
from manualgrad.cuda.launch import Launcher
from manualgrad.cuda.rows import MAX_CLASSES, as_rows, new_rows, one_for_each_row, tiles
from manualgrad.cuda.tensor_checks import unsupported_tensors

LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
PARTIAL_SUMS_BLOCK = 1024

LabelLoss = tuple[Tensor, Tensor | None, Tensor | None, "Tensor | float"]  # of cross_entropy_from_labels


def unsupported_cross_entropy_forward(z: Tensor, y: Tensor, summed: bool) -> str:
    """Return the reason why :func:`cross_entropy_forward` does not support the arguments, "" if it does."""
    if z.shape != y.shape or not z.dim() or not z.numel():
        return "z and y differ in shape, or they are empty"
    return unsupported_tensors(z, y)


def cross_entropy_forward(launch: Launcher, z: Tensor, y: Tensor, summed: bool) -> Tensor:
    """J of each row of z and y, both (N, ..., classes), or their sum."""
    z_rows, y_rows = as_rows(z), as_rows(y)
    programs, constants = tiles(z_rows, y_rows)
    a, b, classes = z_rows.shape
    losses = z.new_empty(() if summed else z.shape[:-1])
    partial_sums = z.new_empty(programs if summed else 0, dtype=torch.float32)
    launch(
        kernels.cross_entropy_forward, (programs,), losses, partial_sums, z_rows, y_rows, a * b, b, classes,
        *z_rows.stride(), *y_rows.stride(), SUMMED=summed, **constants,
    )  # fmt: skip
    if summed:
        launch(
            kernels.add_partial_sums, (1,), losses, None, partial_sums, programs, MEAN=False, BLOCK=PARTIAL_SUMS_BLOCK
        )
    return losses


def unsupported_cross_entropy_backward(g: Tensor, z: Tensor, y: Tensor) -> str:
    """Return the reason why :func:`cross_entropy_backward` does not support the arguments, "" if it does."""
    if g.shape not in ((), z.shape[:-1]):
        return "the incoming gradient is neither one number nor one for each row"
    return unsupported_cross_entropy_forward(z, y, True) or unsupported_tensors(g, z)


def cross_entropy_backward(launch: Launcher, g: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """Gradient with respect to z, in the memory order of z; ``g`` is one number or one for each row."""
    (grad_z, grad_rows), z_rows, y_rows = new_rows(z), as_rows(z), as_rows(y)
    g_rows = one_for_each_row(g, z_rows)
    programs, constants = tiles(z_rows, y_rows, grad_rows)
    a, b, classes = z_rows.shape
    launch(
        kernels.cross_entropy_backward, (programs,), grad_rows, g_rows, z_rows, y_rows, a * b, b, classes,
        *grad_rows.stride(), *g_rows.stride(), *z_rows.stride(), *y_rows.stride(), **constants,
    )  # fmt: skip
    return grad_z


def unsupported_cross_entropy_from_labels(
    z: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> str:
    """Return the reason why :func:`cross_entropy_from_labels` does not support the arguments, "" if it does."""
    if z.dim() < 2 or not z.numel():
        return "there are no rows of logits"
    if z.shape[1] > MAX_CLASSES:  # for backward
        return "there are too many classes"
    if labels.shape != z.shape[:1] + z.shape[2:] or labels.device != z.device:
        return "the labels are not one for each row of logits"
    if weight is not None and (weight.shape != z.shape[1:2] or weight.device != z.device or weight.requires_grad):
        return "the class weights are not one number for each class"
    return (
        unsupported_tensors(z)
        or unsupported_tensors(labels, dtypes=LABEL_DTYPES)
        or ("" if weight is None else unsupported_tensors(weight))
    )


def cross_entropy_from_labels(
    launch: Launcher, z: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int, reduction: str,
    label_smoothing: float,
) -> LabelLoss:  # fmt: skip
    """Cross-entropy of z (N, C, d1, ...) for labels (N, d1, ...), and what its gradient is made of.

    Returns:
        The losses (N, d1, ...) for the reduction "none", otherwise their sum or mean (), in the dtype of z; None;
        three float32 numbers for each row; and the factor 1/B of equation (13), or 1.0.
    """
    z_rows, is_mean = as_rows(z, 1), reduction == "mean"
    a, b, classes = z_rows.shape
    label_rows = one_for_each_row(labels, z_rows)
    programs, constants = tiles(z_rows, label_rows)
    losses = z.new_empty(labels.shape if reduction == "none" else ())
    stats = z.new_empty((3, a * b), dtype=torch.float32)
    has_partial_sums = reduction != "none" and programs > 1
    partial_sums = z.new_empty(2 * programs if has_partial_sums else 0, dtype=torch.float32)
    factor = z.new_empty((), dtype=torch.float32) if is_mean else None
    launch(
        label_kernels.label_cross_entropy_forward, (programs,), losses, factor, partial_sums, stats, z_rows,
        label_rows, weight if weight is None else weight.contiguous(), a * b, b, classes, *z_rows.stride(),
        *label_rows.stride(), ignore_index, float(label_smoothing), SMOOTHED=label_smoothing != 0,
        REDUCTION=reduction, ONE_PROGRAM=programs == 1, **constants,
    )  # fmt: skip
    if has_partial_sums:
        launch(
            kernels.add_partial_sums, (1,), losses, factor, partial_sums, programs, MEAN=is_mean,
            BLOCK=PARTIAL_SUMS_BLOCK,
        )  # fmt: skip
    return losses, None, stats, 1.0 if factor is None else factor


def unsupported_cross_entropy_from_labels_backward(
    g: Tensor, z: Tensor, labels: Tensor, weight: Tensor | None, stats: Tensor, ignore_index: int,
    label_smoothing: float, factor: Tensor | float,
) -> str:  # fmt: skip
    """Return the reason why :func:`cross_entropy_from_labels_backward` does not support the arguments, or ""."""
    if g.shape not in ((), labels.shape):
        return "the incoming gradient is neither one number nor one for each row"
    return (
        unsupported_tensors(g, z)
        or unsupported_tensors(labels, dtypes=LABEL_DTYPES)
        or ("" if weight is None else unsupported_tensors(weight))
    )


def cross_entropy_from_labels_backward(
    launch: Launcher, g: Tensor, z: Tensor, labels: Tensor, weight: Tensor | None, stats: Tensor, ignore_index: int,
    label_smoothing: float, factor: Tensor | float,
) -> Tensor:  # fmt: skip
    """Gradient with respect to z, in its memory order, from the results of :func:`cross_entropy_from_labels`."""
    (grad_z, grad_rows), z_rows = new_rows(z, 1), as_rows(z, 1)
    g_rows, label_rows = one_for_each_row(g, z_rows), one_for_each_row(labels, z_rows)
    programs, constants = tiles(z_rows, grad_rows, label_rows)
    a, b, classes = z_rows.shape
    launch(
        label_kernels.label_cross_entropy_backward, (programs, -(-classes // constants["BLOCK"])), grad_rows, g_rows,
        z_rows, label_rows, weight if weight is None else weight.contiguous(), stats,
        factor if isinstance(factor, Tensor) else None, a * b, b, classes, *grad_rows.stride(),
        *g_rows.stride(), *z_rows.stride(), *label_rows.stride(), ignore_index, float(label_smoothing),
        SMOOTHED=label_smoothing != 0, **constants,
    )  # fmt: skip
    return grad_z
