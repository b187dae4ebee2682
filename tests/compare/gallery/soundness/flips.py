"""Gradients that are wrong everywhere, of functions where a rounding error moves a few elements across a kink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.grad import conv2d_input, conv2d_weight

from tests.compare.gallery.soundness import kinked_functions as kinked
from tests.compare.gallery.soundness.wrong_gradient import from_output, wrong
from tests.compare.gallery.wrong_function import hand_written, randn


def in_own_dtype(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a Function whose backward computes in the inputs' dtype, so that its masks are those of its forward."""
    return hand_written(forward, backward, exact=False)


def quantise_backward(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda g, x: factor * g * ((2 * x).round().abs() < 3)


def quantise_unsigned_backward(g: Tensor, x: Tensor) -> Tensor:
    """Multiply by 5 and do not divide by it."""
    steps = (5 * x).floor()
    return 5 * g * ((steps > 0) & (steps < 5))


def quantise_channels_backward(g: Tensor, x: Tensor) -> Tensor:
    """Multiply by the scale once more than divide by it."""
    scale = x.abs().amax((0, 2, 3), keepdim=True) / 7
    return g * ((x / scale).round().abs() < 7) * scale


def quantise_learned_backward(g: Tensor, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Omit −x / step, the derivative of the division, in the gradient of the step."""
    scaled = x / step
    return g * (scaled.abs() < 3), (g * scaled.clamp(-3, 3).round()).sum()


def quantise_zero_point_backward(g: Tensor, x: Tensor) -> Tensor:
    """Change the sign of the gradient below the zero point."""
    levels = (2 * x).round() + 3
    return torch.where(levels < 3, -g, g) * ((levels > 0) & (levels < 7))


class QuantisedLinear(Function):
    """Linear layer with quantised weights; the gradient of the weights is 5 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        steps = (w * 4).round()
        ctx.save_for_backward(x, steps)
        return x @ (steps.clamp(-4, 3) / 4).T

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, steps = ctx.saved_tensors
        return g @ (steps.clamp(-4, 3) / 4), 1.05 * g.T @ x * ((steps > -4) & (steps < 3))


def rounded_sigmoid_backward(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Omit the factor 1.5."""
    return g * x.sigmoid() * (1 - x.sigmoid()) * ((y > 0) & (y < 1))


def hard_concrete_backward(g: Tensor, x: Tensor) -> Tensor:
    """Omit the factor 1.2."""
    s = x.sigmoid()
    return g * s * (1 - s) * ((1.2 * s > 0.1) & (1.2 * s < 1.1))


def top_k_backward(g: Tensor, x: Tensor) -> Tensor:
    return 1.05 * g * torch.zeros_like(x).scatter(1, x.topk(2, dim=1).indices, 1)


def largest_only_backward(g: Tensor, x: Tensor) -> Tensor:
    return 2 * g * (x == x.amax(1, keepdim=True))


def above_median_backward(g: Tensor, x: Tensor) -> Tensor:
    return torch.where(x > x.median(), 1.1 * g, 0.11 * g)


def above_mean_backward(g: Tensor, x: Tensor) -> Tensor:
    return torch.where(x > x.mean((1, 2), keepdim=True), 2 * g, -g)


def hardmax_backward(g: Tensor, x: Tensor) -> Tensor:
    """Omit the sum over the row."""
    return g * x.softmax(1)


def pruned_convolution_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    mask = w.abs() > w.abs().flatten().kthvalue(6).values
    return conv2d_input(x.shape, w * mask, g), 0.9 * conv2d_weight(x, w.shape, g) * mask


def lookup_backward(g: Tensor, x: Tensor) -> Tensor:
    bounds, slopes = torch.linspace(-1, 1, 5).to(x), torch.linspace(0.5, 3, 6).to(x)
    return 1.05 * g * slopes[torch.bucketize(x, bounds)]


def weighted_ranks_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    ranks = (x @ w).argsort(1).argsort(1)
    grad = g[:, None] * torch.linspace(1, 2, w.shape[1]).to(x)[ranks]
    return grad @ w.T, 1.1 * x.T @ grad


def relu6_linear_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ w
    g = g * ((y > 0) & (y < 6))
    return g @ w.T, 1.1 * x.T @ g


def hard_sigmoid_linear_backward(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Take the slope for 1/5; it is 1/6."""
    g = g * (F.linear(x, w, b).abs() < 3) / 5
    return g @ w, g.T @ x, g.sum(0)


def maximum_of_sums_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ w
    grad = g[:, None] * (y == y.amax(1, keepdim=True))
    return 1.05 * grad @ w.T, x.T @ grad


def conv_relu_pool_backward(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Omit the last example in the gradient of the bias."""
    y = F.conv2d(x, w, b)
    indices = F.max_pool2d(F.relu(y), 2, return_indices=True)[1]
    grad = torch.zeros_like(y).flatten(2).scatter(2, indices.flatten(2), g.flatten(2)).view_as(y) * (y > 0)
    return conv2d_input(x.shape, w, grad), conv2d_weight(x, w.shape, grad), grad[:-1].sum((0, 2, 3))


def centred_relu_backward(g: Tensor, x: Tensor) -> Tensor:
    """Omit the gradient of the mean."""
    return g * (x > x.mean(1, keepdim=True))


def three_levels_backward(g: Tensor, x: Tensor) -> Tensor:
    return 1.02 * g * (x.round() == 0)


def whole_doubled_backward(g: Tensor, x: Tensor) -> Tensor:
    return 1.05 * torch.where(x == x.round(), 2 * g, g)


def routed_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Take p for the derivative of softmax."""
    p = (x @ w).softmax(1)
    grad = g * (p == p.amax(1, keepdim=True)) * p
    return grad @ w.T, x.T @ grad


def relu_levels_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Mistake in float32 alone: 10 % too large."""
    y = x @ w
    g = g * ((y > 0) & (y.round() > 0) & (y.round() < 3))
    g = 1.1 * g if g.dtype is torch.float32 else g
    return g @ w.T, x.T @ g


WIDE = lambda: {"x": 2 * torch.randn(4, 6)}  # noqa: E731
IMAGES = randn(x=(3, 1, 5, 5), w=(2, 1, 2, 2), b=(2,))

FLIPS = [
    wrong("quantiser: 20 % too large", "x", in_own_dtype(kinked.quantise, quantise_backward(1.2)), kinked.quantise,
          WIDE),
    wrong("quantiser: 5 % too small", "x", in_own_dtype(kinked.quantise, quantise_backward(0.95)), kinked.quantise,
          lambda: {"x": 2 * torch.randn(3, 2, 2, 2)}),
    wrong("unsigned quantiser with floor: step missing", "x",
          in_own_dtype(kinked.quantise_unsigned, quantise_unsigned_backward), kinked.quantise_unsigned,
          lambda: {"x": 1.4 * torch.rand(20) - 0.2}),
    wrong("quantiser of channels: scale applied once more", "x",
          in_own_dtype(kinked.quantise_channels, quantise_channels_backward), kinked.quantise_channels,
          randn(x=(2, 3, 2, 2))),
    wrong("quantiser with a learned step: a term of its gradient missing", "step",
          in_own_dtype(kinked.quantise_learned, quantise_learned_backward), kinked.quantise_learned,
          lambda: {"x": 2 * torch.randn(3, 5), "step": torch.tensor(0.5)}),
    wrong("quantiser with a zero point: wrong sign below it", "x",
          in_own_dtype(kinked.quantise_zero_point, quantise_zero_point_backward), kinked.quantise_zero_point, WIDE),
    wrong("linear layer with quantised weights: grad_w 5 % too large", "w", QuantisedLinear.apply,
          kinked.quantised_linear,
          randn(x=(4, 3), w=(4, 3))),
    wrong("binarised: 20 % too small", "x",
          in_own_dtype(kinked.binarise, lambda g, x: 0.8 * g * (x.abs() < 1)), kinked.binarise, WIDE),
    wrong("ternary: 30 % too large", "x",
          in_own_dtype(kinked.ternary, lambda g, x: 1.3 * g * (x.abs() < 1)), kinked.ternary, randn(x=(12,))),
    wrong("rounded sigmoid: stretch missing", "x", from_output(kinked.rounded_sigmoid, rounded_sigmoid_backward),
          kinked.rounded_sigmoid, WIDE),
    wrong("hard concrete: stretch missing", "x", in_own_dtype(kinked.hard_concrete, hard_concrete_backward),
          kinked.hard_concrete,
          WIDE),
    wrong("top-k: 5 % too large", "x", in_own_dtype(kinked.top_k, top_k_backward), kinked.top_k, randn(x=(4, 5))),
    wrong("largest of a row: doubled", "x", in_own_dtype(kinked.largest_only, largest_only_backward),
          kinked.largest_only,
          randn(x=(4, 5))),
    wrong("above the median: 10 % too large", "x", in_own_dtype(kinked.above_median, above_median_backward),
          kinked.above_median,
          randn(x=(3, 5))),
    wrong("above the mean: wrong sign below it", "x", in_own_dtype(kinked.above_mean, above_mean_backward),
          kinked.above_mean,
          randn(x=(2, 3, 4))),
    wrong("hardmax: sum over the row missing", "x", in_own_dtype(kinked.hardmax, hardmax_backward), kinked.hardmax,
          randn(x=(4, 3))),
    wrong("pruned convolution: grad_w 10 % too small", "w",
          in_own_dtype(kinked.pruned_convolution, pruned_convolution_backward), kinked.pruned_convolution,
          randn(x=(2, 1, 4, 4), w=(3, 1, 2, 2))),
    wrong("slopes from a table: 5 % too large", "x", in_own_dtype(kinked.lookup, lookup_backward), kinked.lookup,
          randn(x=(3, 4))),
    wrong("sorted sums: grad_w 10 % too large", "w", in_own_dtype(kinked.weighted_ranks, weighted_ranks_backward),
          kinked.weighted_ranks, randn(x=(4, 3), w=(3, 4))),
    wrong("ReLU6 after a matrix product: grad_w 10 % too large", "w",
          in_own_dtype(kinked.relu6_linear, relu6_linear_backward), kinked.relu6_linear, randn(x=(4, 5), w=(5, 4)),
          kinks=True),
    wrong("hard sigmoid after a linear layer: 1/5 in place of 1/6", "x",
          in_own_dtype(kinked.hard_sigmoid_linear, hard_sigmoid_linear_backward), kinked.hard_sigmoid_linear,
          randn(x=(5, 4), w=(3, 4), b=(3,)), kinks=True),
    wrong("maximum of sums: 5 % too large", "x", in_own_dtype(kinked.maximum_of_sums, maximum_of_sums_backward),
          kinked.maximum_of_sums, randn(x=(5, 4), w=(4, 3)), kinks=True),
    wrong("convolution, ReLU and pooling: last example missing in grad_b", "b",
          in_own_dtype(kinked.conv_relu_pool, conv_relu_pool_backward), kinked.conv_relu_pool, IMAGES, kinks=True),
    wrong("three levels: 2 % too large", "x", in_own_dtype(kinked.three_levels, three_levels_backward),
          kinked.three_levels,
          lambda: {"x": 1.5 * torch.randn(4, 6)}),
    wrong("whole numbers doubled: 5 % too large", "x", in_own_dtype(kinked.whole_doubled, whole_doubled_backward),
          kinked.whole_doubled, lambda: {"x": torch.randint(-4, 5, (4, 5)) / 2}),
    wrong("routing: derivative of softmax without its sum", "x", in_own_dtype(kinked.routed, routed_backward),
          kinked.routed,
          randn(x=(4, 3), w=(3, 4))),
    wrong("levels after ReLU: 10 % too large in float32", "w", in_own_dtype(kinked.relu_levels, relu_levels_backward),
          kinked.relu_levels, randn(x=(5, 4), w=(4, 4)), kinks=True),
    wrong("ReLU of centred rows: gradient of the mean missing", "x",
          in_own_dtype(kinked.centred_relu, centred_relu_backward), kinked.centred_relu, randn(x=(4, 5)), kinks=True),
]  # fmt: skip
