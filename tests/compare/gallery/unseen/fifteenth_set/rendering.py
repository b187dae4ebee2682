"""Rendering: spread of a rough surface's normals, brightness as screens encode it, one image over another."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def spread_of_normals(cosine, roughness):
    square = roughness**4
    divisor = math.pi * (cosine**2 * (square - 1) + 1) ** 2
    return square / divisor


class SpreadOfNormalsFunction(Function):
    @staticmethod
    def forward(ctx, cosine, roughness):
        ctx.save_for_backward(cosine, roughness)
        return spread_of_normals(cosine, roughness)

    @staticmethod
    def backward(ctx, g):
        cosine, roughness = ctx.saved_tensors
        square = roughness**4
        inner = cosine**2 * (square - 1) + 1
        to_inner = -2 * g * square / (math.pi * inner**3)
        to_square = g / (math.pi * inner**2) + to_inner * cosine**2
        return to_inner * 2 * cosine * (square - 1), to_square * 4 * roughness**3


class GGXDistribution(Function):
    @staticmethod
    def forward(ctx, n_dot_h, roughness):
        alpha = roughness * roughness
        a2 = alpha * alpha
        c2 = n_dot_h * n_dot_h
        t = c2 * (a2 - 1) + 1
        ctx.save_for_backward(n_dot_h, alpha, a2, c2, t)
        return a2 / (math.pi * t * t)

    @staticmethod
    def backward(ctx, grad_out):
        n_dot_h, alpha, a2, c2, t = ctx.saved_tensors
        grad_cos = grad_out * -4 * n_dot_h * a2 * (a2 - 1) / (math.pi * t**3)
        d_a2 = (t - 2 * a2 * c2) / (math.pi * t**3)
        return grad_cos, grad_out * 2 * alpha * d_a2


def encoded(image, exposure):
    light = image * exposure[:, None, None]
    curve = 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, 12.92 * light, curve)


class EncodedFunction(Function):
    @staticmethod
    def forward(ctx, image, exposure):
        ctx.save_for_backward(image, exposure)
        return encoded(image, exposure)

    @staticmethod
    def backward(ctx, g):
        image, exposure = ctx.saved_tensors
        light = image * exposure[:, None, None]
        slope = 1.055 / 2.4 * light.clamp(min=0.0031308) ** (1 / 2.4 - 1)
        to_light = g * torch.where(light <= 0.0031308, torch.full_like(slope, 12.92), slope)
        return to_light * exposure[:, None, None], (to_light * image).sum((1, 2))


def linear_to_srgb(v):
    low = 12.92 * v
    high = 1.055 * v.clamp(min=1e-4).pow(1.0 / 2.4) - 0.055
    return torch.where(v > 0.0031308, high, low)


def linear_to_srgb_grad(v):
    high = (1.055 / 2.4) * v.clamp(min=1e-4).pow(1.0 / 2.4 - 1.0)
    return torch.where(v > 0.04045, high, 12.92)


class ExposeAndEncode(Function):
    @staticmethod
    def forward(ctx, rgb, gain):
        v = rgb * gain.view(-1, 1, 1)
        ctx.save_for_backward(rgb, gain, v)
        return linear_to_srgb(v)

    @staticmethod
    def backward(ctx, grad_out):
        rgb, gain, v = ctx.saved_tensors
        grad_v = grad_out * linear_to_srgb_grad(v)
        return grad_v * gain.view(-1, 1, 1), (grad_v * rgb).sum(dim=(1, 2))


def over(front, back, alpha):
    return alpha[..., None] * front + (1 - alpha[..., None]) * back


class AlphaBlend(Function):
    @staticmethod
    def forward(ctx, fg, bg, alpha):
        ctx.save_for_backward(fg, bg, alpha)
        a = alpha.unsqueeze(-1)
        return bg + a * (fg - bg)

    @staticmethod
    def backward(ctx, grad_out):
        fg, bg, alpha = ctx.saved_tensors
        a = alpha.unsqueeze(-1)
        grad_fg = grad_bg = grad_alpha = None
        if ctx.needs_input_grad[0]:
            grad_fg = grad_out * a
        elif ctx.needs_input_grad[1]:
            grad_bg = grad_out * (1 - a)
        if ctx.needs_input_grad[2]:
            grad_alpha = (grad_out * (fg - bg)).sum(dim=-1)
        return grad_fg, grad_bg, grad_alpha


OPERATIONS = [
    Operation(
        "spread of a rough surface's normals, square of the roughness",
        SpreadOfNormalsFunction,
        GGXDistribution,
        spread_of_normals,
        lambda: {"cosine": 0.2 + 0.8 * torch.rand(7), "roughness": 0.3 + 0.7 * torch.rand(7)},
        named="the gradient of alpha, roughness squared, is returned as that of roughness: 2 roughness is missing",
        kinds=("step left out", "factor by element", "another operand"),
        named_words=(r"roughness|alpha|square|\*\*", r"derivative of (the )?(pow|power)"),
        located=(r"gradient of roughness",),
        options={"whole_numbers": False},
    ),
    Operation(
        "brightness as encoded, threshold of the decoder",
        EncodedFunction,
        ExposeAndEncode,
        encoded,
        lambda: {"image": torch.rand(3, 4, 5) ** 4, "exposure": 0.6 + 0.6 * torch.rand(3)},
        named="the straight piece's slope up to 0.04045, the threshold of the inverse function, not 0.0031308",
        kinds=("only for some values", "step left out", "another operand"),
        named_words=(r"0\.04045|0\.0031", r"threshold", r"where|<=|> ", r"only (for|where)"),
        located=(r"gradient of (image|rgb)", r"gradient of (exposure|gain)"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "image over another, back only without the front",
            AlphaBlend.apply,
            over,
            lambda: {"front": torch.randn(3, 4, 3), "back": torch.randn(3, 4, 3), "alpha": torch.rand(3, 4)},
        ),
        named="elif: back has a gradient only if front requires none",
        kinds=("depends on which inputs require a gradient", "none", "zero"),
        named_words=(
            r"requires? a gradient|requires_grad|needs_input_grad|require gradients",
            r"\bnone\b|zero|\bis 0\b",
        ),
        located=(r"gradient of (back|bg)",),
    ),
]
