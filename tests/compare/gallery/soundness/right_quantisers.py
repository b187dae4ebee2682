"""Right Functions with kinks, ties, quantisers and selections, and with inputs that lie exactly on the kinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from compare.case import Case
from tests.compare.gallery.soundness import kinked_functions as kinked
from tests.compare.gallery.soundness.flips import WIDE, in_own_dtype, quantise_backward
from tests.compare.gallery.wrong_function import randn


def right(
    name: str,
    native: Callable[..., Any],
    backward: Callable[..., Any],
    make_inputs: Callable[[], Any],
    forward: Callable[..., Any] | None = None,
    **options: Any,
) -> Case:
    """Make a case of a Function with ``backward`` in the inputs' dtype; its forward is native's if none is given."""
    return Case(f"right: {name}", in_own_dtype(forward or native, backward), native, make_inputs, **options)


def drawn_from(*values: float, shape: tuple[int, ...] = (4, 5)) -> Callable[[], dict[str, Tensor]]:
    """Return a ``make_inputs`` that draws from a few values."""
    return lambda: {"x": torch.tensor(values)[torch.randint(len(values), shape)]}


class FakeQuantise(Function):
    """Quantiser that saves its mask; the derivative is 0 at the bounds, as that of ``torch.clamp`` is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, least: int, greatest: int) -> Tensor:
        q = (x / step).round()
        ctx.save_for_backward((q > least) & (q < greatest))
        return q.clamp(least, greatest) * step

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        return g * ctx.saved_tensors[0], None, None, None


def fake_quantise(x: Tensor) -> Tensor:
    return kinked.straight_through((x / 0.5).round(), x / 0.5).clamp(-4, 3) * 0.5


def unsigned_backward(g: Tensor, x: Tensor) -> Tensor:
    q = (5 * x).floor()
    return g * ((q > 0) & (q < 5))


def channels_backward(g: Tensor, x: Tensor) -> Tensor:
    scale = x.abs().amax((0, 2, 3), keepdim=True) / 7
    return g * ((x / scale).round().abs() < 7)


