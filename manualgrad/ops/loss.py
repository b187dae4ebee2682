"""J, the cost of equations (13) and (14), as it is asked for: of labels, or of probabilities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from manualgrad.cpu import small_kernels
from manualgrad.cpu.tensor_checks import supports_tensors
from manualgrad.ops.precision import autocast_float32
from manualgrad.ops.softmax_cross_entropy import cross_entropy_apply, cross_entropy_backward_apply
from manualgrad.ops.targets import Reduction, target_distribution


class LabelCrossEntropyFunction(Function):
    """J of a few rows of logits and their labels, by kernels that find its gradient on the way: ``found`` is y, J and
    that. Saves it, z and y. All else is for the Functions of ``softmax_cross_entropy.py``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        y, cost, gradient = found
        ctx.save_for_backward(z, y, gradient)
        return cost

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        z, y, gradient = ctx.saved_tensors
        if torch.is_grad_enabled() or not supports_tensors(g) or not math.isfinite(g):
            return cross_entropy_backward_apply(g, z, y), None
        return gradient * g, None  # eq. (15)


def _by_kernels(z: Tensor, labels: Tensor, ignore_index: int, mean: bool) -> Tensor | None:
    """J, where kernels serve and reverse mode is all that may be asked for."""
    if forward_ad._current_level >= 0:
        return None
    found = small_kernels.cost_of_labels(z, labels, ignore_index, mean)
    if found is None:
        return None
    return LabelCrossEntropyFunction.apply(z, found) if z.requires_grad and torch.is_grad_enabled() else found[1]


def softmax_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The cost J of equations (13) and (14), of logits; its derivative is (15).

    Equals ``torch.nn.functional.cross_entropy``, but for two things: a class whose target is 0 costs 0 even where
    its softmax is 0 (natively NaN, for probability targets), and 16-bit logits are added up in float32.

    Args:
        input: logits z, (B, C), (B, C, d1, ...) or (C,); float16, bfloat16, float32 or float64.
        target: class indices, whole numbers of shape (B,), (B, d1, ...) or (); or probabilities y, floating
            point of the shape of input, which need not sum to 1 and may ask for a gradient.
        weight: (C,), by which each class's cost is multiplied; it has a gradient with probabilities only.
        ignore_index: examples with this class index cost nothing, and do not count in the mean.
        reduction: "mean" as (13) has it, weighted by ``weight`` for class indices; "sum"; or "none".
        label_smoothing: the share of each target, 0 to 1, that is spread evenly over all classes.

    Returns:
        one number, or for reduction "none" one for each example, (B,), (B, d1, ...) or (); input's dtype, float32
        under autocast. The mean of no examples is NaN, as in PyTorch.

    Raises:
        TypeError: logits that are not real floating point, targets of a dtype that is neither.
        IndexError: a class index outside 0 to C − 1 (in compiled code and under vmap its cost is NaN instead,
            since there no value can be looked at).
        ValueError: shapes, devices or numbers that do not fit.
    """
    plain = weight is None and label_smoothing == 0 and type(ignore_index) is int and reduction in ("mean", "sum")
    if plain and (cost := _by_kernels(input, target, ignore_index, reduction == "mean")) is not None:
        return cost
    logits = autocast_float32(input) if isinstance(input, Tensor) else input
    distribution = target_distribution(logits, target, weight, ignore_index, reduction, label_smoothing)
    y = distribution.y
    z = logits.to(y.dtype)
    z = z.movedim(1, -1) if z.dim() > 2 else z
    cost = cross_entropy_apply(z, y, reduction != "none")
    if reduction == "mean" and distribution.nothing is not False:
        cost = cost.masked_fill(distribution.nothing, torch.nan)
    return cost.to(torch.promote_types(logits.dtype, target.dtype) if target.is_floating_point() else logits.dtype)
