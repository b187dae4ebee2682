"""Images: smoothing that keeps edges, convolution of what is not masked, colours as they are perceived."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn import functional as F

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

CLOSENESS = {-1: 0.6, 0: 1.0, 1: 0.6}
RANGE = 0.8
VISIBLE = torch.tensor([[1, 1, 0, 1, 0, 0, 0, 1], [0, 1, 1, 1, 1, 0, 1, 1], [0, 0, 0, 0, 1, 1, 0, 1]])
WHITE = torch.tensor([0.9505, 1.0, 1.089])
LINEAR = 6 / 29


def smoothed(x):
    total, weights = torch.zeros_like(x), torch.zeros_like(x)
    for shift, closeness in CLOSENESS.items():
        other = x.roll(shift, 1)
        weight = closeness * torch.exp(-((other - x) ** 2) / (2 * RANGE**2))
        total, weights = total + weight * other, weights + weight
    return total / weights


class SmoothedFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return smoothed(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        others = torch.stack([x.roll(shift, 1) for shift in CLOSENESS])
        closeness = torch.tensor(list(CLOSENESS.values()), dtype=x.dtype)[:, None, None]
        weights = closeness * torch.exp(-((others - x) ** 2) / (2 * RANGE**2))
        shares = weights / weights.sum(0)
        to_weight = g * shares * (others - (shares * others).sum(0))
        to_difference = -to_weight * (others - x) / RANGE**2
        to_others = g * shares + to_difference
        grad = -to_difference.sum(0)
        for each, shift in zip(to_others, CLOSENESS, strict=True):
            grad = grad + each.roll(-shift, 1)
        return grad


class BilateralFilter1d(Function):
    @staticmethod
    def forward(ctx, signal):
        weights = []
        for offset, spatial in CLOSENESS.items():
            neighbour = torch.roll(signal, offset, dims=1)
            weights.append(spatial * torch.exp(-0.5 * ((neighbour - signal) / RANGE) ** 2))
        weights = torch.stack(weights)
        weights = weights / weights.sum(dim=0)
        ctx.save_for_backward(weights)
        return sum(w * torch.roll(signal, o, dims=1) for w, o in zip(weights, CLOSENESS, strict=True))

    @staticmethod
    def backward(ctx, grad_out):
        (weights,) = ctx.saved_tensors
        grad_signal = torch.zeros_like(grad_out)
        for w, offset in zip(weights, CLOSENESS, strict=True):
            grad_signal += torch.roll(w * grad_out, -offset, dims=1)
        return grad_signal


def convolution_of_seen(x, weight):
    visible = VISIBLE[:, None].to(x)
    size = weight.shape[2]
    count = F.conv1d(visible, torch.ones(1, 1, size, dtype=x.dtype))
    return F.conv1d(x * visible, weight) * torch.where(count > 0, size / count.clamp(min=1), 0)


class ConvolutionOfSeenFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return convolution_of_seen(x, weight)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        size = weight.shape[2]
        visible = VISIBLE[:, None].to(x)
        count = sum(visible[:, :, k : k + g.shape[2]] for k in range(size))
        to_sums = g * size / count.clamp(min=1)
        grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
        for k in range(size):
            taken = (x * visible)[:, :, k : k + g.shape[2]]
            grad_weight[:, :, k] = torch.einsum("nol,nil->oi", to_sums, taken)
            grad_x[:, :, k : k + g.shape[2]] += torch.einsum("nol,oi->nil", to_sums, weight[:, :, k])
        return grad_x * visible, grad_weight


class PartialConv1d(Function):
    @staticmethod
    def forward(ctx, x, weight):
        k = weight.size(2)
        mask = VISIBLE.unsqueeze(1).to(x)
        masked = x * mask
        mask_sum = F.avg_pool1d(mask, k, stride=1) * k
        ratio = torch.where(mask_sum > 0.5, k / mask_sum.clamp_min(1), torch.zeros_like(mask_sum))
        ctx.save_for_backward(masked, weight, mask, ratio)
        return F.conv1d(masked, weight) * ratio

    @staticmethod
    def backward(ctx, grad_output):
        masked, weight, mask, ratio = ctx.saved_tensors
        grad_raw = grad_output * ratio
        grad_x = F.conv_transpose1d(grad_output, weight) * mask
        columns = masked.unfold(2, weight.size(2), 1)
        grad_weight = torch.einsum("nol,nilk->oik", grad_raw, columns)
        return grad_x, grad_weight


def perceived(xyz):
    t = xyz / WHITE.to(xyz)
    root = t.clamp(min=LINEAR**3) ** (1 / 3)
    x, y, z = torch.where(t > LINEAR**3, root, t / (3 * LINEAR**2) + 4 / 29).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


class PerceivedFunction(Function):
    @staticmethod
    def forward(ctx, xyz):
        ctx.save_for_backward(xyz)
        return perceived(xyz)

    @staticmethod
    def backward(ctx, g):
        (xyz,) = ctx.saved_tensors
        white = WHITE.to(xyz)
        t = xyz / white
        slope = torch.where(t > LINEAR**3, t.clamp(min=LINEAR**3) ** (-2 / 3) / 3, 1 / (3 * LINEAR**2))
        to_y = 116 * g[:, 0] - 500 * g[:, 1] + 200 * g[:, 2]
        return torch.stack([500 * g[:, 1], to_y, -200 * g[:, 2]], 1) * slope / white


def lab_f(t):
    return torch.where(t > LINEAR**3, t.clamp_min(LINEAR**3).pow(1 / 3), t / (3 * LINEAR**2) + 4 / 29)


def lab_f_prime(t):
    return torch.where(t > LINEAR**3, t.clamp_min(LINEAR**3).pow(-2 / 3) / 3, torch.ones_like(t) / (3 * LINEAR**2))


class XYZToLab(Function):
    @staticmethod
    def forward(ctx, xyz):
        t = xyz / WHITE.to(xyz)
        ctx.save_for_backward(t)
        fx, fy, fz = lab_f(t).unbind(dim=-1)
        return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], dim=-1)

    @staticmethod
    def backward(ctx, grad_lab):
        (t,) = ctx.saved_tensors
        gL, ga, gb = grad_lab.unbind(dim=-1)
        grad_f = torch.stack([500 * ga, 116 * gL - 500 * ga + 200 * gb, -200 * gb], dim=-1)
        return grad_f * lab_f_prime(t)


OPERATIONS = [
    Operation(
        "smoothing that keeps edges, weights as constants",
        SmoothedFunction,
        BilateralFilter1d,
        smoothed,
        lambda: {"x": torch.randn(3, 7)},
        named="the weights depend on x too: the part of the gradient through them is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"weights?\b", r"constant"),
        located=(r"gradient of (x|signal)",),
    ),
    Operation(
        "convolution of what is visible, ratio of the taps",
        ConvolutionOfSeenFunction,
        PartialConv1d,
        convolution_of_seen,
        lambda: {"x": torch.randn(3, 2, 8), "weight": torch.randn(4, 2, 3)},
        named="x: the incoming gradient is taken without the ratio of all taps to those that are visible",
        kinds=("step left out", "another operand", "factor by element"),
        named_words=(r"ratio", r"grad_raw"),
        located=(r"gradient of x",),
    ),
    Operation(
        "colours as they are perceived, division by white",
        PerceivedFunction,
        XYZToLab,
        perceived,
        lambda: {"xyz": torch.rand(8, 3) ** 3},
        named="the division by the white point is left out",
        kinds=("step left out", "factor by element", "only at some indices", "constant factor"),
        named_words=(r"white", r"divi", r"factor"),
        located=(r"gradient of xyz",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
