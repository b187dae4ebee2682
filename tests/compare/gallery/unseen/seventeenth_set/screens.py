"""Pictures on screens: colours kept at half of the size, bright light compressed, similarity of structure."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

TO_YUV = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
LUMA = torch.tensor([0.2126, 0.7152, 0.0722])
C1, C2 = 0.01, 0.03


def half_colours(x):
    yuv = torch.einsum("ij,njhw->nihw", TO_YUV.to(x), x)
    n, _, h, w = x.shape
    small = yuv[:, 1:].reshape(n, 2, h // 2, 2, w // 2, 2).mean((3, 5))
    return torch.cat([yuv[:, :1], small.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)


class HalfColoursFunction(Function):
    @staticmethod
    def forward(ctx, x):
        return half_colours(x)

    @staticmethod
    def backward(ctx, g):
        n, _, h, w = g.shape
        means = g[:, 1:].reshape(n, 2, h // 2, 2, w // 2, 2).mean((3, 5))
        colours = means.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return torch.einsum("ij,nihw->njhw", TO_YUV.to(g), torch.cat([g[:, :1], colours], 1))


class ChromaSubsample420(Function):
    """RGB to YUV whose U and V are averaged over 2 x 2 pixels and copied back to full size."""

    @staticmethod
    def forward(ctx, rgb):
        y, u, v = torch.einsum("ij,njhw->inhw", TO_YUV.to(rgb), rgb)
        planes = [y]
        for plane in (u, v):
            avg = (plane[:, ::2, ::2] + plane[:, 1::2, ::2] + plane[:, ::2, 1::2] + plane[:, 1::2, 1::2]) / 4
            planes.append(avg.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))
        return torch.stack(planes, dim=1)

    @staticmethod
    def backward(ctx, grad_yuv):
        grad_planes = [grad_yuv[:, 0]]
        for k in (1, 2):
            g = grad_yuv[:, k]
            pooled = g[:, ::2, ::2] + g[:, 1::2, ::2] + g[:, ::2, 1::2] + g[:, 1::2, 1::2]
            grad_planes.append(pooled.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))
        return torch.einsum("ij,inhw->njhw", TO_YUV.to(grad_yuv), torch.stack(grad_planes))


def compressed_light(c, white):
    light = (c * LUMA.to(c)).sum(-1, keepdim=True)
    return c * (1 + light / white**2) / (1 + light)


class CompressedLightFunction(Function):
    @staticmethod
    def forward(ctx, c, white):
        ctx.save_for_backward(c, white)
        return compressed_light(c, white)

    @staticmethod
    def backward(ctx, g):
        c, white = ctx.saved_tensors
        light = (c * LUMA.to(c)).sum(-1, keepdim=True)
        scale = (1 + light / white**2) / (1 + light)
        to_scale = (g * c).sum(-1, keepdim=True)
        to_light = to_scale * (1 / white**2 - scale) / (1 + light)
        return g * scale + to_light * LUMA.to(c), -(2 * to_scale * light / (1 + light)).sum() / white**3


class ReinhardExtended(Function):
    """Reinhard's tone mapping on luminance; the colours keep their ratios."""

    @staticmethod
    def forward(ctx, rgb, Lw):
        coef = LUMA.to(rgb)
        L = (rgb * coef).sum(dim=-1, keepdim=True)
        num, den = 1 + L / (Lw * Lw), 1 + L
        ctx.save_for_backward(rgb, Lw, L, num, den)
        return rgb * num / den

    @staticmethod
    def backward(ctx, grad_ldr):
        rgb, Lw, L, num, den = ctx.saved_tensors
        coef = LUMA.to(rgb)
        ratio = num / den
        d_ratio = (den / (Lw * Lw) - num) / (den * den)
        grad_ratio = grad_ldr * rgb
        grad_rgb = grad_ldr * ratio + grad_ratio * d_ratio * coef
        grad_Lw = (grad_ratio * (-2) * L / (Lw**3 * den)).sum()
        return grad_rgb, grad_Lw


