"""Maps of features: a blur before the stride, a fusion with normalized weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

TAPS = (0.25, 0.5, 0.25)
EPS = 1e-2


def blurred(x):
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = sum(tap * padded[:, :, n : n + x.size(2)] for n, tap in enumerate(TAPS))
    columns = sum(tap * rows[..., n : n + x.size(3)] for n, tap in enumerate(TAPS))
    return columns[:, :, ::2, ::2]


class BlurredFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.size = x.shape
        return blurred(x)

    @staticmethod
    def backward(ctx, g):
        grad = g.new_zeros(ctx.size)
        height, width = ctx.size[2:]
        for i, vertical in enumerate(TAPS):
            rows = (torch.arange(0, height, 2, device=g.device) + i - 1).clamp(0, height - 1)
            to_rows = torch.zeros_like(grad[..., ::2]).index_add(2, rows, vertical * g)
            for j, horizontal in enumerate(TAPS):
                columns = (torch.arange(0, width, 2, device=g.device) + j - 1).clamp(0, width - 1)
                grad.index_add_(3, columns, horizontal * to_rows)
        return grad


class BlurPool(Function):
    """Anti-aliased downsampling (Zhang 2019), binomial 3x3 filter, stride 2."""

    @staticmethod
    def forward(ctx, x):
        C = x.shape[1]
        f = x.new_tensor([1.0, 2.0, 1.0])
        kernel = torch.outer(f, f) / 16
        weight = kernel.expand(C, 1, 3, 3)
        ctx.save_for_backward(weight)
        ctx.in_shape = x.shape
        x_pad = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(x_pad, weight, stride=2, groups=C)

    @staticmethod
    def backward(ctx, grad_out):
        (weight,) = ctx.saved_tensors
        N, C, H, W = ctx.in_shape
        grad_pad = grad_out.new_zeros(N, C, H + 2, W + 2)
        Ho, Wo = grad_out.shape[2:]
        for i in range(Ho):
            for j in range(Wo):
                g = grad_out[:, :, i, j, None, None]
                grad_pad[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += g * weight[:, 0]
        return grad_pad[:, :, 1:-1, 1:-1]


def fused_maps(top, middle, bottom, weight):
    positive = torch.relu(weight)
    shares = positive / (positive.sum() + EPS)
    return shares[0] * top + shares[1] * middle + shares[2] * bottom


class FusedMapsFunction(Function):
    @staticmethod
    def forward(ctx, top, middle, bottom, weight):
        positive = weight.clamp_min(0)
        total = positive.sum() + EPS
        fused = (positive[0] * top + positive[1] * middle + positive[2] * bottom) / total
        ctx.save_for_backward(top, middle, bottom, weight, fused)
        return fused

    @staticmethod
    def backward(ctx, g):
        *maps, weight, fused = ctx.saved_tensors
        total = weight.clamp_min(0).sum() + EPS
        to_maps = [g * share for share in weight.clamp_min(0) / total]
        to_weight = torch.stack([(g * (each - fused)).sum() for each in maps]) / total
        return *to_maps, torch.where(weight > 0, to_weight, 0)


class FastNormalizedFusion(Function):
    """BiFPN node: sum_i w_i * P_i / (eps + sum_j w_j), with w = relu(w)."""

    @staticmethod
    def forward(ctx, p3, p4, p5, w):
        w_relu = w.relu()
        w_norm = w_relu / (w_relu.sum() + EPS)
        ctx.save_for_backward(p3, p4, p5, w_relu, w_norm)
        return w_norm[0] * p3 + w_norm[1] * p4 + w_norm[2] * p5

    @staticmethod
    def backward(ctx, grad_output):
        p3, p4, p5, w_relu, w_norm = ctx.saved_tensors
        grad_p3 = grad_output * w_norm[0]
        grad_p4 = grad_output * w_norm[1]
        grad_p5 = grad_output * w_norm[2]
        grad_w_norm = torch.stack([(grad_output * p).sum() for p in (p3, p4, p5)])
        # d(w / (sum + eps)) / dw
        s = w_relu.sum() + EPS
        grad_w = grad_w_norm * (s - w_relu) / s**2
        grad_w = grad_w * (w_relu > 0)
        return grad_p3, grad_p4, grad_p5, grad_w


OPERATIONS = [
    Operation(
        "blur before the stride, padding cut off",
        BlurredFunction,
        BlurPool,
        blurred,
        lambda: {"x": torch.randn(2, 2, 6, 6)},
        named="the gradient of the replicated border is cut off, and not added to the border that it was copied from",
        kinds=("only at borders", "missing term", "only at some indices", "step left out", "few elements"),
        named_words=(r"border|edge", r"pad", r"replicat", r"missing"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "fusion with normalized weights, only the weight's own share",
        FusedMapsFunction,
        FastNormalizedFusion,
        fused_maps,
        lambda: {
            "top": torch.randn(2, 3, 4),
            "middle": torch.randn(2, 3, 4),
            "bottom": torch.randn(2, 3, 4),
            "weight": torch.rand(3) + 0.2,
        },
        named="a weight is also in the sum that divides the others; only the diagonal of that Jacobian is there",
        kinds=("missing term", "another operand", "step left out"),
        named_words=(r"missing", r"\bsum\b|\bdiv\b|divis|denominator", r"diagonal|dot"),
        located=(r"gradient of (w|weight)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
