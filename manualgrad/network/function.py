r"""z^{L−1} of equations (22) and (23), C, P∘R, C, F∘P∘R, D, R, D, as one Function by one program of kernels; and J.

Their formulas are those of the layers, and their derivatives are section 4's recursion. They exist where a plan does
(see ``network/plan.py``); everywhere else, and for derivatives of derivatives, the layers' own Functions serve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.cpu.tensor_checks import supports_tensors
from manualgrad.network.plan import LossAndSteps, Network, Plan
from manualgrad.network.plan_builder import IGNORED
from manualgrad.ops import conv_relu_pool, flatten
from manualgrad.ops.bias import grad_bias_apply
from manualgrad.ops.conv2d import conv2d_grad_input_apply, conv2d_grad_weight_apply
from manualgrad.ops.dense import dense_apply
from manualgrad.ops.relu import relu_apply, relu_backward_apply
from manualgrad.ops.softmax_cross_entropy import cross_entropy_backward_apply
from manualgrad.ops.targets import target_distribution


class Logits(Function):
    """z^{L−1}. Saves x, the weights and what the program keeps: of each convolution P(R(z)) and its codes, of each
    dense layer z and R(z). Biases are needed for derivatives of derivatives alone. x has no gradient here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, *parameters: Tensor) -> Tensor:
        z, kept = plan.forward(x, parameters)
        ctx.plan, ctx.biases = plan, [(b, b._version) for b in parameters[1::2]]
        ctx.save_for_backward(x, kept, *parameters[::2])
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, *weights = ctx.saved_tensors
        found = None if torch.is_grad_enabled() or not supports_tensors(g) else ctx.plan.backward(g, x, kept, weights)
        if found is None:
            found = layer_by_layer(g, x, _pairs(weights, ctx.biases), ctx.plan.network)
        return None, None, *found


def logits(x: Tensor, plan: Plan, parameters: list[Tensor]) -> Tensor:
    """z^{L−1} of tensors that the plan takes."""
    return Logits.apply(x, plan, *parameters) if torch.is_grad_enabled() else plan.forward(x, parameters)[0]


class Cost(Function):
    """J of labels, and S(z^{L−1}). J is one number, so that the program can go on and find all of its derivatives at
    once: they are saved, for J's own derivative to be multiplied by. x and the probabilities have none here."""

    @staticmethod
    def forward(
        ctx: Any, found: LossAndSteps, x: Tensor, labels: Tensor, network: Network, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.network, ctx.biases = network, [(b, b._version) for b in parameters[1::2]]
        ctx.save_for_backward(x, labels.clone(), *parameters[::2], *found.steps)  # the labels are the caller's
        ctx.mark_non_differentiable(found.probabilities)
        return found.cost, found.probabilities

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, labels, *rest = ctx.saved_tensors
        weights, gradients = rest[: len(ctx.biases)], rest[len(ctx.biases) :]
        if torch.is_grad_enabled() or not supports_tensors(g) or not math.isfinite(g):
            layers = _layers(x, _pairs(weights, ctx.biases), ctx.network)
            y = target_distribution(layers.z, labels, None, IGNORED, "mean", 0.0).y
            found = _gradients(cross_entropy_backward_apply(g, layers.z, y), layers, ctx.network)  # eq. (15), (19)
        else:
            found = gradients if g == 1 and _is_the_last_time() else torch._foreach_mul(gradients, g)
        return None, None, None, None, *found


def _is_the_last_time() -> bool:
    """Whether what a backward has saved is freed after it, and may be given away. Where torch does not tell, it may
    not."""
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return not keeps()


def cost(x: Tensor, labels: Tensor, plan: Plan, parameters: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """J and S(z^{L−1}) (B, classes) of tensors that the plan takes; None where labels or numbers are not what it
    takes."""
    with torch.no_grad():
        found = plan.steps(x, labels, parameters, 1.0)  # eq. (13) to (21)
    return None if found is None else Cost.apply(found, x, labels, plan.network, *parameters)


def _pairs(weights: list[Tensor], biases: list[tuple[Tensor, int]]) -> list[tuple[Tensor, Tensor]]:
    """Each w and b; of the biases, which no first derivative needs, is known which version was read."""
    if any(b._version != version for b, version in biases):
        raise RuntimeError("a bias needed for derivatives was modified by an inplace operation")
    return [(w, b) for w, (b, _) in zip(weights, biases, strict=True)]


@dataclass(frozen=True)
class _Layers:
    """Of each convolution x, w, its codes and its geometry; of each dense layer x, w and z; ``z`` is the last one's,
    and ``size`` that of the images which F flattens."""

    convolutions: list[tuple[Tensor, Tensor, Tensor, conv_relu_pool.Geometry]]
    products: list[tuple[Tensor, Tensor, Tensor]]
    size: flatten.ImageSize

    @property
    def z(self) -> Tensor:
        return self.products[-1][2]


def layer_by_layer(g: Tensor, x: Tensor, pairs: list[tuple[Tensor, Tensor]], network: Network) -> list[Tensor]:
    """∂J/∂w and ∂J/∂b of each layer from ``g``, ∂J/∂z^{L−1}, by the layers' Functions, fit to be differentiated;
    ``pairs`` are each w and b."""
    return _gradients(g, _layers(x, pairs, network), network)


def _layers(x: Tensor, pairs: list[tuple[Tensor, Tensor]], network: Network) -> _Layers:
    half, stages, convolutions, products = network.subgradient, len(network.convolutions), [], []
    for w, b in pairs[:stages]:
        geometry = conv_relu_pool.geometry_of(x, w, b, 1, 0, network.flip, half)
        pooled, code = conv_relu_pool.conv_relu_pool_apply(x, w, b, geometry)  # eq. (16), (17), σ = P∘R, f = C
        convolutions.append((x, w, code, geometry))
        x = pooled
    size = flatten.ImageSize(*x.shape[1:])
    x = flatten.flatten_apply(x)  # eq. (16), F
    for w, b in pairs[stages:]:
        z = dense_apply(x, w, b)  # eq. (17), f = D
        products.append((x, w, z))
        x = relu_apply(z, half)  # eq. (16), σ = R
    return _Layers(convolutions, products, size)


def _gradients(g: Tensor, layers: _Layers, network: Network) -> list[Tensor]:
    products, half = layers.products, network.subgradient
    found: list[Tensor] = []
    for l in range(len(products) - 1, -1, -1):  # noqa: E741
        x, w, _ = products[l]
        found = [dense_apply(g.t(), x.t(), None), grad_bias_apply(g), *found]  # eq. (18), (21)
        g = dense_apply(g, w.t(), None)  # eq. (20), ∂D/∂x
        if l:
            g = relu_backward_apply(g, products[l - 1][2], half)  # eq. (20), ∂R/∂z
    g = flatten.unflatten_apply(g, layers.size)  # eq. (20), F⁻¹
    for l in range(len(layers.convolutions) - 1, -1, -1):  # noqa: E741
        x, w, code, geometry = layers.convolutions[l]
        d = conv_relu_pool.relu_pool_backward_apply(g, code, geometry)  # eq. (20), P⁻¹ and ∂R/∂z
        found = [conv2d_grad_weight_apply(d, x, geometry.convolution), grad_bias_apply(d), *found]  # eq. (18), (21)
        if l:
            g = conv2d_grad_input_apply(d, w, geometry.convolution)  # eq. (20), ∂C/∂x
    return found