def structure(x, y):
    mx, my = x.mean(1), y.mean(1)
    dx, dy = x - mx[:, None], y - my[:, None]
    vx, vy, cov = dx.square().mean(1), dy.square().mean(1), (dx * dy).mean(1)
    return (2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2))


def _structure_gradient(x, y):
    """Return the gradient of structure(x, y) over x; structure is symmetric."""
    mx, my = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    dx, dy = x - mx, y - my
    vx, vy, cov = (
        dx.square().mean(1, keepdim=True),
        dy.square().mean(1, keepdim=True),
        (dx * dy).mean(1, keepdim=True),
    )
    light, contrast = (2 * mx * my + C1) / (mx**2 + my**2 + C1), (2 * cov + C2) / (vx + vy + C2)
    of_light = 2 * (my - light * mx) / (mx**2 + my**2 + C1)
    of_contrast = 2 * (dy - contrast * dx) / (vx + vy + C2)
    return (of_light * contrast + light * of_contrast) / x.size(1)


class StructureFunction(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return structure(x, y)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g[:, None] * _structure_gradient(x, y), g[:, None] * _structure_gradient(y, x)


class GlobalSSIM(Function):
    """SSIM with one window that covers the whole (flattened) patch."""

    @staticmethod
    def forward(ctx, x, y):
        mu_x, mu_y = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
        var_x = x.var(dim=1, unbiased=False, keepdim=True)
        var_y = y.var(dim=1, unbiased=False, keepdim=True)
        cov = ((x - mu_x) * (y - mu_y)).mean(dim=1, keepdim=True)
        A1, A2 = 2 * mu_x * mu_y + C1, 2 * cov + C2
        B1, B2 = mu_x**2 + mu_y**2 + C1, var_x + var_y + C2
        ctx.save_for_backward(x, y, mu_x, mu_y, A1, A2, B1, B2)
        return (A1 * A2 / (B1 * B2)).squeeze(1)

    @staticmethod
    def backward(ctx, grad):
        x, y, mu_x, mu_y, A1, A2, B1, B2 = ctx.saved_tensors
        n = x.shape[1]
        grad = grad.unsqueeze(1)
        S = A1 * A2 / (B1 * B2)
        dA1, dB1 = 2 * A2 / (B1 * B2), -2 * S / B1
        dA2, dB2 = 2 * A1 / (B1 * B2), -2 * S / B2
        grad_x = grad * (dA1 * mu_y + dB1 * mu_x + dA2 * (y - mu_y) + dB2 * x) / n
        grad_y = grad * (dA1 * mu_x + dB1 * mu_y + dA2 * (x - mu_x) + dB2 * y) / n
        return grad_x, grad_y


OPERATIONS = [
    Operation(
        "colours at half of the size, sum for the mean",
        HalfColoursFunction,
        ChromaSubsample420,
        half_colours,
        lambda: {"x": torch.rand(2, 3, 4, 4)},
        named="the two planes of colours are averaged over four pixels, and backward sums without the quarter",
        kinds=("factor of one term", "wrong sum", "another operand", "step left out"),
        named_words=(r"\b4\b|quarter|0\.25", r"mean|\bsum\b"),
        located=(r"gradient of (x|rgb)\b",),
    ),
    Operation(
        "bright light compressed, sum over the colours",
        CompressedLightFunction,
        ReinhardExtended,
        compressed_light,
        lambda: {"c": 3 * torch.rand(6, 3), "white": 1 + torch.rand(())},
        named="c: the gradient of the common scale is not summed over the three colours",
        kinds=("wrong sum", "missing term", "step left out", "another operand"),
        named_words=(r"\bsum", r"grad_ratio", r"dimension"),
        located=(r"gradient of (c|rgb)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "similarity of structure, variance not centred",
        StructureFunction,
        GlobalSSIM,
        structure,
        lambda: {"x": torch.rand(4, 6), "y": torch.rand(4, 6)},
        named="the derivative of a variance is taken of x, not of x less its mean, for both images",
        kinds=("missing term", "another operand", "step left out", "factor of one term"),
        named_words=(r"mean|mu_[xy]|centred|centered", r"missing"),
        located=(r"gradient of x\b", r"gradient of y\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
