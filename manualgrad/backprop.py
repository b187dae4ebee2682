r"""Backpropagation as in section 4 of the formula sheet (docs/equations.md): the recursion of δ, without autograd.

    x^l = σ^{l−1}(z^{l−1})                                                       (16)
    z^l = f^l(x^l, w^l) + b^l                                                    (17)
    δ^{L−1} = −η ∂J/∂z^{L−1} = −η (x^L Σ_k y_k − y)                              (15), (19)
    δ^{l−1} = δ^l ∂f^l/∂x^l ∂σ^{l−1}/∂z^{l−1}                                    (20)
    Δw^l = δ^l ∂f^l/∂w^l                                                         (21)
    Δb^l = δ^l, summed over what b^l was broadcast over                          (18)

f^l is C or D, and σ is P∘R, F∘P∘R, R or S, as in (23). −η is part of δ, so an update adds Δw and Δb to w and b. The
factors ∂f/∂x, ∂f/∂w and ∂σ/∂z are the functions that the layers' ``backward`` calls too.

All are quantities of one example. The formula sheet marks that by a superscript b, left out here.
:func:`per_example` computes them for each example. :func:`backpropagate` computes the mean of Δw and Δb over the
batch, which an update needs: its y has the factor 1/B of (13), and so has every δ.

In the code, ``delta_out``, ``delta_x``, ``delta_w`` and ``delta_b`` are gradients of J times −η, as δ is.
``delta_out`` belongs to z^l of a dense layer, where it is δ^l, and to the pooled output of a convolution. Images
are NHWC, as the formula sheet has them. NCHW are the arguments and results of functions named ``conv_relu_pool`` and
``relu_pool``, pool indices, and ``delta_out`` of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from manualgrad._torch_compat import foreach_add_
from manualgrad.backprop_layers import ConvLayer, DenseLayer, Layer
from manualgrad.models import DocumentCNN
from manualgrad.nn import Conv2d, Dense
from manualgrad.ops.bias import grad_bias
from manualgrad.ops.conv2d import conv2d_grad_input, conv2d_grad_weight_per_example
from manualgrad.ops.conv_relu_pool import conv_relu_pool_backward, conv_relu_pool_forward
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry, make_conv_relu_pool_geometry
from manualgrad.ops.dense import dense_forward
from manualgrad.ops.flatten import ImageSize, flatten_forward, unflatten_forward
from manualgrad.ops.layout import from_nchw, from_oihw, to_nchw, to_oihw
from manualgrad.ops.precision import is_autocast_enabled
from manualgrad.ops.relu import relu_backward, relu_forward
from manualgrad.ops.relu_pool import relu_pool_backward
from manualgrad.ops.softmax import softmax_forward
from manualgrad.ops.softmax_cross_entropy import cross_entropy_backward, cross_entropy_forward
from manualgrad.ops.targets import target_distribution

__all__ = [
    "ConvLayer", "DenseLayer", "Layer", "Updates", "apply", "backpropagate", "descend", "forward", "per_example",
]  # fmt: skip


@dataclass(frozen=True)
class Updates:
    """Δw^l and Δb^l of all layers, with the quantities that lead to them.

    Attributes:
        probabilities: x^L, (N, classes).
        cost: J, (); from :func:`per_example` J^b, (N,).
        weights: Δw^l for l = 0 to L − 1, in the shape of the model's weight; from :func:`per_example` (N, ...).
        biases: Δb^l, likewise.
        layers: f^l and its inputs for l = 0 to L − 1.
        deltas: δ^l for l = 0 to L − 1, in the shape of z^l.
    """

    probabilities: Tensor
    cost: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    _layers_and_deltas_out: Callable[[], tuple[list[Layer], list[Tensor]]]

    @cached_property
    def layers(self) -> list[Layer]:
        """f^l and its inputs, for l = 0 to L − 1; read on demand."""
        return self._layers_and_deltas_out()[0]

    @cached_property
    @torch.no_grad()
    def deltas(self) -> list[Tensor]:
        """δ^l in the shape of z^l, for l = 0 to L − 1; computed on demand."""
        return [_delta(layer, grad) for layer, grad in zip(*self._layers_and_deltas_out(), strict=True)]


# ----------------------------------------------------------------------------------------------- forward


@torch.no_grad()
def forward(model: DocumentCNN, x: Tensor) -> tuple[list[Layer], Tensor]:
    """Every layer with its inputs, and x^L, the probabilities, (N, classes), of x^0 = ``x``, (N, C_in, H, W)."""
    convs, dense_layers = _split(model)
    layers: list[Layer] = []
    x = from_nchw(x)
    for conv in convs:
        geometry = _geometry(model, conv, x)
        pooled, pool_index = conv_relu_pool_forward(to_nchw(x), conv.weight, conv.bias, geometry)  # eq. (17), f = C
        layers.append(ConvLayer(x, from_oihw(conv.weight), conv.bias, geometry, pool_index))
        x = from_nchw(pooled)  # eq. (16), σ = P∘R
    x = flatten_forward(x)  # eq. (16), σ = F∘P∘R
    for dense in dense_layers:
        layers.append(DenseLayer(x, dense.weight.t(), dense.bias))
        x = relu_forward(layers[-1].z)  # eq. (16), σ = R; unused after the last layer, where σ = S
    return layers, softmax_forward(layers[-1].z, -1)  # eq. (16), σ = S


def _split(model: DocumentCNN) -> tuple[list[Conv2d], list[Dense]]:
    """The convolutions and the dense layers of ``model``."""
    modules = model.layers_with_weights()
    return [f for f in modules if isinstance(f, Conv2d)], [f for f in modules if isinstance(f, Dense)]


def _geometry(model: DocumentCNN, conv: Conv2d, x: Tensor) -> ConvReLUPoolGeometry:
    options = conv.stride, conv.padding, conv.flip_kernel, model.subgradient
    return make_conv_relu_pool_geometry(to_nchw(x), conv.weight, conv.bias, *options)


# ---------------------------------------------------------------------------------------------- backward


@torch.no_grad()
def backpropagate(model: DocumentCNN, x: Tensor, target: Tensor, eta: float = 1.0) -> Updates:
    """Δw and Δb that lower J by gradient descent: their mean over the batch.

    Args:
        x: images, (N, C_in, H, W).
        target: class indices (N,), of which −100 leaves an example out, or probabilities (N, classes).
        eta: learning rate η. With −1, Δw and Δb are the gradients ∂J/∂w and ∂J/∂b.

    Raises:
        TypeError, ValueError, IndexError: targets that :func:`manualgrad.functional.softmax_cross_entropy` refuses.
    """
    updates = _backpropagate_by_plan(model, x, target, eta)
    if updates is not None:
        return updates
    layers, probabilities = forward(model, x)
    logits = layers[-1].z
    distribution = target_distribution(logits, target, None, -100, "mean", 0.0)
    cost = cross_entropy_forward(logits, distribution.y, True)
    if isinstance(distribution.is_empty, Tensor):
        cost = cost.masked_fill(distribution.is_empty, torch.nan)  # the mean over no example
    return _recursion(model, layers, probabilities, cost, distribution.y, eta, _mean_updates)


@torch.no_grad()
def per_example(model: DocumentCNN, x: Tensor, target: Tensor, eta: float = 1.0) -> Updates:
    """The quantities with the superscript b: δ^{lb}, Δw^{lb} and Δb^{lb} of every example.

    Arguments and errors are those of :func:`backpropagate`. ``cost``, ``weights`` and ``biases`` have a first
    dimension N; if no example is left out, their mean over it is what :func:`backpropagate` returns. ``deltas`` lack
    the factor 1/N that those of :func:`backpropagate` have. There is no loop over the examples.
    """
    layers, probabilities = forward(model, x)
    logits = layers[-1].z
    y = target_distribution(logits, target, None, -100, "sum", 0.0).y
    costs = cross_entropy_forward(logits, y, False)
    return _recursion(model, layers, probabilities, costs, y, eta, _updates_of_each)


# Of a layer, from delta_out: Δw, Δb and delta_x, which a convolution computes only if it is needed.
LayerUpdates = Callable[[Layer, Tensor, bool], tuple[Tensor, Tensor, Tensor]]


def _recursion(
    model: DocumentCNN,
    layers: list[Layer],
    probabilities: Tensor,
    cost: Tensor,
    y: Tensor,
    eta: float,
    layer_updates: LayerUpdates,
) -> Updates:
    """δ^l, Δw^l and Δb^l for l = L − 1 to 0."""
    logits = layers[-1].z
    delta_out = cross_entropy_backward(logits.new_tensor(-eta), logits, y)  # eq. (15), (19)
    delta_out = delta_out.to(logits.dtype)  # y of a label is float32 for logits of 16 bits
    weights, biases, deltas_out = (list[Tensor]() for _ in range(3))
    for l in range(len(layers) - 1, -1, -1):  # noqa: E741
        delta_w, delta_b, delta_x = layer_updates(layers[l], delta_out, l > 0)  # eq. (18), (21), ∂f/∂x of (20)
        weights.insert(0, delta_w)
        biases.insert(0, delta_b)
        deltas_out.insert(0, delta_out)
        if l > 0:
            delta_out = _delta_out(layers[l - 1], delta_x, model.subgradient)  # eq. (20), ∂σ/∂z
    return Updates(probabilities, cost, weights, biases, lambda: (layers, deltas_out))


def _mean_updates(layer: Layer, delta_out: Tensor, needs_delta_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Δw and Δb, added up over the examples, and delta_x."""
    if isinstance(layer, DenseLayer):
        delta_x = dense_forward(delta_out, layer.w.t(), None)  # eq. (20), ∂D/∂x
        delta_w = dense_forward(delta_out.t(), layer.x, None)  # eq. (21), ∂D/∂w: a matrix product
        return delta_w, grad_bias(delta_out), delta_x  # eq. (18)
    operands = delta_out, to_nchw(layer.x), to_oihw(layer.w), layer.pool_index, layer.geometry
    needed = (needs_delta_x, True, True)  # of delta_x, delta_w and delta_b; P⁻¹ and ∂R/∂z of eq. (20) come first
    grads = conv_relu_pool_backward(*operands, needed)  # eq. (18), (20), (21), ∂C/∂x and ∂C/∂w
    delta_x, delta_w, delta_b = cast("tuple[Tensor, Tensor, Tensor]", grads)
    return delta_w, delta_b, delta_x


