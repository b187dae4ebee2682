"""Curves and pictures: a spline through samples, depth from two cameras, corners of a picture."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

SENSITIVITY = 0.05


def spline_at(values, place):
    left = place.detach().floor().long().clamp(1, values.size(0) - 3)
    t = (place - left).unsqueeze(1)
    a, b, c, d = (values[left + k] for k in (-1, 0, 1, 2))
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


class SplineFunction(Function):
    @staticmethod
    def forward(ctx, values, place):
        ctx.save_for_backward(values, place)
        return spline_at(values, place)

    @staticmethod
    def backward(ctx, g):
        values, place = ctx.saved_tensors
        left = place.floor().long().clamp(1, values.size(0) - 3)
        t = (place - left).unsqueeze(1)
        a, b, c, d = (values[left + k] for k in (-1, 0, 1, 2))
        slope = 0.5 * (c - a) + t * (2 * a - 5 * b + 4 * c - d) + 1.5 * t * t * (3 * (b - c) + d - a)
        shares = (
            0.5 * t * (-1 + t * (2 - t)),
            1 + 0.5 * t * t * (3 * t - 5),
            0.5 * t * (1 + t * (4 - 3 * t)),
            0.5 * t * t * (t - 1),
        )
        to_values = torch.zeros_like(values)
        for k, share in zip((-1, 0, 1, 2), shares, strict=True):
            to_values.index_add_(0, left + k, share * g)
        return to_values, (g * slope).sum(1)


class CatmullRom(Function):
    """Catmull-Rom spline through control points p (N, C), evaluated at u (M,) -> (M, C)."""

    @staticmethod
    def weights(t):
        t2, t3 = t * t, t * t * t
        w = [-t + 2 * t2 - t3, 2 - 5 * t2 + 3 * t3, t + 4 * t2 - 3 * t3, t3 - t2]
        return 0.5 * torch.stack(w, dim=1)

    @staticmethod
    def dweights(t):
        t2 = t * t
        w = [-1 + 4 * t - 3 * t2, -10 * t + 9 * t2, 1 + 8 * t - 9 * t2, 3 * t2 - 2 * t]
        return 0.5 * torch.stack(w, dim=1)

    @staticmethod
    def forward(ctx, p, u):
        i = torch.clamp(torch.floor(u).long(), 1, p.shape[0] - 3)
        idx = torch.stack([i - 1, i, i + 1, i + 2], dim=1)
        t = u - i
        ctx.save_for_backward(p, idx, t)
        return (CatmullRom.weights(t).unsqueeze(-1) * p[idx]).sum(1)

    @staticmethod
    def backward(ctx, grad_out):
        p, idx, t = ctx.saved_tensors
        grad_p = torch.zeros_like(p)
        w = CatmullRom.weights(t)
        for k in range(4):
            grad_p[idx[:, k]] += w[:, k : k + 1] * grad_out
        grad_u = ((CatmullRom.dweights(t).unsqueeze(-1) * p[idx]).sum(1) * grad_out).sum(-1)
        return grad_p, grad_u


def depth_of_pairs(disparity, offset, focal, baseline):
    visible = disparity > offset
    return torch.where(visible, focal * baseline / torch.where(visible, disparity - offset, 1.0), 0.0)


class DepthFunction(Function):
    @staticmethod
    def forward(ctx, disparity, offset, focal, baseline):
        ctx.save_for_backward(disparity, offset, focal, baseline)
        return depth_of_pairs(disparity, offset, focal, baseline)

    @staticmethod
    def backward(ctx, g):
        disparity, offset, focal, baseline = ctx.saved_tensors
        visible = disparity > offset
        gap = torch.where(visible, disparity - offset, 1.0)
        g = torch.where(visible, g, 0.0) / gap
        to_disparity = -g * focal * baseline / gap
        to_focal = (g * baseline).sum((1, 2), keepdim=True)
        to_baseline = (g * focal).sum((1, 2), keepdim=True)
        return to_disparity, -to_disparity.sum((1, 2), keepdim=True), to_focal, to_baseline


class StereoDepth(Function):
    """z = f b / (d - d0), zero where d <= d0. d is (B, H, W); d0, f and b are (B, 1, 1)."""

    @staticmethod
    def forward(ctx, d, d0, f, b):
        valid = d > d0
        dd = torch.where(valid, d - d0, torch.ones_like(d))
        z = f * b / dd
        z[~valid] = 0
        ctx.save_for_backward(dd, z, f, b)
        return z

    @staticmethod
    def backward(ctx, grad_z):
        dd, z, f, b = ctx.saved_tensors
        grad_d = -grad_z * z / dd
        grad_d0 = -grad_d.sum(dim=(1, 2), keepdim=True)
        grad_f = (grad_z * b / dd).sum(dim=(1, 2), keepdim=True)
        grad_b = (grad_z * f / dd).sum(dim=(1, 2), keepdim=True)
        return grad_d, grad_d0, grad_f, grad_b


def corners(across, down):
    xx, yy, xy = (
        (one[:, :-1, :-1] + one[:, 1:, :-1] + one[:, :-1, 1:] + one[:, 1:, 1:]) / 4
        for one in (across * across, down * down, across * down)
    )
    return xx * yy - xy * xy - SENSITIVITY * (xx + yy) ** 2


class CornersFunction(Function):
    @staticmethod
    def forward(ctx, across, down):
        ctx.save_for_backward(across, down)
        return corners(across, down)

    @staticmethod
    def backward(ctx, g):
        across, down = ctx.saved_tensors

        def mean(one):
            rows = (one[:, 1:] + one[:, :-1]) / 2
            return (rows[:, :, 1:] + rows[:, :, :-1]) / 2

        def back(one):
            pad = torch.nn.functional.pad
            rows = (pad(one, (0, 1)) + pad(one, (1, 0))) / 2
            return (pad(rows, (0, 0, 0, 1)) + pad(rows, (0, 0, 1, 0))) / 2

        xx, yy, xy = mean(across * across), mean(down * down), mean(across * down)
        trace = 2 * SENSITIVITY * (xx + yy)
        to_xx, to_yy, to_xy = back(g * (yy - trace)), back(g * (xx - trace)), back(-2 * g * xy)
        return 2 * across * to_xx + down * to_xy, 2 * down * to_yy + across * to_xy


def box2(m):
    return (m[:, :-1, :-1] + m[:, 1:, :-1] + m[:, :-1, 1:] + m[:, 1:, 1:]) / 4


def box2_backward(g):
    out = g.new_zeros(g.size(0), g.size(1) + 1, g.size(2) + 1)
    out[:, :-1, :-1] += g
    out[:, 1:, :-1] += g
    out[:, :-1, 1:] += g
    out[:, 1:, 1:] += g
    return out / 4


class HarrisResponse(Function):
    """det(M) - k trace(M)^2 of the structure tensor over 2x2 windows, from image gradients Ix, Iy (B, H, W)."""

    @staticmethod
    def forward(ctx, Ix, Iy):
        Sxx, Syy, Sxy = box2(Ix**2), box2(Iy**2), box2(Ix * Iy)
        ctx.save_for_backward(Ix, Iy, Sxx, Syy, Sxy)
        return Sxx * Syy - Sxy**2 - SENSITIVITY * (Sxx + Syy) ** 2

    @staticmethod
    def backward(ctx, grad_R):
        Ix, Iy, Sxx, Syy, Sxy = ctx.saved_tensors
        tr = Sxx + Syy
        gxx = box2_backward(grad_R * (Syy - 2 * SENSITIVITY * tr))
        gyy = box2_backward(grad_R * (Sxx - 2 * SENSITIVITY * tr))
        gxy = box2_backward(-grad_R * Sxy)
        return 2 * Ix * gxx + Iy * gxy, 2 * Iy * gyy + Ix * gxy


OPERATIONS = [
    Operation(
        "spline through samples, control points of several places",
        SplineFunction,
        CatmullRom,
        spline_at,
        lambda: {"values": torch.randn(7, 2), "place": torch.rand(9) * 4 + 1},
        named="values: places that share a control point overwrite each other's gradient; += does not add them",
        kinds=("only at some indices", "wrong sum", "missing term", "few elements"),
        named_words=(r"repeat|duplicat|same (index|element|row)", r"index_add|accumulat|scatter_add|overwr", r"\+="),
        located=(r"gradient of (values|p)\b",),
    ),
    Operation(
        "corners of a picture, square of the mixed product",
        CornersFunction,
        HarrisResponse,
        corners,
        lambda: {"across": torch.randn(2, 4, 4), "down": torch.randn(2, 4, 4)},
        named="the derivative of the mixed product's square lacks its factor of two",
        kinds=("factor of one term", "missing term", "constant factor"),
        named_words=(r"\bgxy\b", r"\bSxy\b", r"factor (of )?2|twice|2 times|times 2|doubl"),
        located=(r"gradient of (across|Ix|down|Iy)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "depth from two cameras, pixels without depth",
            StereoDepth.apply,
            depth_of_pairs,
            lambda: {
                "disparity": torch.rand(2, 3, 4) + 2 * (torch.rand(2, 3, 4) > 0.3),
                "offset": torch.full((2, 1, 1), 1.1),
                "focal": torch.rand(2, 1, 1) + 1,
                "baseline": torch.rand(2, 1, 1) + 1,
            },
        ),
        named="focal length and baseline: pixels without depth send a gradient, as backward does not mask them",
        kinds=("only for some values", "wrong sum", "step left out", "factor by element"),
        named_words=(r"\bvalid\b", r"mask", r"where z|z (==|is|!=|>) ?0|d (<=|<|>) "),
        located=(r"gradient of (focal|f|baseline|b)\b",),
    ),
]
RIGHT += [
    Case(
        "depth from two cameras",
        DepthFunction.apply,
        depth_of_pairs,
        lambda: {
            "disparity": torch.rand(2, 3, 4) + 2 * (torch.rand(2, 3, 4) > 0.3),
            "offset": torch.full((2, 1, 1), 1.1),
            "focal": torch.rand(2, 1, 1) + 1,
            "baseline": torch.rand(2, 1, 1) + 1,
        },
    ),
]
