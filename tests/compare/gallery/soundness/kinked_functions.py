"""Functions in which a rounding error may move an element across a kink: quantisers, selections, ReLU after a sum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def straight_through(values: Tensor, x: Tensor) -> Tensor:
    """Return ``values``; the gradient goes to x unchanged."""
    return x + (values - x).detach()


def quantise(x: Tensor) -> Tensor:
    return straight_through((2 * x).round(), 2 * x).clamp(-3, 3) / 2


def quantise_unsigned(x: Tensor) -> Tensor:
    return straight_through((5 * x).floor(), 5 * x).clamp(0, 5) / 5


def quantise_channels(x: Tensor) -> Tensor:
    scale = x.detach().abs().amax((0, 2, 3), keepdim=True) / 7
    return straight_through((x / scale).round(), x / scale).clamp(-7, 7) * scale


def quantise_learned(x: Tensor, step: Tensor) -> Tensor:
    """Quantise with a step that is learned: LSQ."""
    clamped = (x / step).clamp(-3, 3)
    return straight_through(clamped.round(), clamped) * step


def quantise_zero_point(x: Tensor) -> Tensor:
    levels = straight_through((2 * x).round(), 2 * x) + 3
    return (levels.clamp(0, 7) - 3) / 2


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


def hard_concrete(x: Tensor) -> Tensor:
    return (x.sigmoid() * 1.2 - 0.1).clamp(0, 1)


def top_k(x: Tensor) -> Tensor:
    return x * torch.zeros_like(x).scatter(1, x.topk(2, dim=1).indices, 1)


def largest_only(x: Tensor) -> Tensor:
    return torch.where(x == x.detach().amax(1, keepdim=True), x, 0)


def above_median(x: Tensor) -> Tensor:
    return torch.where(x > x.detach().median(), x, 0.1 * x)


def above_mean(x: Tensor) -> Tensor:
    return torch.where(x > x.detach().mean((1, 2), keepdim=True), 2 * x, x)


def hardmax(x: Tensor) -> Tensor:
    return straight_through(F.one_hot(x.argmax(1), x.shape[1]).to(x), x.softmax(1))


def pruned_convolution(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w * (w.detach().abs() > w.detach().abs().flatten().kthvalue(6).values))


def lookup(x: Tensor) -> Tensor:
    bounds, slopes = torch.linspace(-1, 1, 5).to(x), torch.linspace(0.5, 3, 6).to(x)
    return x * slopes[torch.bucketize(x.detach(), bounds)]


def weighted_ranks(x: Tensor, w: Tensor) -> Tensor:
    """Weighted sum of each row of x @ w in sorted order."""
    return ((x @ w).sort(1).values * torch.linspace(1, 2, w.shape[1]).to(x)).sum(1)


def relu6_linear(x: Tensor, w: Tensor) -> Tensor:
    return F.relu6(x @ w)


def hard_sigmoid_linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (F.linear(x, w, b) / 6 + 0.5).clamp(0, 1)


def maximum_of_sums(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w).amax(1)


def conv_relu_pool(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2)


def centred_relu(x: Tensor) -> Tensor:
    return F.relu(x - x.mean(1, keepdim=True))


def three_levels(x: Tensor) -> Tensor:
    return straight_through(x.round(), x).clamp(-1, 1)


def whole_doubled(x: Tensor) -> Tensor:
    return torch.where(x == x.detach().round(), 2 * x, x)


def routed(x: Tensor, w: Tensor) -> Tensor:
    """Probability of the most probable of several experts; 0 for the others."""
    p = (x @ w).softmax(1)
    return p * (p == p.detach().amax(1, keepdim=True))


def relu_levels(x: Tensor, w: Tensor) -> Tensor:
    """ReLU after a matrix product, rounded to four levels."""
    y = F.relu(x @ w)
    return straight_through(y.round(), y).clamp(0, 3)
