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

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from manualgrad.models import DocumentCNN
from manualgrad.network import guards
from manualgrad.nn import Conv2d
from manualgrad.ops import conv2d, conv_relu_pool, flatten
from manualgrad.ops.bias import grad_bias
from manualgrad.ops.dense import dense_forward
from manualgrad.ops.layout import from_nchw, from_oihw, to_nchw, to_oihw
from manualgrad.ops.precision import autocast_is_on
from manualgrad.ops.relu import relu_backward, relu_forward
from manualgrad.ops.softmax import softmax_forward
from manualgrad.ops.softmax_cross_entropy import cross_entropy_backward, cross_entropy_forward
from manualgrad.ops.targets import target_distribution


@dataclass(frozen=True)
class Layer:
    """f^l and what it met on the way forward, in the document's layout.

    ``x`` and ``z`` are x^l and z^l; ``w`` is w^l, (P+1, Q+1, R, K) or (I, J). A convolution has a ``geometry``, and
    the ``code`` of each of its windows: where the maximum came from, and what R' is there (see
    ``conv_relu_pool.py``). Its z is not kept: nothing but a reader asks for it."""

    x: Tensor
    w: Tensor
    b: Tensor
    geometry: conv_relu_pool.Geometry | None = None
    code: Tensor | None = None

    @cached_property
    @torch.no_grad()
    def z(self) -> Tensor:
        if self.geometry is None:
            return dense_forward(self.x, self.w, self.b)  # eq. (17), f = D
        return conv2d.conv2d_forward(self.x, self.w, self.b, self.geometry.convolution)  # eq. (17), f = C


@dataclass(frozen=True)
class Steps:
    """``probabilities`` is x^L, ``cost`` is J (or J^b of each example); then Δw^l and Δb^l for l = 0 to L − 1, in the
    shape of the model's weight and bias; and ``layers`` and ``deltas``, δ^l."""

    probabilities: Tensor
    cost: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    _between: Callable[[], tuple[list[Layer], list[Tensor]]]  # the layers, and what each heard from the one above

    @cached_property
    def layers(self) -> list[Layer]:
        """f^l and what it met, for l = 0 to L − 1."""
        return self._between()[0]

    @cached_property
    @torch.no_grad()
    def deltas(self) -> list[Tensor]:
        """δ^l for l = 0 to L − 1. Behind a convolution only what P⁻¹ spreads was needed: it is spread here."""
        return [_delta(layer, g) for layer, g in zip(*self._between(), strict=True)]


@torch.no_grad()
def forward(model: DocumentCNN, x: Tensor) -> tuple[list[Layer], Tensor]:
    """Every layer with its x^l and z^l, and x^L, the probabilities (B, classes), of x^0 = ``x`` (B, C, H, W)."""
    weighted, layers = model.weighted(), []
    x = from_nchw(x)
    for f in weighted[: model.stages]:
        geometry = _geometry(model, f, x)
        pooled, code = conv_relu_pool.conv_relu_pool_forward(
            to_nchw(x), f.weight, f.bias, geometry
        )  # eq. (17), f = C
        layers.append(Layer(x, from_oihw(f.weight), f.bias, geometry, code))
        x = from_nchw(pooled)  # eq. (16), σ = P∘R
    x = flatten.flatten_forward(x)  # eq. (16), σ = F∘P∘R
    for f in weighted[model.stages :]:
        layers.append(Layer(x, f.weight.t(), f.bias))
        x = relu_forward(layers[-1].z)  # eq. (16), σ = R
    return layers, softmax_forward(layers[-1].z, -1)  # eq. (16), σ = S


def _geometry(model: DocumentCNN, f: Conv2d, x: Tensor) -> conv_relu_pool.Geometry:
    return conv_relu_pool.geometry_of(
        to_nchw(x), f.weight, f.bias, f.stride, f.padding, f.flip_kernel, model.subgradient
    )


def _received(layer: Layer, g: Tensor, subgradient: float) -> Tensor:
    """What a layer hears from the one above, from the gradient ``g`` of its x^{l+1}: δ^l, or what P⁻¹ has yet to
    spread."""
    if layer.geometry is None:
        return relu_backward(g, layer.z, subgradient)  # eq. (20), ∂R/∂z
    if g.dim() == 2:
        g = flatten.unflatten_forward(g, _image_size(layer))  # eq. (20), F⁻¹
        return to_nchw(g)
    return g


