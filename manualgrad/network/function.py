r"""Two Functions of a whole network, computed by a plan: its logits, and its loss.

:class:`LogitsFunction` is z^{L−1}, :class:`LossFunction` is J with S(z^{L−1}). Their backward is section 4's
recursion, by kernels. Where kernels cannot compute it, and for second derivatives, backward calls the Functions of
the layers (``differentiable.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad._torch_compat import is_forward_mode_active, version_of
from manualgrad.network import differentiable
from manualgrad.network.cpu_blocks import IGNORE_INDEX
from manualgrad.network.plan_interface import LossAndSteps, NetworkPlan
from manualgrad.ops.differentiable import is_grad_recorded
from manualgrad.ops.softmax_cross_entropy import cross_entropy_backward_apply
from manualgrad.ops.targets import target_distribution

Bias = tuple[Tensor, int]  # a bias and its version in forward: first derivatives do not need it, so it is not saved


class LogitsFunction(Function):
    """z^{L−1}, (N, classes), of images x (N, C_in, H, W).

    Saves x, the weights and the plan's workspace: the pooled output and pool index of each convolution, z and R(z) of
    each dense layer. x has no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: NetworkPlan, *parameters: Tensor) -> Tensor:
        z, workspace = _forward(x, plan, parameters)
        ctx.plan, ctx.biases = plan, _with_versions(parameters[1::2])
        ctx.save_for_backward(x, workspace, *parameters[::2])
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, workspace, *weights = ctx.saved_tensors
        grads: list[Tensor] | None = None
        if workspace is not None and not torch.is_grad_enabled() and not is_forward_mode_active():
            grads = ctx.plan.backward(g, x, workspace, weights)
        if grads is None:
            _, backwards = differentiable.forward(x, ctx.plan.network, _weight_bias_pairs(weights, ctx.biases))
            grads = differentiable.backward(g, backwards)
        return None, None, *grads


def logits_apply(x: Tensor, plan: NetworkPlan, parameters: list[Tensor]) -> Tensor:
    """z^{L−1} of tensors that the plan supports."""
    if not is_grad_recorded():
        return _forward(x, plan, parameters)[0]
    z: Tensor = LogitsFunction.apply(x, plan, *parameters)
    return z


def _forward(x: Tensor, plan: NetworkPlan, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """z^{L−1}, and the plan's workspace; None for it if the formulas had to compute z^{L−1}."""
    result = plan.forward(x, parameters)
    if result is not None:
        return result
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
    return differentiable.forward(x, plan.network, pairs)[0], None


class LossFunction(Function):
    """J, (), of class indices, and S(z^{L−1}), (N, classes), which has no gradient.

    J is one number, so its gradients are known up to a factor: ``result`` has them already, and backward multiplies
    them. Saves them, x, the labels and the weights. x has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, result: LossAndSteps, x: Tensor, labels: Tensor, plan: NetworkPlan, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.plan, ctx.biases = plan, _with_versions(parameters[1::2])
        # The caller may change the labels in place, so a copy is saved.
        ctx.save_for_backward(x, labels.clone(), *parameters[::2], *result.steps)
        ctx.mark_non_differentiable(result.probabilities)
        return result.loss, result.probabilities

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, labels, *weights_and_grads = ctx.saved_tensors
        weights, grads = weights_and_grads[: len(ctx.biases)], weights_and_grads[len(ctx.biases) :]
        scaled = None if torch.is_grad_enabled() else ctx.plan.scale_grads(grads, g)
        if scaled is None:
            z, backwards = differentiable.forward(x, ctx.plan.network, _weight_bias_pairs(weights, ctx.biases))
            y = target_distribution(z, labels, None, IGNORE_INDEX, "mean", 0.0).y
            delta = cross_entropy_backward_apply(g, z, y)  # eq. (15), (19)
            scaled = differentiable.backward(delta, backwards)
        return None, None, None, None, *scaled


def loss_apply(
    x: Tensor, labels: Tensor, plan: NetworkPlan, parameters: list[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """J, (), and S(z^{L−1}), (N, classes), of tensors that the plan supports.

    None if the plan cannot compute them: see :meth:`Plan.loss_and_grads`.
    """
    with torch.no_grad():
        result = plan.loss_and_grads(x, labels, parameters, 1.0)  # eq. (13) to (21)
    if result is None:
        return None
    loss: Tensor
    probabilities: Tensor
    loss, probabilities = LossFunction.apply(result, x, labels, plan, *parameters)
    return loss, probabilities


def _with_versions(biases: Sequence[Tensor]) -> list[Bias]:
    return [(b, version_of(b)) for b in biases]


def _weight_bias_pairs(weights: list[Tensor], biases: list[Bias]) -> list[tuple[Tensor, Tensor]]:
    """Pair each weight with its bias; raise RuntimeError if a bias was modified after forward."""
    for number, (b, version) in enumerate(biases):
        if version_of(b) != version:
            raise RuntimeError(
                f"manualgrad: a bias needed for derivatives was modified by an inplace operation: expected version "
                f"{version} of bias {number}, got version {version_of(b)}"
            )
    return [(w, b) for w, (b, _) in zip(weights, biases, strict=True)]
