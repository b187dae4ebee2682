r"""The layers of a network by Functions that can be differentiated again, for what a plan does not compute.

These are second derivatives, and gradients with an infinity or NaN that kernels, which skip zeros, would hide.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from manualgrad.network.layers import POOL, Conv, Dense, Flatten, Layer, MaxPool, NetworkSpec
from manualgrad.ops.bias import grad_bias_apply
from manualgrad.ops.conv2d import conv2d_apply, conv2d_grad_input_apply, conv2d_grad_weight_apply
from manualgrad.ops.conv2d_geometry import Conv2dGeometry, make_conv2d_geometry
from manualgrad.ops.conv_relu_pool import conv_relu_pool_apply
from manualgrad.ops.conv_relu_pool_geometry import make_conv_relu_pool_geometry
from manualgrad.ops.dense import dense_apply
from manualgrad.ops.flatten import ImageSize, flatten_apply, unflatten_apply
from manualgrad.ops.max_pool2d import max_pool2d_apply, max_pool2d_backward_apply
from manualgrad.ops.max_pool2d_geometry import make_max_pool2d_geometry
from manualgrad.ops.relu import relu_apply, relu_backward_apply
from manualgrad.ops.relu_pool import relu_pool_backward_apply

Pair = tuple[Tensor, Tensor]
# The gradient of a layer's output and whether that of its input is needed, to (that, those of weight and bias).
Backward = Callable[[Tensor, bool], tuple[Tensor, list[Tensor]]]


def forward(x: Tensor, network: NetworkSpec, pairs: list[Pair]) -> tuple[Tensor, list[Backward]]:
    """z^{L−1}, (N, classes), and the backward of each layer; ``pairs`` are the weights with their biases."""
    remaining, backwards = iter(pairs), list[Backward]()
    for layer in network.layers:
        x, backward_of_layer = _forward(layer, x, remaining)
        backwards.append(backward_of_layer)
    return x, backwards


def backward(g: Tensor, backwards: list[Backward]) -> list[Tensor]:
    """∂J/∂w and ∂J/∂b of each layer from ``g``, ∂J/∂z^{L−1}."""
    grads: list[Tensor] = []
    for n in range(len(backwards) - 1, -1, -1):
        g, parameter_grads = backwards[n](g, n > 0)
        grads = [*parameter_grads, *grads]
    return grads


def _forward(layer: Layer, x: Tensor, pairs: object) -> tuple[Tensor, Backward]:
    if isinstance(layer, Flatten):
        return _flatten(x, layer)
    w, b = next(pairs)  # type: ignore[call-overload]
    return _conv(x, w, b, layer) if isinstance(layer, Conv) else _dense(x, w, b, layer)


def _conv(x: Tensor, w: Tensor, b: Tensor, layer: Conv) -> tuple[Tensor, Backward]:
    if layer.subgradient is not None and layer.pool == POOL and layer.dilation == (1, 1):
        return _conv_relu_pool(x, w, b, layer)
    geometry = make_conv2d_geometry(x, w, b, layer.stride, layer.padding, layer.dilation, 1, layer.flip_kernel)
    z, subgradient = conv2d_apply(x, w, b, geometry), layer.subgradient  # eq. (17), f = C
    y = z if subgradient is None else relu_apply(z, subgradient)  # eq. (16), σ = R
    out, unpool = (y, None) if layer.pool is None else _pool(y, layer.pool)

    def backward_of_layer(g: Tensor, needs_grad_x: bool) -> tuple[Tensor, list[Tensor]]:
        if unpool is not None:
            g = unpool(g)  # eq. (20), P⁻¹
        if subgradient is not None:
            g = relu_backward_apply(g, z, subgradient)  # eq. (20), ∂R/∂z
        return _conv_grads(g, x, w, geometry, needs_grad_x)

    return out, backward_of_layer


def _pool(y: Tensor, pool: MaxPool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """P(y) and P⁻¹."""
    sizes = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    geometry = make_max_pool2d_geometry(tuple(y.shape), *sizes)
    maximum, pool_index = max_pool2d_apply(y, geometry)  # eq. (16), σ = P
    return maximum, lambda g: max_pool2d_backward_apply(g, pool_index, geometry)


def _conv_relu_pool(x: Tensor, w: Tensor, b: Tensor, layer: Conv) -> tuple[Tensor, Backward]:
    geometry = make_conv_relu_pool_geometry(
        x, w, b, layer.stride, layer.padding, layer.flip_kernel, layer.subgradient or 0.0
    )
    pooled, pool_index = conv_relu_pool_apply(x, w, b, geometry)  # eq. (16), (17), σ = P∘R, f = C

    def backward_of_layer(g: Tensor, needs_grad_x: bool) -> tuple[Tensor, list[Tensor]]:
        delta = relu_pool_backward_apply(g, pool_index, geometry)  # eq. (20), P⁻¹ and ∂R/∂z
        return _conv_grads(delta, x, w, geometry.convolution, needs_grad_x)

    return pooled, backward_of_layer


def _conv_grads(
    delta: Tensor, x: Tensor, w: Tensor, geometry: Conv2dGeometry, needs_grad_x: bool
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of x if it is needed, else ``delta``, and those of weight and bias."""
    grads = [conv2d_grad_weight_apply(delta, x, geometry), grad_bias_apply(delta)]  # eq. (18), (21)
    return conv2d_grad_input_apply(delta, w, geometry) if needs_grad_x else delta, grads  # eq. (20), ∂C/∂x


def _flatten(x: Tensor, layer: Flatten) -> tuple[Tensor, Backward]:
    if layer.channel_major:
        return x.flatten(1), lambda g, _: (g.unflatten(1, x.shape[1:]), [])
    size = ImageSize(*x.shape[1:])
    return flatten_apply(x), lambda g, _: (unflatten_apply(g, size), [])  # eq. (16), (20), F and F⁻¹


def _dense(x: Tensor, w: Tensor, b: Tensor, layer: Dense) -> tuple[Tensor, Backward]:
    z, subgradient = dense_apply(x, w, b), layer.subgradient  # eq. (17), f = D

    def backward_of_layer(g: Tensor, needs_grad_x: bool) -> tuple[Tensor, list[Tensor]]:
        if subgradient is not None:
            g = relu_backward_apply(g, z, subgradient)  # eq. (20), ∂R/∂z
        grads = [dense_apply(g.t(), x.t(), None), grad_bias_apply(g)]  # eq. (18), (21)
        return dense_apply(g, w.t(), None) if needs_grad_x else g, grads  # eq. (20), ∂D/∂x

    return z if subgradient is None else relu_apply(z, subgradient), backward_of_layer  # eq. (16), σ = R
