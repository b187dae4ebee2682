"""Shading: colours that depend on the direction of view, opacity from a distance to a surface."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EVEN, ODD = 0.28209479, 0.48860251


def colours_by_direction(direction, coefficients):
    x, y, z = (direction / direction.norm(dim=1, keepdim=True)).unbind(1)
    basis = torch.stack([torch.full_like(x, EVEN), -ODD * y, ODD * z, -ODD * x], 1)
    return (basis[:, :, None] * coefficients).sum(1)


class ColoursByDirectionFunction(Function):
    @staticmethod
    def forward(ctx, direction, coefficients):
        ctx.save_for_backward(direction, coefficients)
        return colours_by_direction(direction, coefficients)

    @staticmethod
    def backward(ctx, g):
        direction, coefficients = ctx.saved_tensors
        length = direction.norm(dim=1, keepdim=True)
        unit = direction / length
        basis = torch.cat([torch.full_like(length, EVEN), ODD * unit[:, [1, 2, 0]] * g.new_tensor([-1, 1, -1])], 1)
        to_basis = (g[:, None] * coefficients).sum(2)
        to_unit = ODD * to_basis[:, [3, 1, 2]] * g.new_tensor([-1, -1, 1])
        grad_direction = (to_unit - unit * (unit * to_unit).sum(1, keepdim=True)) / length
        return grad_direction, basis[:, :, None] * g[:, None]


def sh_basis(d):
    one = torch.ones_like(d[..., 0])
    return torch.stack([EVEN * one, -ODD * d[..., 1], ODD * d[..., 2], -ODD * d[..., 0]], dim=-1)


class SphericalHarmonicsColor(Function):
    @staticmethod
    def forward(ctx, dirs, sh):
        dirs = torch.nn.functional.normalize(dirs, dim=-1)
        basis = sh_basis(dirs)
        ctx.save_for_backward(basis, sh)
        return torch.einsum("nk,nkc->nc", basis, sh)

    @staticmethod
    def backward(ctx, v_colors):
        basis, sh = ctx.saved_tensors
        v_sh = basis.unsqueeze(-1) * v_colors.unsqueeze(-2)
        v_basis = torch.einsum("nc,nkc->nk", v_colors, sh)
        v_dirs = ODD * torch.stack([-v_basis[:, 3], -v_basis[:, 1], v_basis[:, 2]], dim=-1)
        return v_dirs, v_sh


def opacities(distance, sharpness):
    inside = torch.sigmoid(sharpness * distance)
    return ((inside[:, :-1] - inside[:, 1:]) / inside[:, :-1]).clamp(min=0)


class OpacitiesFunction(Function):
    @staticmethod
    def forward(ctx, distance, sharpness):
        ctx.save_for_backward(distance, sharpness)
        return opacities(distance, sharpness)

    @staticmethod
    def backward(ctx, g):
        distance, sharpness = ctx.saved_tensors
        inside = torch.sigmoid(sharpness * distance)
        near, far = inside[:, :-1], inside[:, 1:]
        to_ratio = -g * (near > far)
        to_logit = torch.zeros_like(inside)
        to_logit[:, 1:] += to_ratio * far / near * (1 - far)
        to_logit[:, :-1] -= to_ratio * far / near * (1 - near)
        return to_logit * sharpness, (to_logit * distance).sum()


class NeuSAlpha(Function):
    """alpha_i = max((Phi_s(f_i) - Phi_s(f_i+1)) / Phi_s(f_i), 0) along each ray."""

    @staticmethod
    def forward(ctx, sdf, inv_s):
        cdf = torch.sigmoid(sdf * inv_s)
        prev_cdf, next_cdf = cdf[:, :-1], cdf[:, 1:]
        alpha = (prev_cdf - next_cdf) / prev_cdf
        ctx.save_for_backward(sdf, inv_s, cdf)
        return alpha.clip(min=0.0)

    @staticmethod
    def backward(ctx, grad_alpha):
        sdf, inv_s, cdf = ctx.saved_tensors
        prev_cdf, next_cdf = cdf[:, :-1], cdf[:, 1:]
        grad_cdf = torch.zeros_like(cdf)
        grad_cdf[:, :-1] += grad_alpha * next_cdf / prev_cdf**2
        grad_cdf[:, 1:] += -grad_alpha / prev_cdf
        grad_x = grad_cdf * cdf * (1 - cdf)
        return grad_x * inv_s, (grad_x * sdf).sum()


OPERATIONS = [
    Operation(
        "colours by direction, length of the direction",
        ColoursByDirectionFunction,
        SphericalHarmonicsColor,
        colours_by_direction,
        lambda: {"direction": torch.randn(5, 3), "coefficients": torch.randn(5, 4, 3)},
        named="direction: forward makes its length 1, and backward leaves the derivative of that out",
        kinds=("step left out", "missing term"),
        named_words=(r"normaliz|length|norm\b|unit", r"missing"),
        located=(r"gradient of dir",),
        options={"whole_numbers": False},
    ),
    Operation(
        "opacity from a distance, bound at zero",
        OpacitiesFunction,
        NeuSAlpha,
        opacities,
        lambda: {"distance": torch.randn(3, 6), "sharpness": 0.5 + torch.rand(())},
        named="opacities that the clamp at 0 holds get a gradient: its mask is left out",
        kinds=("step left out", "only for some values", "only at some indices", "another operand"),
        named_words=(r"mask|clamp|clip", r"> ?0|below 0|positive|negative"),
        located=(r"gradient of (distance|sdf)", r"gradient of (sharpness|inv_s)"),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