def _updates_of_each(layer: Layer, delta_out: Tensor, needs_delta_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Δw and Δb of each example, and delta_x."""
    delta = _delta(layer, delta_out)
    if isinstance(layer, DenseLayer):
        delta_w = delta.unsqueeze(2) * layer.x.unsqueeze(1)  # eq. (21), ∂D/∂w
        return delta_w, delta, dense_forward(delta, layer.w.t(), None)  # eq. (18), (20), ∂D/∂x
    convolution = layer.geometry.convolution
    delta_w = conv2d_grad_weight_per_example(delta, layer.x, convolution).permute(0, 4, 3, 1, 2)  # eq. (21), ∂C/∂w
    delta_x = delta
    if needs_delta_x:
        delta_x = to_nchw(conv2d_grad_input(delta, layer.w, convolution).contiguous())  # eq. (20), ∂C/∂x
    return delta_w, delta.sum((1, 2)), delta_x  # eq. (18)


def _delta_out(layer: Layer, delta_x: Tensor, subgradient: float) -> Tensor:
    """δ^l of a dense layer, or the gradient of a convolution's pooled output, from ``delta_x`` = −η ∂J/∂x^{l+1}.

    P⁻¹ and ∂R/∂z of a convolution are for :func:`_delta`, or part of ``conv_relu_pool_backward``.
    """
    if isinstance(layer, DenseLayer):
        return relu_backward(delta_x, layer.z, subgradient)  # eq. (20), ∂R/∂z
    if delta_x.dim() == 2:
        height, width = layer.geometry.pooling.output_size
        size = ImageSize(layer.w.shape[3], height, width)
        return to_nchw(unflatten_forward(delta_x, size))  # eq. (20), F⁻¹
    return delta_x


def _delta(layer: Layer, delta_out: Tensor) -> Tensor:
    """δ^l, in the shape of z^l."""
    if isinstance(layer, DenseLayer):
        return delta_out
    nchw = relu_pool_backward(delta_out, layer.pool_index, layer.geometry)  # eq. (20), P⁻¹ and ∂R/∂z
    return from_nchw(nchw)


# ------------------------------------------------------------------------------------------------ update


@torch.no_grad()
def apply(model: DocumentCNN, updates: Updates) -> None:
    """Add Δw^l to w^l and Δb^l to b^l, in place."""
    modules = model.layers_with_weights()
    parameters = [f.weight for f in modules] + [f.bias for f in modules]
    foreach_add_(parameters, updates.weights + updates.biases)  # one call for all parameters


@torch.no_grad()
def descend(model: DocumentCNN, x: Tensor, target: Tensor, eta: float) -> Updates:
    """A step of gradient descent: :func:`backpropagate` and :func:`apply`.

    If a plan supports the model and x (``network/guards.py``), one call of compiled kernels computes both.
    """
    updates = _backpropagate_by_plan(model, x, target, eta, update=True)
    if updates is None:
        updates = backpropagate(model, x, target, eta)
        apply(model, updates)
    return updates


# ------------------------------------------------------------------- the same, computed by a compiled plan


def _backpropagate_by_plan(
    model: DocumentCNN, x: Tensor, target: Tensor, eta: float, *, update: bool = False
) -> Updates | None:
    """:func:`backpropagate`, and with ``update`` :func:`apply` too, as one call of compiled kernels.

    None if no plan supports the model and x, the target is not a tensor of class indices, autocast is on, or
    :meth:`manualgrad.network.plan.Plan.loss_and_grads` returns None.
    """
    if (
        not isinstance(x, Tensor)
        or not isinstance(target, Tensor)
        or target.is_floating_point()
        or is_autocast_enabled(x)
    ):
        return None
    planned = model.find_plan(x)
    if isinstance(planned, str):
        return None
    plan, parameters = planned
    result = plan.loss_and_grads(x, target, parameters, -eta, update=update)  # eq. (13) to (21)
    if result is None:
        return None
    if update:
        torch.autograd.graph.increment_version(parameters)

    def layers_and_deltas_out() -> tuple[list[Layer], list[Tensor]]:
        inner_inputs, pool_indices, deltas_out = plan.intermediates(result)
        inputs = [from_nchw(x), *inner_inputs]
        convs, dense_layers = _split(model)
        layers: list[Layer] = []
        for x_l, conv, pool_index in zip(inputs[: len(convs)], convs, pool_indices, strict=True):
            layers.append(ConvLayer(x_l, from_oihw(conv.weight), conv.bias, _geometry(model, conv, x_l), pool_index))
        for x_l, dense in zip(inputs[len(convs) :], dense_layers, strict=True):
            layers.append(DenseLayer(x_l, dense.weight.t(), dense.bias))
        return layers, deltas_out

    weights, biases = result.steps[::2], result.steps[1::2]  # in the order of the parameters: w0, b0, w1, b1, ...
    return Updates(result.probabilities, result.loss, weights, biases, layers_and_deltas_out)
