"""Colours: sharpened rows, brightness to a power, saturation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def sharpened(x, amount):
    padded = F.pad(x, (1, 1), mode="replicate")
    blurred = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    return x + amount * (x - blurred)


class SharpenedFunction(Function):
    @staticmethod
    def forward(ctx, x, amount):
        ctx.save_for_backward(x, amount)
        return sharpened(x, amount)

    @staticmethod
    def backward(ctx, g):
        x, amount = ctx.saved_tensors
        detail = sharpened(x, torch.ones_like(amount)) - x
        spread = g / 2
        spread[..., :-1] += g[..., 1:] / 4
        spread[..., 1:] += g[..., :-1] / 4
        spread[..., 0] += g[..., 0] / 4
        spread[..., -1] += g[..., -1] / 4
        return g + amount * (g - spread), (g * detail).sum().reshape(amount.shape)


def blur_transposed(g):
    g = F.pad(g, (1, 1))
    return 0.25 * g[..., :-2] + 0.5 * g[..., 1:-1] + 0.25 * g[..., 2:]


class UnsharpMask(Function):
    """x + amount * (x - blur(x)) along the rows; the blur repeats the edge."""

    @staticmethod
    def forward(ctx, x, amount):
        edge = torch.cat((x[..., :1], x, x[..., -1:]), dim=-1)
        blur = 0.25 * edge[..., :-2] + 0.5 * edge[..., 1:-1] + 0.25 * edge[..., 2:]
        high = x - blur
        ctx.save_for_backward(high, amount)
        return x + amount * high

    @staticmethod
    def backward(ctx, grad_out):
        high, amount = ctx.saved_tensors
        scaled = amount * grad_out
        grad_x = grad_out + scaled - blur_transposed(scaled)
        return grad_x, torch.sum(grad_out * high).view_as(amount)


class GammaCurve(Function):
    """Brightness to the power of a trained gamma, one for each channel (N, C, L)."""

    @staticmethod
    def forward(ctx, img, gamma):
        base = img.clamp(min=1e-2)
        out = base ** gamma[:, None]
        ctx.save_for_backward(img, base, gamma, out)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        img, base, gamma, out = ctx.saved_tensors
        grad_img = grad_out * gamma[:, None] * out / base * (img > 1e-2)
        grad_gamma = (grad_out * out * out.log()).sum(dim=(0, 2))
        return grad_img, grad_gamma


def power_of_brightness(img, gamma):
    return img.clamp(min=1e-2) ** gamma[:, None]


def saturation_and_value(rgb):
    value, lowest = rgb.amax(1), rgb.amin(1)
    return torch.stack([(value - lowest) / value, value], 1)


class SaturationAndValueFunction(Function):
    @staticmethod
    def forward(ctx, rgb):
        ctx.save_for_backward(rgb)
        return saturation_and_value(rgb)

    @staticmethod
    def backward(ctx, g):
        (rgb,) = ctx.saved_tensors
        value, largest = rgb.max(1, keepdim=True)
        lowest, smallest = rgb.min(1, keepdim=True)
        to_saturation, to_value = g.split(1, 1)
        grad = torch.zeros_like(rgb).scatter_add_(1, largest, to_value + to_saturation * lowest / value.square())
        return grad.scatter_add_(1, smallest, -to_saturation / value)


class RGBToSV(Function):
    """S and V channels of HSV for images (N, 3, L) with positive colours."""

    @staticmethod
    def forward(ctx, rgb):
        v, imax = rgb.max(dim=1)
        lo, imin = rgb.min(dim=1)
        chroma = v - lo
        ctx.save_for_backward(v, imax, imin)
        ctx.in_shape = rgb.shape
        return torch.stack((chroma / v, v), dim=1)

    @staticmethod
    def backward(ctx, grad_sv):
        v, imax, imin = ctx.saved_tensors
        grad_s, grad_v = grad_sv.unbind(dim=1)
        d_chroma = grad_s / v
        grad_rgb = grad_sv.new_zeros(ctx.in_shape)
        grad_rgb.scatter_add_(1, imax.unsqueeze(1), (grad_v + d_chroma).unsqueeze(1))
        grad_rgb.scatter_add_(1, imin.unsqueeze(1), -d_chroma.unsqueeze(1))
        return grad_rgb


OPERATIONS = [
    Operation(
        "sharpened rows, repeated edge",
        SharpenedFunction,
        UnsharpMask,
        sharpened,
        lambda: {"x": torch.randn(2, 6), "amount": 0.5 + torch.rand(1)},
        named="what the repeated edge receives is not added to the first and the last element",
        kinds=("only at borders", "only at some indices", "missing term"),
        named_words=(r"\bpad", r"edge|border", r"replicate"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "saturation, quotient of the largest",
        SaturationAndValueFunction,
        RGBToSV,
        saturation_and_value,
        lambda: {"rgb": 0.2 + torch.rand(2, 3, 4)},
        named="the largest colour below the line is taken as a constant",
        kinds=("missing term", "only for some values", "step left out"),
        named_words=(r"as if it were a constant", r"missing term|term .*missing|part .*missing", r"divisor|quotient"),
        located=(r"gradient of rgb",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "brightness to a power, logarithm of the result",
            GammaCurve.apply,
            power_of_brightness,
            lambda: {"img": 0.1 + torch.rand(2, 3, 4), "gamma": 1 + torch.rand(3)},
            whole_numbers=False,
        ),
        named="the power's gradient has the logarithm of the result, where that of the base belongs",
        kinds=("another operand", "factor by element"),
        named_words=(r"\bbase\b", r"\blog\b|logarithm"),
        located=(r"gradient of gamma",),
    ),
]
