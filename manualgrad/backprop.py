r"""Backpropagation as section 4 of the document does it: the recursion of δ, with no autograd engine at all.

    x^l = σ^{l−1}(z^{l−1})                                                       (16)
    z^l = f^l(x^l, w^l) + b^l                                                    (17)
    δ^{L−1} = −η ∂J/∂z^{L−1} = −η (x^L − y)                                      (15), (19)
    δ^{l−1} = δ^l ∂f^l/∂x^l ∂σ^{l−1}/∂z^{l−1}                                    (20)
    Δw^l = δ^l ∂f^l/∂w^l                                                         (21)
    Δb^l = δ^l, summed over what b^l was broadcast over                          (18)

f^l is C or D, σ is P∘R, F∘P∘R, R or S, as (23) says. The factors are the very functions that the Functions' backwards
are made of: one derivation, two ways to run it. −η is part of δ, so Δw and Δb are what a step adds to w and b.

The document's superscript b makes all of these quantities of one example. :func:`per_example` has them so;
:func:`backpropagate` has what a step applies, the mean over the batch, whose 1/B is folded into y as in (13).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manualgrad.functions import conv2d, flatten, fused
from manualgrad.functions.bias import bias_gradient
from manualgrad.functions.dense import weighted_sums
from manualgrad.functions.layout import from_nchw, from_oihw, to_nchw, to_oihw
from manualgrad.functions.relu import rectified, rectified_gradient
from manualgrad.functions.softmax import softmax_values
from manualgrad.functions.softmax_cross_entropy import cross_entropy, logits_gradient
from manualgrad.functions.targets import target_distribution
from manualgrad.models import DocumentCNN


@dataclass(frozen=True)
class Layer:
    """f^l and what it met on the way forward, in the document's layout.

    ``x`` and ``z`` are x^l and z^l; ``w`` is w^l, (P+1, Q+1, R, K) or (I, J). A convolution has a ``geometry``, and
    the ``code`` of each of its windows: where the maximum came from, and what R' is there (see ``fused.py``).
    """

    x: Tensor
    w: Tensor
    z: Tensor
    geometry: fused.Geometry | None = None
    code: Tensor | None = None


@dataclass(frozen=True)
class Steps:
    """``probabilities`` is x^L, ``cost`` is J (or J^b of each example); then δ^l, Δw^l and Δb^l for l = 0 to L − 1,
    the last two in the shape of the model's weight and bias."""

    probabilities: Tensor
    cost: Tensor
    deltas: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]


@torch.no_grad()
def forward(model: DocumentCNN, x: Tensor) -> tuple[list[Layer], Tensor]:
    """Every layer with its x^l and z^l, and x^L, the probabilities (B, classes), of x^0 = ``x`` (B, C, H, W)."""
    weighted, layers = model.weighted(), []
    x = from_nchw(x)
    for f in weighted[: model.stages]:
        geometry = fused.geometry_of(
            to_nchw(x), f.weight, f.bias, f.stride, f.padding, f.flip_kernel, model.subgradient
        )
        w = from_oihw(f.weight)
        z = conv2d.convolution(x, w, f.bias, geometry.convolution)  # eq. (17), f = C
        pooled, code = fused.pooled_and_codes(z, geometry)
        layers.append(Layer(x, w, z, geometry, code))
        x = pooled  # eq. (16), σ = P∘R
    x = flatten.flatten_image(x)  # eq. (16), σ = F∘P∘R
    for f in weighted[model.stages :]:
        z = weighted_sums(x, f.weight.t(), f.bias)  # eq. (17), f = D
        layers.append(Layer(x, f.weight.t(), z))
        x = rectified(z)  # eq. (16), σ = R
    return layers, softmax_values(layers[-1].z, -1)  # eq. (16), σ = S


