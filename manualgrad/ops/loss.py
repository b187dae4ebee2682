"""The loss J of equations (13) and (14), of class indices or probabilities: the public function."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad._torch_compat import is_forward_mode_active
from manualgrad.dispatch import by_kernel
from manualgrad.ops.differentiable import is_grad_recorded
from manualgrad.ops.precision import cast_to_float32_under_autocast
from manualgrad.ops.softmax_cross_entropy import cross_entropy_apply, cross_entropy_backward_apply
from manualgrad.ops.targets import Reduction, target_distribution, targets_from_labels
from manualgrad.ops.tracers import traceable
from manualgrad.tensor_checks import can_read_values, in_plain_eager_mode


class LabelCrossEntropyFunction(Function):
    """J of logits and labels, from the results of a kernel that computes it without a matrix of targets.

    The kernel's ``result`` is J; for few logits on the CPU its gradient; otherwise some numbers of each row, from
    which another kernel computes the gradient; and the 1/B of equation (13), a number or a tensor. Saves z, the
    labels, the class weights and the gradient or the numbers. Reverse mode only; for all other modes there are the
    Functions of ``softmax_cross_entropy.py``. ``options`` are ignore_index, reduction and label_smoothing.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, labels: Tensor, weight: Tensor | None, options: tuple[int, Reduction, float], result: Any
    ) -> Tensor:
        loss, grad_z, row_stats, factor = result
        ctx.options, ctx.factor = options, None if isinstance(factor, Tensor) else factor
        ctx.save_for_backward(z, labels, weight, grad_z, row_stats, factor if ctx.factor is None else None)
        return cast(Tensor, loss)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None]:
        z, labels, weight, grad_z, row_stats, factor = ctx.saved_tensors
        ignore_index, reduction, label_smoothing = ctx.options
        result = None
        if not torch.is_grad_enabled():
            if row_stats is not None and not is_forward_mode_active():  # a kernel would drop the tangent of g
                factor = ctx.factor if factor is None else factor
                arguments = g, z, labels, weight, row_stats, ignore_index, label_smoothing, factor
                result = by_kernel("cross_entropy_from_labels_backward", *arguments)
            elif grad_z is not None and in_plain_eager_mode() and can_read_values(g) and math.isfinite(g):
                result = grad_z * g  # eq. (15)
        if result is None:
            is_mean = reduction == "mean"
            y, _ = targets_from_labels(labels, z, weight, z.shape[1], ignore_index, is_mean, label_smoothing)
            z_last = z.to(y.dtype).movedim(1, -1)
            result = cross_entropy_backward_apply(g.to(y.dtype), z_last, y).movedim(-1, 1).to(z.dtype)
        return result, None, None, None, None


def _kernel_loss(z: Any, labels: Any, weight: Any, *options: Any) -> Tensor | None:
    """J by a kernel, or None if no kernel supports the arguments or if forward mode is active."""
    ignore_index, reduction, label_smoothing = options
    has_checked_options = (
        type(ignore_index) is int
        and -(1 << 63) <= ignore_index < 1 << 63
        and reduction in ("mean", "sum", "none")
        and type(label_smoothing) in (int, float)
        and 0 <= label_smoothing <= 1
    )
    if not has_checked_options or is_forward_mode_active() or not _are_tensors(z, labels, weight):
        return None
    result = by_kernel("cross_entropy_from_labels", z, labels, weight, *options)
    if result is None:
        return None
    loss: Tensor = result[0]
    if not (z.requires_grad and is_grad_recorded()):
        return loss
    loss = LabelCrossEntropyFunction.apply(z, labels, weight, options, result)
    return loss


def _are_tensors(z: object, labels: object, weight: object) -> bool:
    return isinstance(z, Tensor) and isinstance(labels, Tensor) and (weight is None or isinstance(weight, Tensor))


@traceable
def softmax_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy loss J of equations (13) and (14), of logits; its derivative is (15).

    Equals ``torch.nn.functional.cross_entropy`` with two exceptions. A class whose target is 0 contributes 0 even if
    its softmax is 0, where PyTorch returns NaN for probability targets. 16-bit logits are summed in float32.

    Args:
        input: logits z, (N, C), (N, C, d1, ...) or (C,); float16, bfloat16, float32 or float64.
        target: class indices, integers of shape (N,), (N, d1, ...) or (); or probabilities y, floating point of the
            shape of input, which need not sum to 1 and may require a gradient.
        weight: (C,), the factor of each class's loss; it has a gradient only with probabilities.
        ignore_index: examples with this class index contribute 0 and do not count in the mean.
        reduction: "mean" as in (13), weighted by ``weight`` for class indices; "sum"; or "none".
        label_smoothing: fraction of each target, 0 to 1, that is distributed evenly over all classes.

    Returns:
        (), or for reduction "none" one loss for each example, (N,), (N, d1, ...) or (). The dtype is input's, or
        float32 under autocast. The mean over no examples is NaN, as in PyTorch.

    Raises:
        TypeError: the logits are not real floating point, or the targets are neither integers nor floating point.
        IndexError: a class index is outside 0 to C − 1. In compiled code and under vmap, where values cannot be
            read, and on a GPU, which Python would have to wait for, its loss and its gradient are NaN instead.
        ValueError: shapes, devices or numbers do not fit.
    """
    logits = cast_to_float32_under_autocast(input) if isinstance(input, Tensor) else input
    loss = _kernel_loss(logits, target, weight, ignore_index, reduction, label_smoothing)
    if loss is not None:
        return loss
    distribution = target_distribution(logits, target, weight, ignore_index, reduction, label_smoothing)
    y = distribution.y
    z = logits.to(y.dtype)
    z = z.movedim(1, -1) if z.dim() > 2 else z
    loss = cross_entropy_apply(z, y, reduction != "none")
    if reduction == "mean" and distribution.is_empty is not False:
        is_empty = distribution.is_empty
        loss = loss.masked_fill(torch.ones_like(loss, dtype=torch.bool) if is_empty is True else is_empty, torch.nan)
    return loss.to(torch.promote_types(logits.dtype, target.dtype) if target.is_floating_point() else logits.dtype)