def learned_backward(g: Tensor, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    scaled = x / step
    inside = scaled.abs() < 3
    return g * inside, (g * (scaled.clamp(-3, 3).round() - scaled * inside)).sum()


def zero_point_backward(g: Tensor, x: Tensor) -> Tensor:
    levels = (2 * x).round() + 3
    return g * ((levels > 0) & (levels < 7))


def hard_concrete_backward(g: Tensor, x: Tensor) -> Tensor:
    s = x.sigmoid()
    y = s * 1.2 - 0.1
    return 1.2 * g * s * (1 - s) * ((y > 0) & (y < 1))


def top_k_backward(g: Tensor, x: Tensor) -> Tensor:
    return g * torch.zeros_like(x).scatter(1, x.topk(2, dim=1).indices, 1)


def amax_backward(g: Tensor, x: Tensor) -> Tensor:
    """Share the gradient among the largest elements, as ``torch.amax`` does."""
    mask = x == x.amax(1, keepdim=True)
    return g[:, None] * mask / mask.sum(1, keepdim=True)


def values_backward(indices: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a backward that sends the gradient to one element of each row."""
    return lambda g, x: torch.zeros_like(x).scatter(1, indices(x)[:, None], g[:, None])


def pruned_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    mask = w.abs() > w.abs().flatten().kthvalue(6).values
    grad_x = torch.nn.grad.conv2d_input(x.shape, w * mask, g)
    return grad_x, torch.nn.grad.conv2d_weight(x, w.shape, g) * mask


def lookup_backward(g: Tensor, x: Tensor) -> Tensor:
    bounds, slopes = torch.linspace(-1, 1, 5).to(x), torch.linspace(0.5, 3, 6).to(x)
    return g * slopes[torch.bucketize(x, bounds)]


def ranks_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    order = (x @ w).sort(1).indices
    grad = torch.zeros(order.shape, dtype=g.dtype).scatter(
        1, order, g[:, None] * torch.linspace(1, 2, w.shape[1]).to(x)
    )
    return grad @ w.T, x.T @ grad


def hardmax_backward(g: Tensor, x: Tensor) -> Tensor:
    p = x.softmax(1)
    return p * (g - (g * p).sum(1, keepdim=True))


def relu6_linear_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ w
    g = g * ((y > 0) & (y < 6))
    return g @ w.T, x.T @ g


def maximum_of_sums_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = x @ w
    mask = y == y.amax(1, keepdim=True)
    grad = g[:, None] * mask / mask.sum(1, keepdim=True)
    return grad @ w.T, x.T @ grad


def conv_relu_pool_backward(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    y = F.conv2d(x, w, b)
    indices = F.max_pool2d(F.relu(y), 2, return_indices=True)[1]
    grad = torch.zeros_like(y).flatten(2).scatter(2, indices.flatten(2), g.flatten(2)).view_as(y) * (y > 0)
    grad_x = torch.nn.grad.conv2d_input(x.shape, w, grad)
    return grad_x, torch.nn.grad.conv2d_weight(x, w.shape, grad), grad.sum((0, 2, 3))


def two_layers(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
    return F.relu(F.relu(x @ v) @ w)


def two_layers_backward(g: Tensor, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    hidden = (x @ v).clamp(min=0)
    g = g * (hidden @ w > 0)
    grad_hidden = g @ w.T * (hidden > 0)
    return grad_hidden @ v.T, x.T @ grad_hidden, hidden.T @ g


def huber(x: Tensor, y: Tensor) -> Tensor:
    return F.huber_loss(x, y, reduction="none")


def hinge(x: Tensor, y: Tensor) -> Tensor:
    return F.relu(1 - x * y).sum(1)


def hinge_backward(g: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    g = g[:, None] * (1 - x * y > 0)
    return -g * y, -g * x


BOUNDS = drawn_from(-1.0, 0.0, 1.0)
STEPS = drawn_from(-2.5, -2.0, -1.75, -0.25, 0.0, 0.25, 0.75, 1.5, 1.75)
ROWS = randn(x=(4, 5))

RIGHT_QUANTISERS = [
    Case("right: fake quantiser", lambda x: FakeQuantise.apply(x, 0.5, -4, 3), fake_quantise, WIDE),
    Case("right: fake quantiser at its bounds", lambda x: FakeQuantise.apply(x, 0.5, -4, 3), fake_quantise, STEPS),
    right("quantiser", kinked.quantise, quantise_backward(1.0), WIDE),
    right("quantiser with values between steps", kinked.quantise, quantise_backward(1.0),
          drawn_from(-2.0, -1.75, -1.25, -0.25, 0.25, 0.75, 1.25)),
    right("unsigned quantiser", kinked.quantise_unsigned, unsigned_backward,
          lambda: {"x": 1.4 * torch.rand(20) - 0.2}),
    right("quantiser of channels", kinked.quantise_channels, channels_backward, randn(x=(2, 3, 2, 2))),
    right("quantiser with a learned step", kinked.quantise_learned, learned_backward,
          lambda: {"x": 2 * torch.randn(3, 5), "step": torch.tensor(0.5)}),
    right("quantiser with a zero point", kinked.quantise_zero_point, zero_point_backward, WIDE),
    right("clamp", lambda x: x.clamp(-1, 1), lambda g, x: g * (x.abs() < 1), randn(x=(3, 2, 4))),
    right("clamp at its bounds", lambda x: x.clamp(-1, 1), lambda g, x: g * (x.abs() < 1), BOUNDS),
    right("clamp from below at 0", lambda x: x.clamp(min=0), lambda g, x: g * (x > 0), BOUNDS),
    right("ReLU6 at its bounds", F.relu6, lambda g, x: g * ((x > 0) & (x < 6)), drawn_from(-1.0, 0.0, 3.0, 6.0, 7.0)),
    right("hard tanh at its bounds", F.hardtanh, lambda g, x: g * ((x > -1) & (x < 1)), BOUNDS),
    right("hard sigmoid at its bounds", lambda x: (x / 6 + 0.5).clamp(0, 1), lambda g, x: g * (x.abs() < 3) / 6,
          drawn_from(-3.0, 0.0, 1.5, 3.0)),
    right("soft shrinkage at its bounds", lambda x: F.softshrink(x, 1.0), lambda g, x: g * (x.abs() > 1), BOUNDS),
    right("hard shrinkage at its bounds", lambda x: F.hardshrink(x, 1.0), lambda g, x: g * (x.abs() > 1), BOUNDS),
    right("threshold", lambda x: F.threshold(x, 1.0, 0.5), lambda g, x: g * (x > 1), BOUNDS),
    right("absolute value at 0", torch.abs, lambda g, x: g * x.sign(), BOUNDS),
    right("ReLU at 0", F.relu, lambda g, x: g * (x > 0), BOUNDS),
    right("binarised", kinked.binarise, lambda g, x: g * (x.abs() < 1), WIDE),
    right("binarised at its bounds", kinked.binarise, lambda g, x: g * (x.abs() < 1), BOUNDS),
    right("ternary", kinked.ternary, lambda g, x: g * (x.abs() < 1), randn(x=(12,))),
    right("hard concrete", kinked.hard_concrete, hard_concrete_backward, lambda: {"x": 3 * torch.randn(4, 5)}),
    right("rounding without a gradient", torch.round, lambda g, x: torch.zeros_like(g), STEPS),
    right("rounding, straight through", lambda x: kinked.straight_through(x.round(), x), lambda g, x: g, WIDE),
    right("top-k", kinked.top_k, top_k_backward, ROWS),
    right("top-k of few values", kinked.top_k, top_k_backward, drawn_from(-1.0, 0.0, 1.0, 2.0)),
    right("largest of a row", kinked.largest_only, lambda g, x: g * (x == x.amax(1, keepdim=True)), ROWS),
    right("largest of a row with ties", kinked.largest_only, lambda g, x: g * (x == x.amax(1, keepdim=True)), BOUNDS),
    right("above the median", kinked.above_median, lambda g, x: torch.where(x > x.median(), g, 0.1 * g),
          randn(x=(3, 5))),
    right("above the mean", kinked.above_mean, lambda g, x: torch.where(x > x.mean((1, 2), keepdim=True), 2 * g, g),
          randn(x=(2, 3, 4))),
    right("maximum, ties shared", lambda x: x.amax(1), amax_backward, BOUNDS),
    right("maximum, first of ties", lambda x: x.max(1).values, values_backward(lambda x: x.max(1).indices), BOUNDS),
    right("minimum, first of ties", lambda x: x.min(1).values, values_backward(lambda x: x.min(1).indices), BOUNDS),
    right("median", lambda x: x.median(1).values, values_backward(lambda x: x.median(1).indices), BOUNDS),
    right("second largest", lambda x: x.kthvalue(4, 1).values, values_backward(lambda x: x.kthvalue(4, 1).indices),
          ROWS),
    right("maximum of two with ties", torch.maximum,
          lambda g, x, y: (g * ((x > y) + 0.5 * (x == y)), g * ((x < y) + 0.5 * (x == y))),
          lambda: {"x": BOUNDS()["x"], "y": BOUNDS()["x"]}),
    right("hardmax", kinked.hardmax, hardmax_backward, randn(x=(4, 3))),
    right("pruned convolution", kinked.pruned_convolution, pruned_backward, randn(x=(2, 1, 4, 4), w=(3, 1, 2, 2))),
    right("slopes from a table", kinked.lookup, lookup_backward, randn(x=(3, 4))),
    right("slopes from a table at its bounds", kinked.lookup, lookup_backward, drawn_from(-1.0, -0.5, 0.0, 0.5, 1.0)),
    right("sorted sums", kinked.weighted_ranks, ranks_backward, randn(x=(4, 3), w=(3, 4)), kinks=True),
    right("ReLU6 after a matrix product", kinked.relu6_linear, relu6_linear_backward, randn(x=(4, 5), w=(5, 4)),
          kinks=True),
    right("maximum of sums", kinked.maximum_of_sums, maximum_of_sums_backward, randn(x=(5, 4), w=(4, 3)), kinks=True),
    right("convolution, ReLU and pooling", kinked.conv_relu_pool, conv_relu_pool_backward,
          randn(x=(3, 1, 5, 5), w=(2, 1, 2, 2), b=(2,)), kinks=True),
    right("two layers with ReLU", two_layers, two_layers_backward, randn(x=(4, 3), v=(3, 5), w=(5, 2)), kinks=True),
    right("Huber loss at its bound", huber, lambda g, x, y: (g * (x - y).clamp(-1, 1), -g * (x - y).clamp(-1, 1)),
          lambda: {"x": BOUNDS()["x"], "y": BOUNDS()["x"]}),
    right("hinge loss at its bound", hinge, hinge_backward, lambda: {"x": BOUNDS()["x"], "y": BOUNDS()["x"].sign()}),
]  # fmt: skip
