"""Vision: a weight for each pixel by its energy, and a cost volume of two views."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

REGULARIZATION = 0.1  # of the energy
SHIFTS = 3


def weighted_pixels(x):
    n = x.shape[-1] * x.shape[-2] - 1
    d = (x - x.mean((-2, -1), keepdim=True)).square()
    v = d.sum((-2, -1), keepdim=True) / n
    return x * torch.sigmoid(d / (4 * (v + REGULARIZATION)) + 0.5)


class WeightedPixelsFunction(Function):
    @staticmethod
    def forward(ctx, x):
        centred = x - x.mean((-2, -1), keepdim=True)
        v = centred.square().sum((-2, -1), keepdim=True) / (x[0, 0].numel() - 1)
        s = torch.sigmoid(centred.square() / (4 * (v + REGULARIZATION)) + 0.5)
        ctx.save_for_backward(x, centred, v, s)
        return x * s

    @staticmethod
    def backward(ctx, g):
        x, centred, v, s = ctx.saved_tensors
        c = 4 * (v + REGULARIZATION)
        to_energy = g * x * s * (1 - s)
        to_v = -4 * (to_energy * centred**2).sum((-2, -1), keepdim=True) / c**2
        to_centred = 2 * centred * (to_energy / c + to_v / (x[0, 0].numel() - 1))
        return g * s + to_centred - to_centred.mean((-2, -1), keepdim=True)


class SimAM(Function):
    """Parameter-free attention, x is (N, C, H, W)."""

    @staticmethod
    def forward(ctx, x):
        n = x.shape[2] * x.shape[3] - 1
        dev = x - x.mean(dim=[2, 3], keepdim=True)
        var = dev.pow(2).sum(dim=[2, 3], keepdim=True) / n
        den = 4 * (var + REGULARIZATION)
        att = torch.sigmoid(dev.pow(2) / den + 0.5)
        ctx.save_for_backward(x, dev, den, att)
        ctx.n = n
        return x * att

    @staticmethod
    def backward(ctx, grad_output):
        x, dev, den, att = ctx.saved_tensors
        grad_x = grad_output * att
        grad_e = grad_output * x * att * (1 - att)
        grad_den = (-grad_e * dev.pow(2) / den.pow(2)).sum(dim=[2, 3], keepdim=True)
        grad_sq = grad_e / den + 4 * grad_den / ctx.n
        grad_x = grad_x + grad_sq * 2 * dev
        return grad_x


def cost_volume(left, right):
    columns = []
    for shift in range(SHIFTS):
        moved = torch.nn.functional.pad(right, (shift, 0))[..., : right.shape[-1]]
        columns.append((left * moved).mean(0))
    return torch.stack(columns)


class CostVolumeFunction(Function):
    @staticmethod
    def forward(ctx, left, right, shifts):
        ctx.save_for_backward(left, right)
        ctx.shifts = shifts
        volume = left.new_zeros(ctx.shifts, *left.shape[1:])
        for d in range(ctx.shifts):
            volume[d, :, d:] = (left[..., d:] * right[..., : right.shape[-1] - d]).mean(0)
        return volume

    @staticmethod
    def backward(ctx, g):
        left, right = ctx.saved_tensors
        to_left, to_right = torch.zeros_like(left), torch.zeros_like(right)
        for d in range(ctx.shifts):
            end = left.shape[-1] - d
            part = g[d, :, d:] / left.shape[0]
            to_left[..., d:] += part * right[..., :end]
            to_right[..., :end] += part * left[..., d:]
        return to_left, to_right, None


class StereoCorrelation(Function):
    """Horizontal correlation layer for rectified stereo features (C, H, W), disparities 0 .. max_disp - 1."""

    @staticmethod
    def forward(ctx, feat_l, feat_r, max_disp):
        cost = feat_l.new_zeros(max_disp, *feat_l.shape[1:])
        for d in range(max_disp):
            if d == 0:
                cost[d] = (feat_l * feat_r).mean(dim=0)
            else:
                cost[d, :, d:] = (feat_l[:, :, d:] * feat_r[:, :, :-d]).mean(dim=0)
        ctx.save_for_backward(feat_l, feat_r)
        ctx.max_disp = max_disp
        return cost

    @staticmethod
    def backward(ctx, grad_cost):
        feat_l, feat_r = ctx.saved_tensors
        C = feat_l.shape[0]
        grad_l = torch.zeros_like(feat_l)
        grad_r = torch.zeros_like(feat_r)
        for d in range(ctx.max_disp):
            if d == 0:
                grad_l += grad_cost[d] * feat_r / C
                grad_r += grad_cost[d] * feat_l / C
            else:
                grad_l[:, :, d:] += grad_cost[d, :, d:] * feat_r[:, :, :-d] / C
                grad_r[:, :, :-d] += grad_cost[d, :, :-d] * feat_l[:, :, d:] / C
        return grad_l, grad_r, None


OPERATIONS = [
    Operation(
        "weight of a pixel by its energy, mean as a constant",
        WeightedPixelsFunction,
        SimAM,
        weighted_pixels,
        lambda: {"x": torch.randn(2, 2, 3, 4)},
        named="x: the gradient through the mean is missing: that of the deviations is not centred",
        kinds=("missing term", "step left out"),
        named_words=(r"\bmean\b", r"\bdev\b", r"centred"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "cost volume of two views, incoming gradient of other columns",
        CostVolumeFunction,
        StereoCorrelation,
        cost_volume,
        lambda: {"left": torch.randn(3, 2, 6), "right": torch.randn(3, 2, 6)},
        named="right: for shifts of 1 and more backward reads the incoming gradient at [:-d] instead of [d:]",
        kinds=("shifted", "permuted", "only at some indices", "another operand", "step left out"),
        named_words=(r"shift", r"\[d:\]|, d:\]", r"column|dimension 2|pad"),
        located=(r"gradient of (right|feat_r)\b",),
        call=lambda apply, left, right: apply(left, right, SHIFTS),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
