r"""Two Functions of a whole network of equations (22) and (23), computed by a plan: its logits, and its loss.

:class:`LogitsFunction` is z^{L−1}, :class:`LossFunction` is J with S(z^{L−1}). Their backward is section 4's
recursion, by kernels. Where kernels cannot compute it, and for second derivatives, backward calls the Functions of
the layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad._torch_compat import foreach_mul, is_forward_mode_active, is_graph_freed, version_of
from manualgrad.cpu.tensor_checks import supports_tensors
from manualgrad.network.plan import LossAndSteps, Plan
from manualgrad.network.plan_builder import IGNORE_INDEX, NetworkSpec
from manualgrad.ops.bias import grad_bias_apply
from manualgrad.ops.conv2d import conv2d_grad_input_apply, conv2d_grad_weight_apply
from manualgrad.ops.conv_relu_pool import conv_relu_pool_apply
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry, make_conv_relu_pool_geometry
from manualgrad.ops.dense import dense_apply
from manualgrad.ops.differentiable import is_grad_recorded
from manualgrad.ops.flatten import ImageSize, flatten_apply, unflatten_apply
from manualgrad.ops.relu import relu_apply, relu_backward_apply
from manualgrad.ops.relu_pool import relu_pool_backward_apply
from manualgrad.ops.softmax_cross_entropy import cross_entropy_backward_apply
from manualgrad.ops.targets import target_distribution

Bias = tuple[Tensor, int]  # a bias and its version in forward: first derivatives do not need it, so it is not saved


class LogitsFunction(Function):
    """z^{L−1}, (N, classes), of images x (N, C_in, H, W).

    Saves x, the weights and the plan's workspace: the pooled output and pool index of each convolution, z and R(z) of
    each dense layer. x has no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, *parameters: Tensor) -> Tensor:
        z, workspace = plan.forward(x, parameters)
        ctx.plan, ctx.biases = plan, _with_versions(parameters[1::2])
        ctx.save_for_backward(x, workspace, *parameters[::2])
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, workspace, *weights = ctx.saved_tensors
        grads: list[Tensor] | None = None
        if not torch.is_grad_enabled() and supports_tensors(g) and not is_forward_mode_active():
            grads = ctx.plan.backward(g, x, workspace, weights)
        if grads is None:
            network = ctx.plan.network
            activations = _forward_layer_by_layer(x, _weight_bias_pairs(weights, ctx.biases), network)
            grads = _backward_layer_by_layer(g, activations, network)
        return None, None, *grads


def logits_apply(x: Tensor, plan: Plan, parameters: list[Tensor]) -> Tensor:
    """z^{L−1} of tensors that the plan supports."""
    if not is_grad_recorded():
        return plan.forward(x, parameters)[0]
    z: Tensor = LogitsFunction.apply(x, plan, *parameters)
    return z


