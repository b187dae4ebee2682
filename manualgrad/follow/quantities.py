"""Every quantity of one digit, forward and backward, as ``backprop.per_example`` computes it.

Shapes are the formula sheet's, without the batch: images (H, W, C), kernels (kH, kW, C_in, C_out), dense weights
(in_features, out_features). Names of the quantities, for l = 0 to L − 1:

    x{l}, w{l}, b{l}, z{l}     as in equations (16) and (17); x{L} are the probabilities
    argmax{l}                  of a convolution: the place of each window's maximum, 0 to 3 row by row (uint8)
    delta{l}, dw{l}, db{l}     δ^l, Δw^l and Δb^l of equations (18) to (21), with −η
    dx{l}                      δ^l ∂f^l/∂x^l, which is −η ∂J/∂x^l, for l ≥ 1
    spread{l}                  of a convolution: P⁻¹ of what the next layer sends back, not yet times ∂R/∂z
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from manualgrad import backprop, kernels
from manualgrad.backprop import ConvLayer, Updates
from manualgrad.models import DocumentCNN
from manualgrad.ops.conv2d import conv2d_grad_input
from manualgrad.ops.dense import dense_forward
from manualgrad.ops.flatten import ImageSize, unflatten_forward
from manualgrad.ops.layout import from_nchw, from_oihw, to_nchw
from manualgrad.ops.max_pool2d import max_pool2d_backward, max_pool2d_forward
from manualgrad.ops.relu import relu_forward


@dataclass(frozen=True)
class Followed:
    """One digit at one state of the weights.

    Attributes:
        quantities: tensors by name, see the module's docstring; ``y`` is the target, (classes,).
        cost: J of the digit.
        cost_after_step: J of the digit after its own Δw and Δb were added to w and b.
    """

    quantities: dict[str, Tensor]
    cost: float
    cost_after_step: float


@contextmanager
def formulas_only() -> Iterator[None]:
    """Compute by the formulas, not by kernels, so that the lines of code on the page are the ones that ran."""
    instructions = kernels.available().instructions
    if instructions is None:
        yield
        return
    kernels.choose("off")
    try:
        yield
    finally:
        kernels.choose(instructions)


@torch.no_grad()
def follow_digit(model: DocumentCNN, image: Tensor, label: int, eta: float) -> Followed:
    """Follow one image, (1, 1, H, W), through ``model`` and back. The weights are the same afterwards."""
    with formulas_only():
        target = torch.tensor([label])
        updates = backprop.per_example(model, image, target, eta)
        quantities = _forward_quantities(updates) | _backward_quantities(updates)
        quantities["y"] = torch.eye(model.classes, dtype=image.dtype)[label]
        before = [parameter.clone() for parameter in model.parameters()]
        backprop.apply(model, backprop.backpropagate(model, image, target, eta))
        cost_after_step = backprop.per_example(model, image, target, eta).cost.item()
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
    return Followed({name: q.clone() for name, q in quantities.items()}, updates.cost.item(), cost_after_step)


def _forward_quantities(updates: Updates) -> dict[str, Tensor]:
    quantities = {f"x{len(updates.layers)}": updates.probabilities[0]}
    for l, layer in enumerate(updates.layers):  # noqa: E741
        quantities |= {f"x{l}": layer.x[0], f"w{l}": layer.w, f"z{l}": layer.z[0]}
        if layer.b is not None:
            quantities[f"b{l}"] = layer.b
        if isinstance(layer, ConvLayer):
            quantities[f"argmax{l}"] = _argmax(layer)[0]
    return quantities


def _backward_quantities(updates: Updates) -> dict[str, Tensor]:
    quantities: dict[str, Tensor] = {}
    layers, deltas = updates.layers, updates.deltas
    for l in range(len(layers) - 1, -1, -1):  # noqa: E741
        layer, delta = layers[l], deltas[l]
        dw = updates.weights[l][0]
        quantities |= {f"delta{l}": delta[0], f"db{l}": updates.biases[l][0]}
        quantities[f"dw{l}"] = from_oihw(dw) if isinstance(layer, ConvLayer) else dw.t()
        if l == 0:
            break
        if isinstance(layer, ConvLayer):
            dx = conv2d_grad_input(delta, layer.w, layer.geometry.convolution)
        else:
            dx = dense_forward(delta, layer.w.t(), None)
        quantities[f"dx{l}"] = dx[0]
        earlier = layers[l - 1]
        if isinstance(earlier, ConvLayer):
            quantities[f"spread{l - 1}"] = spread(dx, earlier)[0]
    return quantities


def spread(dx: Tensor, layer: ConvLayer) -> Tensor:
    """P⁻¹(dx), or P⁻¹(F⁻¹(dx)) of a flattened dx: each number at the place of its maximum. (N, H, W, C)."""
    height, width = layer.geometry.pooling.output_size
    if dx.dim() == 2:
        dx = unflatten_forward(dx, ImageSize(layer.w.shape[3], height, width))
    return from_nchw(max_pool2d_backward(to_nchw(dx), to_nchw(_argmax(layer)), layer.geometry.pooling))


def _argmax(layer: ConvLayer) -> Tensor:
    return max_pool2d_forward(relu_forward(layer.z), layer.geometry.pooling)[1]