def _delta(layer: Layer, g: Tensor) -> Tensor:
    """δ^l."""
    if layer.geometry is None:
        return g
    return from_nchw(conv_relu_pool.relu_pool_backward(g, layer.code, layer.geometry))  # eq. (20), P⁻¹ and ∂R/∂z


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
    by_kernels = _by_kernels(model, x, target, eta)
    if by_kernels is not None:
        return by_kernels
    layers, probabilities = forward(model, x)
    last = layers[-1].z
    distribution = target_distribution(last, target, None, -100, "mean", 0.0)
    y, cost = distribution.y, cross_entropy_forward(last, distribution.y, True)
    if distribution.nothing is not False:
        cost = cost.masked_fill(distribution.nothing, torch.nan)  # the mean of none
    g, weights, biases, received = (
        cross_entropy_backward(last.new_tensor(-eta), last, y),
        [],
        [],
        [],
    )  # eq. (15), (19)
    for l in range(len(layers) - 1, -1, -1):  # noqa: E741
        layer = layers[l]
        received.insert(0, g)
        if layer.geometry is None:
            g, w, b = (
                dense_forward(g, layer.w.t(), None),  # eq. (20), ∂D/∂x
                dense_forward(g.t(), layer.x, None),  # eq. (21), ∂D/∂w
                grad_bias(g),  # eq. (18)
            )
        else:
            g, w, b = conv_relu_pool.conv_relu_pool_backward(
                g, to_nchw(layer.x), to_oihw(layer.w), layer.code, layer.geometry, (l > 0, True, True)
            )  # eq. (18), (20), (21), ∂C/∂x and ∂C/∂w, and P⁻¹ and ∂R/∂z of eq. (20)
        weights.insert(0, w)
        biases.insert(0, b)
        if l > 0:
            g = _received(layers[l - 1], g, model.subgradient)
    return Steps(probabilities, cost, weights, biases, lambda: (layers, received))


@torch.no_grad()
def descend(model: DocumentCNN, x: Tensor, target: Tensor, eta: float) -> Steps:
    """:func:`backpropagate` and :func:`apply`: a step of gradient descent, by one program where there is one."""
    steps = _by_kernels(model, x, target, eta, take=True)
    if steps is None:
        steps = backpropagate(model, x, target, eta)
        apply(model, steps)
    return steps


def _by_kernels(model: DocumentCNN, x: Tensor, target: Tensor, eta: float, take: bool = False) -> Steps | None:
    """The same by one program of kernels, and with ``take`` w + Δw; None where there is none, or labels or numbers
    are not what it takes."""
    labels = isinstance(x, Tensor) and isinstance(target, Tensor) and not target.is_floating_point()
    one = guards.plan_of(model, x) if labels and not autocast_is_on(x) else None
    found = None if one is None else one[0].steps(x, target, one[1], -eta, take=take)  # eq. (13) to (21)
    if found is None:
        return None
    if take:
        torch.autograd.graph.increment_version(one[1])

    def between() -> tuple[list[Layer], list[Tensor]]:
        xs, codes, received = one[0].between(found)
        layers = [
            Layer(x_l, from_oihw(f.weight), f.bias, _geometry(model, f, x_l), code)
            for x_l, code, f in zip([from_nchw(x), *xs], codes, model.weighted(), strict=False)
        ]
        dense = zip(xs[model.stages - 1 :], model.weighted()[model.stages :], strict=True)
        return layers + [Layer(x_l, f.weight.t(), f.bias) for x_l, f in dense], received

    return Steps(found.probabilities, found.cost, found.steps[::2], found.steps[1::2], between)


@torch.no_grad()
def per_example(model: DocumentCNN, x: Tensor, target: Tensor, eta: float = 1.0) -> Steps:
    """The document's quantities with their superscript b: δ^{lb}, Δw^{lb} and Δb^{lb} of every example.

    Arguments and errors are those of :func:`backpropagate`. Every tensor has B for its first dimension, and the mean
    over it is what :func:`backpropagate` returns. There is no loop over the batch: a sum over b is left out.
    """
    layers, probabilities = forward(model, x)
    last = layers[-1].z
    y = target_distribution(last, target, None, -100, "sum", 0.0).y
    g, weights, biases, received = (
        cross_entropy_backward(last.new_tensor(-eta), last, y),
        [],
        [],
        [],
    )  # eq. (15), (19)
    for l in range(len(layers) - 1, -1, -1):  # noqa: E741
        layer = layers[l]
        received.insert(0, g)
        delta = _delta(layer, g)
        if layer.geometry is None:
            weights.insert(0, delta.unsqueeze(2) * layer.x.unsqueeze(1))  # eq. (21), ∂D/∂w
            biases.insert(0, delta)  # eq. (18)
            g = dense_forward(delta, layer.w.t(), None)  # eq. (20), ∂D/∂x
        else:
            each = conv2d.conv2d_grad_weight_per_example(
                delta, layer.x, layer.geometry.convolution
            )  # eq. (21), ∂C/∂w
            weights.insert(0, each.permute(0, 4, 3, 1, 2))
            biases.insert(0, delta.sum((1, 2)))  # eq. (18)
            if l > 0:
                g = to_nchw(conv2d.conv2d_grad_input(delta, layer.w, layer.geometry.convolution))  # eq. (20), ∂C/∂x
        if l > 0:
            g = _received(layers[l - 1], g, model.subgradient)
    return Steps(probabilities, cross_entropy_forward(last, y, False), weights, biases, lambda: (layers, received))


@torch.no_grad()
def apply(model: DocumentCNN, steps: Steps) -> None:
    """w^l + Δw^l and b^l + Δb^l, in place."""
    layers = model.weighted()
    parameters = [f.weight for f in layers] + [f.bias for f in layers]
    torch._foreach_add_(parameters, steps.weights + steps.biases)  # one call for all


def _image_size(layer: Layer) -> flatten.ImageSize:
    rows, columns = layer.geometry.pooling.count
    return flatten.ImageSize(layer.w.shape[3], rows, columns)
