r"""z^{L−1} of equations (22) and (23) as one Function: C, P∘R, C, F∘P∘R, D, R, D by one program of kernels.

Its formulas are those of the layers, and its derivatives are section 4's recursion. It exists where a plan does (see
``kernels/network.py``); everywhere else, and for derivatives of derivatives, the layers' own Functions serve.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.functions import flatten, fused
from manualgrad.functions.bias import pull_to_bias
from manualgrad.functions.conv2d import pull_to_input, pull_to_weight
from manualgrad.functions.dense import weigh
from manualgrad.functions.relu import pull_to_z, rectify
from manualgrad.kernels.network import Network, Plan
from manualgrad.kernels.plain import is_served


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
        found = None if torch.is_grad_enabled() or not is_served(g) else ctx.plan.backward(g, x, kept, weights)
        if found is None:
            if any(b._version != version for b, version in ctx.biases):
                raise RuntimeError("a bias needed for derivatives was modified by an inplace operation")
            biases = [b for b, _ in ctx.biases]
            found = layer_by_layer(g, x, list(zip(weights, biases, strict=True)), ctx.plan.network)
        return None, None, *found


def logits(x: Tensor, plan: Plan, parameters: list[Tensor]) -> Tensor:
    """z^{L−1} of tensors that the plan takes."""
    return Logits.apply(x, plan, *parameters) if torch.is_grad_enabled() else plan.forward(x, parameters)[0]


def layer_by_layer(g: Tensor, x: Tensor, pairs: list[tuple[Tensor, Tensor]], network: Network) -> list[Tensor]:
    """∂J/∂w and ∂J/∂b of each layer from ``g``, ∂J/∂z^{L−1}, by the layers' Functions, fit to be differentiated;
    ``pairs`` are each w and b."""
    half, stages, convolutions, products = network.subgradient, len(network.convolutions), [], []
    for w, b in pairs[:stages]:
        geometry = fused.geometry_of(x, w, b, 1, 0, network.flip, half)
        pooled, code = fused.fused(x, w, b, geometry)  # eq. (16), (17), σ = P∘R, f = C
        convolutions.append((x, w, code, geometry))
        x = pooled
    size = flatten.ImageSize(*x.shape[1:])
    x = flatten.flatten_batch(x)  # eq. (16), F
    for w, b in pairs[stages:]:
        z = weigh(x, w, b)  # eq. (17), f = D
        products.append((x, w, z))
        x = rectify(z, half)  # eq. (16), σ = R
    found: list[Tensor] = []
    for l in range(len(products) - 1, -1, -1):  # noqa: E741
        x, w, _ = products[l]
        found = [weigh(g.t(), x.t(), None), pull_to_bias(g), *found]  # eq. (18), (21)
        g = weigh(g, w.t(), None)  # eq. (20), ∂D/∂x
        if l:
            g = pull_to_z(g, products[l - 1][2], half)  # eq. (20), ∂R/∂z
    g = flatten.unflatten(g, size)  # eq. (20), F⁻¹
    for l in range(stages - 1, -1, -1):  # noqa: E741
        x, w, code, geometry = convolutions[l]
        d = fused.spread_back(g, code, geometry)  # eq. (20), P⁻¹ and ∂R/∂z
        found = [pull_to_weight(d, x, geometry.convolution), pull_to_bias(d), *found]  # eq. (18), (21)
        if l:
            g = pull_to_input(d, w, geometry.convolution)  # eq. (20), ∂C/∂x
    return found