class LossFunction(Function):
    """J, (), of class indices, and S(z^{L−1}), (N, classes), which has no gradient.

    J is one number, so its gradients are known up to a factor: ``result`` has them already, and backward multiplies
    them. Saves them, x, the labels and the weights. x has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, result: LossAndSteps, x: Tensor, labels: Tensor, network: NetworkSpec, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.network, ctx.biases = network, _with_versions(parameters[1::2])
        # The caller may change the labels in place, so a copy is saved.
        ctx.save_for_backward(x, labels.clone(), *parameters[::2], *result.steps)
        ctx.mark_non_differentiable(result.probabilities)
        return result.loss, result.probabilities

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, labels, *weights_and_grads = ctx.saved_tensors
        weights, grads = weights_and_grads[: len(ctx.biases)], weights_and_grads[len(ctx.biases) :]
        if torch.is_grad_enabled() or not supports_tensors(g) or not math.isfinite(g):
            activations = _forward_layer_by_layer(x, _weight_bias_pairs(weights, ctx.biases), ctx.network)
            z = activations.logits
            y = target_distribution(z, labels, None, IGNORE_INDEX, "mean", 0.0).y
            delta = cross_entropy_backward_apply(g, z, y)  # eq. (15), (19)
            grads = _backward_layer_by_layer(delta, activations, ctx.network)
        elif g != 1 or not is_graph_freed():  # another backward could read the saved gradients
            grads = foreach_mul(grads, g)
        return None, None, None, None, *grads


def loss_apply(x: Tensor, labels: Tensor, plan: Plan, parameters: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """J, (), and S(z^{L−1}), (N, classes), of tensors that the plan supports.

    None if the plan cannot compute them: see :meth:`Plan.loss_and_grads`.
    """
    with torch.no_grad():
        result = plan.loss_and_grads(x, labels, parameters, 1.0)  # eq. (13) to (21)
    if result is None:
        return None
    loss: Tensor
    probabilities: Tensor
    loss, probabilities = LossFunction.apply(result, x, labels, plan.network, *parameters)
    return loss, probabilities


def _with_versions(biases: Sequence[Tensor]) -> list[Bias]:
    return [(b, version_of(b)) for b in biases]


def _weight_bias_pairs(weights: list[Tensor], biases: list[Bias]) -> list[tuple[Tensor, Tensor]]:
    """Pair each weight with its bias; raise RuntimeError if a bias was modified after forward."""
    for number, (b, version) in enumerate(biases):
        if version_of(b) != version:
            raise RuntimeError(
                f"DocumentCNN: a bias needed for derivatives was modified by an inplace operation: expected version "
                f"{version} of bias {number}, got version {version_of(b)}"
            )
    return [(w, b) for w, (b, _) in zip(weights, biases, strict=True)]


# ------------------------------------------------------------------------------------------ layer by layer


@dataclass(frozen=True)
class _Activations:
    """Tensors of forward that the layers' backward needs.

    Attributes:
        convs: x^l, w^l, pool index and geometry of each convolution.
        dense: x^l, w^l and z^l of each dense layer.
        pooled_size: size of the images that F flattens.
    """

    convs: list[tuple[Tensor, Tensor, Tensor, ConvReLUPoolGeometry]]
    dense: list[tuple[Tensor, Tensor, Tensor]]
    pooled_size: ImageSize

    @property
    def logits(self) -> Tensor:
        """z^{L−1}."""
        return self.dense[-1][2]


def _forward_layer_by_layer(x: Tensor, pairs: list[tuple[Tensor, Tensor]], network: NetworkSpec) -> _Activations:
    num_convs, subgradient = len(network.conv_shapes), network.subgradient
    convs, dense = [], []
    for w, b in pairs[:num_convs]:
        geometry = make_conv_relu_pool_geometry(x, w, b, 1, 0, network.flip_kernel, subgradient)
        pooled, pool_index = conv_relu_pool_apply(x, w, b, geometry)  # eq. (16), (17), σ = P∘R, f = C
        convs.append((x, w, pool_index, geometry))
        x = pooled
    pooled_size = ImageSize(*x.shape[1:])
    x = flatten_apply(x)  # eq. (16), F
    for w, b in pairs[num_convs:]:
        z = dense_apply(x, w, b)  # eq. (17), f = D
        dense.append((x, w, z))
        x = relu_apply(z, subgradient)  # eq. (16), σ = R
    return _Activations(convs, dense, pooled_size)


def _backward_layer_by_layer(g: Tensor, activations: _Activations, network: NetworkSpec) -> list[Tensor]:
    """∂J/∂w and ∂J/∂b of each layer from ``g``, ∂J/∂z^{L−1}, by Functions that can be differentiated again."""
    dense = activations.dense
    grads: list[Tensor] = []
    for l in range(len(dense) - 1, -1, -1):  # noqa: E741
        x, w, _ = dense[l]
        grads = [dense_apply(g.t(), x.t(), None), grad_bias_apply(g), *grads]  # eq. (18), (21)
        g = dense_apply(g, w.t(), None)  # eq. (20), ∂D/∂x
        if l:
            g = relu_backward_apply(g, dense[l - 1][2], network.subgradient)  # eq. (20), ∂R/∂z
    g = unflatten_apply(g, activations.pooled_size)  # eq. (20), F⁻¹
    for l in range(len(activations.convs) - 1, -1, -1):  # noqa: E741
        x, w, pool_index, geometry = activations.convs[l]
        delta = relu_pool_backward_apply(g, pool_index, geometry)  # eq. (20), P⁻¹ and ∂R/∂z
        grad_weight = conv2d_grad_weight_apply(delta, x, geometry.convolution)  # eq. (21)
        grads = [grad_weight, grad_bias_apply(delta), *grads]  # eq. (18)
        if l:
            g = conv2d_grad_input_apply(delta, w, geometry.convolution)  # eq. (20), ∂C/∂x
    return grads
