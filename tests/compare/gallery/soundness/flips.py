"""Gradients that are wrong everywhere, of functions where a rounding error moves a few elements across a kink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.grad import conv2d_input, conv2d_weight

from tests.compare.gallery.soundness.wrong_gradient import from_output, wrong
from tests.compare.gallery.wrong_function import hand_written, randn


def straight_through(values: Tensor, x: Tensor) -> Tensor:
    """Return ``values``; the gradient goes to x unchanged."""
    return x + (values - x).detach()


def in_own_dtype(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a Function whose backward computes in the inputs' dtype, so that its masks are those of its forward."""
    return hand_written(forward, backward, exact=False)


# ------------------------------------------------------------------------------------------------ quantisers


def quantise(x: Tensor) -> Tensor:
    return straight_through((2 * x).round(), 2 * x).clamp(-3, 3) / 2


def quantise_backward(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda g, x: factor * g * ((2 * x).round().abs() < 3)


def quantise_unsigned(x: Tensor) -> Tensor:
    return straight_through((5 * x).floor(), 5 * x).clamp(0, 5) / 5


def quantise_unsigned_backward(g: Tensor, x: Tensor) -> Tensor:
    """Multiply by 5 and do not divide by it."""
    steps = (5 * x).floor()
    return 5 * g * ((steps > 0) & (steps < 5))


def quantise_channels(x: Tensor) -> Tensor:
    scale = x.detach().abs().amax((0, 2, 3), keepdim=True) / 7
    return straight_through((x / scale).round(), x / scale).clamp(-7, 7) * scale


def quantise_channels_backward(g: Tensor, x: Tensor) -> Tensor:
    """Multiply by the scale once more than divide by it."""
    scale = x.abs().amax((0, 2, 3), keepdim=True) / 7
    return g * ((x / scale).round().abs() < 7) * scale


def quantise_learned(x: Tensor, step: Tensor) -> Tensor:
    """Quantise with a step that is learned: LSQ."""
    clamped = (x / step).clamp(-3, 3)
    return straight_through(clamped.round(), clamped) * step


def quantise_learned_backward(g: Tensor, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Omit −x / step, the derivative of the division, in the gradient of the step."""
    scaled = x / step
    return g * (scaled.abs() < 3), (g * scaled.clamp(-3, 3).round()).sum()


def quantise_zero_point(x: Tensor) -> Tensor:
    levels = straight_through((2 * x).round(), 2 * x) + 3
    return (levels.clamp(0, 7) - 3) / 2


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


def quantised_linear(x: Tensor, w: Tensor) -> Tensor:
    return x @ (straight_through((w * 4).round(), w * 4).clamp(-4, 3) / 4).T


def binarise(x: Tensor) -> Tensor:
    return straight_through(x.sign(), x.clamp(-1, 1))


def ternary(x: Tensor) -> Tensor:
    values = x.sign() * (x.abs() > 0.7 * x.abs().mean())
    return straight_through(values, x.clamp(-1, 1))


def rounded_sigmoid(x: Tensor) -> Tensor:
    y = 1.5 * x.sigmoid() - 0.25
    return straight_through((15 * y).round() / 15, y).clamp(0, 1)


def rounded_sigmoid_backward(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Omit the factor 1.5."""
    return g * x.sigmoid() * (1 - x.sigmoid()) * ((y > 0) & (y < 1))


def hard_concrete(x: Tensor) -> Tensor:
    return (x.sigmoid() * 1.2 - 0.1).clamp(0, 1)


def hard_concrete_backward(g: Tensor, x: Tensor) -> Tensor:
    """Omit the factor 1.2."""
    s = x.sigmoid()
    return g * s * (1 - s) * ((1.2 * s > 0.1) & (1.2 * s < 1.1))


# ------------------------------------------------------------------------------------------------ selections


def top_k(x: Tensor) -> Tensor:
    return x * torch.zeros_like(x).scatter(1, x.topk(2, dim=1).indices, 1)


def top_k_backward(g: Tensor, x: Tensor) -> Tensor:
    return 1.05 * g * torch.zeros_like(x).scatter(1, x.topk(2, dim=1).indices, 1)


def largest_only(x: Tensor) -> Tensor:
    return torch.where(x == x.detach().amax(1, keepdim=True), x, 0)


def largest_only_backward(g: Tensor, x: Tensor) -> Tensor:
    return 2 * g * (x == x.amax(1, keepdim=True))


def above_median(x: Tensor) -> Tensor:
    return torch.where(x > x.detach().median(), x, 0.1 * x)


def above_median_backward(g: Tensor, x: Tensor) -> Tensor:
    return torch.where(x > x.median(), 1.1 * g, 0.11 * g)


def above_mean(x: Tensor) -> Tensor:
    return torch.where(x > x.detach().mean((1, 2), keepdim=True), 2 * x, x)


def above_mean_backward(g: Tensor, x: Tensor) -> Tensor:
    return torch.where(x > x.mean((1, 2), keepdim=True), 2 * g, -g)


def hardmax(x: Tensor) -> Tensor:
    return straight_through(F.one_hot(x.argmax(1), x.shape[1]).to(x), x.softmax(1))


def hardmax_backward(g: Tensor, x: Tensor) -> Tensor:
    """Omit the sum over the row."""
    return g * x.softmax(1)


def pruned_convolution(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w * (w.detach().abs() > w.detach().abs().flatten().kthvalue(6).values))


def pruned_convolution_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    mask = w.abs() > w.abs().flatten().kthvalue(6).values
    return conv2d_input(x.shape, w * mask, g), 0.9 * conv2d_weight(x, w.shape, g) * mask


def lookup(x: Tensor) -> Tensor:
    bounds, slopes = torch.linspace(-1, 1, 5).to(x), torch.linspace(0.5, 3, 6).to(x)
    return x * slopes[torch.bucketize(x.detach(), bounds)]


def lookup_backward(g: Tensor, x: Tensor) -> Tensor:
    bounds, slopes = torch.linspace(-1, 1, 5).to(x), torch.linspace(0.5, 3, 6).to(x)
    return 1.05 * g * slopes[torch.bucketize(x, bounds)]


def weighted_ranks(x: Tensor, w: Tensor) -> Tensor:
    """Weighted sum of each row of x @ w in sorted order."""
    return ((x @ w).sort(1).values * torch.linspace(1, 2, w.shape[1]).to(x)).sum(1)


def weighted_ranks_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    ranks = (x @ w).argsort(1).argsort(1)
    grad = g[:, None] * torch.linspace(1, 2, w.shape[1]).to(x)[ranks]
    return grad @ w.T, 1.1 * x.T @ grad


# ---------------------------------------------------------------------------------------- kinks after sums


def relu6_linear(x: Tensor, w: Tensor) -> Tensor:
    return F.relu6(x @ w)


def relu6_linear_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ w
    g = g * ((y > 0) & (y < 6))
    return g @ w.T, 1.1 * x.T @ g


def hard_sigmoid_linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (F.linear(x, w, b) / 6 + 0.5).clamp(0, 1)


def hard_sigmoid_linear_backward(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Take the slope for 1/5; it is 1/6."""
    g = g * (F.linear(x, w, b).abs() < 3) / 5
    return g @ w, g.T @ x, g.sum(0)


def maximum_of_sums(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w).amax(1)


def maximum_of_sums_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ w
    grad = g[:, None] * (y == y.amax(1, keepdim=True))
    return 1.05 * grad @ w.T, x.T @ grad


def conv_relu_pool(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2)


def conv_relu_pool_backward(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Omit the last example in the gradient of the bias."""
    y = F.conv2d(x, w, b)
    indices = F.max_pool2d(F.relu(y), 2, return_indices=True)[1]
    grad = torch.zeros_like(y).flatten(2).scatter(2, indices.flatten(2), g.flatten(2)).view_as(y) * (y > 0)
    return conv2d_input(x.shape, w, grad), conv2d_weight(x, w.shape, grad), grad[:-1].sum((0, 2, 3))


def centred_relu(x: Tensor) -> Tensor:
    return F.relu(x - x.mean(1, keepdim=True))


def centred_relu_backward(g: Tensor, x: Tensor) -> Tensor:
    """Omit the gradient of the mean."""
    return g * (x > x.mean(1, keepdim=True))


WIDE = lambda: {"x": 2 * torch.randn(4, 6)}  # noqa: E731
IMAGES = randn(x=(3, 1, 5, 5), w=(2, 1, 2, 2), b=(2,))

FLIPS = [
    wrong("quantiser: 20 % too large", "x", in_own_dtype(quantise, quantise_backward(1.2)), quantise, WIDE),
    wrong("quantiser: 5 % too small", "x", in_own_dtype(quantise, quantise_backward(0.95)), quantise,
          lambda: {"x": 2 * torch.randn(3, 2, 2, 2)}),
    wrong("unsigned quantiser with floor: step missing", "x",
          in_own_dtype(quantise_unsigned, quantise_unsigned_backward), quantise_unsigned,
          lambda: {"x": 1.4 * torch.rand(20) - 0.2}),
    wrong("quantiser of channels: scale applied once more", "x",
          in_own_dtype(quantise_channels, quantise_channels_backward), quantise_channels, randn(x=(2, 3, 2, 2))),
    wrong("quantiser with a learned step: a term of its gradient missing", "step",
          in_own_dtype(quantise_learned, quantise_learned_backward), quantise_learned,
          lambda: {"x": 2 * torch.randn(3, 5), "step": torch.tensor(0.5)}),
    wrong("quantiser with a zero point: wrong sign below it", "x",
          in_own_dtype(quantise_zero_point, quantise_zero_point_backward), quantise_zero_point, WIDE),
    wrong("linear layer with quantised weights: grad_w 5 % too large", "w", QuantisedLinear.apply, quantised_linear,
          randn(x=(4, 3), w=(4, 3))),
    wrong("binarised: 20 % too small", "x",
          in_own_dtype(binarise, lambda g, x: 0.8 * g * (x.abs() < 1)), binarise, WIDE),
    wrong("ternary: 30 % too large", "x",
          in_own_dtype(ternary, lambda g, x: 1.3 * g * (x.abs() < 1)), ternary, randn(x=(12,))),
    wrong("rounded sigmoid: stretch missing", "x", from_output(rounded_sigmoid, rounded_sigmoid_backward),
          rounded_sigmoid, WIDE),
    wrong("hard concrete: stretch missing", "x", in_own_dtype(hard_concrete, hard_concrete_backward), hard_concrete,
          WIDE),
    wrong("top-k: 5 % too large", "x", in_own_dtype(top_k, top_k_backward), top_k, randn(x=(4, 5))),
    wrong("largest of a row: doubled", "x", in_own_dtype(largest_only, largest_only_backward), largest_only,
          randn(x=(4, 5))),
    wrong("above the median: 10 % too large", "x", in_own_dtype(above_median, above_median_backward), above_median,
          randn(x=(3, 5))),
    wrong("above the mean: wrong sign below it", "x", in_own_dtype(above_mean, above_mean_backward), above_mean,
          randn(x=(2, 3, 4))),
    wrong("hardmax: sum over the row missing", "x", in_own_dtype(hardmax, hardmax_backward), hardmax,
          randn(x=(4, 3))),
    wrong("pruned convolution: grad_w 10 % too small", "w",
          in_own_dtype(pruned_convolution, pruned_convolution_backward), pruned_convolution,
          randn(x=(2, 1, 4, 4), w=(3, 1, 2, 2))),
    wrong("slopes from a table: 5 % too large", "x", in_own_dtype(lookup, lookup_backward), lookup, randn(x=(3, 4))),
    wrong("sorted sums: grad_w 10 % too large", "w", in_own_dtype(weighted_ranks, weighted_ranks_backward),
          weighted_ranks, randn(x=(4, 3), w=(3, 4))),
    wrong("ReLU6 after a matrix product: grad_w 10 % too large", "w",
          in_own_dtype(relu6_linear, relu6_linear_backward), relu6_linear, randn(x=(4, 5), w=(5, 4)), kinks=True),
    wrong("hard sigmoid after a linear layer: 1/5 in place of 1/6", "x",
          in_own_dtype(hard_sigmoid_linear, hard_sigmoid_linear_backward), hard_sigmoid_linear,
          randn(x=(5, 4), w=(3, 4), b=(3,)), kinks=True),
    wrong("maximum of sums: 5 % too large", "x", in_own_dtype(maximum_of_sums, maximum_of_sums_backward),
          maximum_of_sums, randn(x=(5, 4), w=(4, 3)), kinks=True),
    wrong("convolution, ReLU and pooling: last example missing in grad_b", "b",
          in_own_dtype(conv_relu_pool, conv_relu_pool_backward), conv_relu_pool, IMAGES, kinks=True),
    wrong("ReLU of centred rows: gradient of the mean missing", "x",
          in_own_dtype(centred_relu, centred_relu_backward), centred_relu, randn(x=(4, 5)), kinks=True),
]  # fmt: skip
