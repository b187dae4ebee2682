"""Resampling: decimation, interpolation at given places, dilated windows."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

STRIDE, DILATION = 2, 2


class Decimate(Function):
    """Every second column of x (N, L)."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return x[:, ::STRIDE].clone()

    @staticmethod
    def backward(ctx, g):
        grad = g.new_zeros(ctx.shape)
        grad[:, ::STRIDE] = g
        return grad


class DecimateWrong(Decimate):
    @staticmethod
    def backward(ctx, g):
        grad = g.new_zeros(ctx.shape)
        grad[:, : g.shape[1]] = g
        return grad


def interpolate(x, grid):
    """Values of the rows x (N, L), linear between its columns, at grid (N, K) from -1 (first) to 1 (last column)."""
    position = (grid + 1) / 2 * (x.shape[1] - 1)
    left = position.detach().floor().clamp(0, x.shape[1] - 2)
    weight, left = position - left, left.long()
    return (1 - weight) * x.gather(1, left) + weight * x.gather(1, left + 1)


class GridSample(Function):
    """Linear interpolation at the places of grid."""

    @staticmethod
    def forward(ctx, x, grid):
        ctx.save_for_backward(x, grid)
        return interpolate(x, grid)

    @staticmethod
    def grads(ctx, g):
        x, grid = ctx.saved_tensors
        position = (grid + 1) / 2 * (x.shape[1] - 1)
        left = position.floor().clamp(0, x.shape[1] - 2)
        weight, left = position - left, left.long()
        grad = torch.zeros_like(x).scatter_add(1, left, g * (1 - weight)).scatter_add(1, left + 1, g * weight)
        return grad, g * (x.gather(1, left + 1) - x.gather(1, left))

    @staticmethod
    def backward(ctx, g):
        grad_x, grad_position = GridSample.grads(ctx, g)
        return grad_x, grad_position * ((grad_x.shape[1] - 1) / 2)


class GridSampleWrong(GridSample):
    @staticmethod
    def backward(ctx, g):
        return GridSample.grads(ctx, g)


class DilatedWindows(Function):
    """Windows of three columns, two apart, of x (N, L): (N, windows, 3)."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return torch.stack([x[:, k * DILATION : x.shape[1] - (2 - k) * DILATION] for k in range(3)], 2)

    @staticmethod
    def backward(ctx, g):
        grad = g.new_zeros(ctx.shape)
        for k in range(3):
            grad[:, k * DILATION : k * DILATION + g.shape[1]] += g[:, :, k]
        return grad


class DilatedWindowsWrong(DilatedWindows):
    @staticmethod
    def backward(ctx, g):
        grad = g.new_zeros(ctx.shape)
        for k in range(3):
            grad[:, k : k + g.shape[1]] += g[:, :, k]
        return grad


OPERATIONS = [
    Operation(
        "every second column",
        Decimate,
        DecimateWrong,
        lambda x: x[:, ::STRIDE] * 1,
        lambda: torch.randn(4, 6),
        named="the stride is ignored: the gradient is in columns 0, 1, 2 instead of 0, 2, 4",
        kinds=("permuted", "shifted"),
        named_words=(
            r"stride",
            r"(column|place|ind(ex|ices)|position)s?.*(instead|in place|other|another|wrong|for|of column|moved)",
            r"permut",
            r"j ?(→|->|/|//) ?",
        ),
        located=(r"gradient of (x|input 0)", r"column|dimension 1|dim 1|index|\bj\b"),
    ),
    Operation(
        "interpolation at places",
        GridSample,
        GridSampleWrong,
        interpolate,
        lambda: {"x": torch.randn(3, 5), "grid": 1.8 * torch.rand(3, 4) - 0.9},
        named="the gradient of grid lacks the factor (L - 1) / 2 = 2",
        kinds=("constant factor",),
        named_words=(r"\b(1/2|0\.5|half)\b", r"factor (of )?2\b", r"divided by 2"),
        located=(r"gradient of grid",),
        options={"whole_numbers": False},
    ),
    Operation(
        "dilated windows",
        DilatedWindows,
        DilatedWindowsWrong,
        lambda x: x.unfold(1, 5, 1)[:, :, ::DILATION] * 1,
        lambda: torch.randn(3, 7),
        named="the dilation is ignored: element k of window t goes to column t + k instead of t + 2 k",
        kinds=("permuted", "shifted"),
        named_words=(
            r"dilat|strid|spacing",
            r"(column|place|ind(ex|ices)|position)s?\b.*(instead|in place|other|another|wrong|moved)",
            r"(entries|coefficients|numbers) .*(other|another|wrong|different) (places|columns|ind|element)",
            r"permut|shift",
        ),
        located=(r"gradient of (x|input 0)", r"column|dimension 1|dim 1|index|place|\bj\b"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