@torch.no_grad()
def deltas(layers: list[Layer], y: Tensor, eta: float, subgradient: float) -> list[Tensor]:
    """δ^l for l = 0 to L − 1, from the last to the first; y (B, classes) need not sum to 1."""
    last = layers[-1].z
    found = [logits_gradient(last.new_tensor(-eta), last, y)]  # eq. (15), (19)
    for here, below in zip(layers[:0:-1], layers[-2::-1], strict=True):  # l = L − 1 to 1, and l − 1
        delta = found[0]
        if here.geometry is None:
            delta = weighted_sums(delta, here.w.t(), None)  # eq. (20), ∂D/∂x
        else:
            delta = conv2d.input_gradient(delta, here.w, here.geometry.convolution)  # eq. (20), ∂C/∂x
        if below.geometry is None:
            delta = rectified_gradient(delta, below.z, subgradient)  # eq. (20), ∂R/∂z
        else:
            if here.geometry is None:
                delta = flatten.unflatten_image(delta, _image_size(below))  # F⁻¹
            delta = fused.spread(to_nchw(delta), to_nchw(below.code), below.geometry)  # eq. (20), P⁻¹ and ∂R/∂z
            delta = from_nchw(delta)
        found.insert(0, delta)
    return found


@torch.no_grad()
def backpropagate(model: DocumentCNN, x: Tensor, target: Tensor, eta: float = 1.0) -> Steps:
    """The steps that lower J: the mean over the batch, as it is added to the weights.

    Args:
        x: (B, C, H, W).
        target: class indices (B,) or probabilities (B, classes).
        eta: the learning rate η; with −1 the steps are the gradients ∂J/∂w and ∂J/∂b.

    Raises:
        TypeError, ValueError, IndexError: targets that :func:`manualgrad.functional.softmax_cross_entropy` refuses.
    """
    layers, probabilities = forward(model, x)
    y = target_distribution(layers[-1].z, target, None, -100, "mean", 0.0).y
    found = deltas(layers, y, eta, model.subgradient)
    weights, biases = [], []
    for layer, delta in zip(layers, found, strict=True):
        if layer.geometry is None:
            weights.append(weighted_sums(delta.t(), layer.x, None))  # eq. (21), ∂D/∂w
            biases.append(bias_gradient(delta))  # eq. (18)
        else:
            weights.append(to_oihw(conv2d.weight_gradient(delta, layer.x, layer.geometry.convolution)))  # eq. (21)
            biases.append(bias_gradient(to_nchw(delta)))  # eq. (18)
    return Steps(probabilities, cross_entropy(layers[-1].z, y, True), found, weights, biases)


@torch.no_grad()
def per_example(model: DocumentCNN, x: Tensor, target: Tensor, eta: float = 1.0) -> Steps:
    """The document's quantities with their superscript b: δ^{lb}, Δw^{lb} and Δb^{lb} of every example.

    Arguments and errors are those of :func:`backpropagate`. Every tensor has B for its first dimension, and the mean
    over it is what :func:`backpropagate` returns. There is no loop over the batch: a sum over b is left out.
    """
    layers, probabilities = forward(model, x)
    y = target_distribution(layers[-1].z, target, None, -100, "sum", 0.0).y
    found = deltas(layers, y, eta, model.subgradient)
    weights, biases = [], []
    for layer, delta in zip(layers, found, strict=True):
        if layer.geometry is None:
            weights.append(delta.unsqueeze(2) * layer.x.unsqueeze(1))  # eq. (21), ∂D/∂w
            biases.append(delta)  # eq. (18)
        else:
            each = conv2d.weight_gradients(delta, layer.x, layer.geometry.convolution)  # eq. (21), ∂C/∂w
            weights.append(each.permute(0, 4, 3, 1, 2))
            biases.append(delta.sum((1, 2)))  # eq. (18)
    return Steps(probabilities, cross_entropy(layers[-1].z, y, False), found, weights, biases)


@torch.no_grad()
def apply(model: DocumentCNN, steps: Steps) -> None:
    """w^l + Δw^l and b^l + Δb^l, in place."""
    layers = model.weighted()
    torch._foreach_add_([f.weight for f in layers], steps.weights)
    torch._foreach_add_([f.bias for f in layers], steps.biases)


def _image_size(layer: Layer) -> flatten.ImageSize:
    rows, columns = layer.geometry.pooling.count
    return flatten.ImageSize(layer.z.shape[3], rows, columns)
