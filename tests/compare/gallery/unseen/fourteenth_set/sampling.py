"""Samples: merged patches, cubic interpolation."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def merged_patches(x, weight):
    parts = [x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]]
    return torch.cat(parts, -1) @ weight.T


class PatchMerging(Function):
    @staticmethod
    def forward(ctx, x, weight):
        x0 = x[:, 0::2, 0::2, :]
        x1 = x[:, 1::2, 0::2, :]
        x2 = x[:, 0::2, 1::2, :]
        x3 = x[:, 1::2, 1::2, :]
        merged = torch.cat([x0, x1, x2, x3], dim=-1)
        ctx.save_for_backward(merged, weight)
        return merged @ weight.t()

    @staticmethod
    def backward(ctx, grad_out):
        merged, weight = ctx.saved_tensors
        n, h, w, c = merged.shape
        grad_merged = (grad_out @ weight).view(n, h, w, 2, 2, c // 4)
        grad_x = grad_merged.permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c // 4)
        grad_weight = grad_out.flatten(0, 2).t() @ merged.flatten(0, 2)
        return grad_x, grad_weight


def cubic_weight(distance):
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return torch.where(distance <= 1, near, far)


def cubic(signal, place):
    first = place.detach().floor().long() - 1
    taps = [signal[:, first + k] * cubic_weight((place - (first + k)).abs()) for k in range(4)]
    return sum(taps)


class CubicFunction(Function):
    @staticmethod
    def forward(ctx, signal, place):
        ctx.save_for_backward(signal, place)
        return cubic(signal, place)

    @staticmethod
    def backward(ctx, g):
        signal, place = ctx.saved_tensors
        grad_signal, grad_place = torch.zeros_like(signal), torch.zeros_like(place)
        for k in range(-1, 3):
            tap = place.floor().long() + k
            offset = place - tap
            distance = offset.abs()
            grad_signal.index_add_(1, tap, g * cubic_weight(distance))
            near, far = 4.5 * distance**2 - 5 * distance, -1.5 * distance**2 + 5 * distance - 4
            slope = offset.sign() * torch.where(distance <= 1, near, far)
            grad_place += (g * signal[:, tap]).sum(0) * slope
        return grad_signal, grad_place


def keys_kernel(s):
    r = s.abs()
    return torch.where(r <= 1, (1.5 * r - 2.5) * r * r + 1, ((-0.5 * r + 2.5) * r - 4) * r + 2)


def keys_kernel_grad(s):
    r = s.abs()
    return torch.where(r <= 1, 4.5 * s * r - 5 * s, -1.5 * s * r + 5 * s - 4)


class CubicSample(Function):
    @staticmethod
    def forward(ctx, signal, t):
        index = t.floor().long().unsqueeze(1) + torch.arange(-1, 3)
        s = t.unsqueeze(1) - index
        taps = signal[:, index]
        ctx.save_for_backward(taps, s, index)
        ctx.length = signal.size(1)
        return (taps * keys_kernel(s)).sum(dim=2)

    @staticmethod
    def backward(ctx, grad_out):
        taps, s, index = ctx.saved_tensors
        spread = grad_out.unsqueeze(2) * keys_kernel(s)
        grad_signal = grad_out.new_zeros(grad_out.size(0), ctx.length)
        grad_signal.index_add_(1, index.reshape(-1), spread.flatten(1))
        grad_t = (grad_out.unsqueeze(2) * taps * keys_kernel_grad(s)).sum(dim=(0, 2))
        return grad_signal, grad_t


OPERATIONS = [
    Operation(
        "cubic interpolation, sign of the far taps",
        CubicFunction,
        CubicSample,
        cubic,
        lambda: {"signal": torch.randn(2, 8), "place": torch.rand(7) * 4 + 1.3},
        named="place: the constant -4 of the far taps' derivative lacks the sign of the distance",
        kinds=("only for some values", "missing term", "another operand", "step left out", "factor of one term"),
        named_words=(r"\bsign\b|\bsgn\b", r"\b4\b"),
        located=(r"gradient of place",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "merged patches, order of the four parts",
            PatchMerging.apply,
            merged_patches,
            lambda: {"x": torch.randn(2, 4, 6, 3), "weight": torch.randn(5, 12)},
        ),
        named="x: the parts are in the order row by row, where forward has them column by column: two are exchanged",
        kinds=("permuted", "swapped", "transposed", "not transposed"),
        named_words=(r"permut", r"swap|exchang", r"transpos", r"order of"),
        located=(r"gradient of x",),
    ),
]
