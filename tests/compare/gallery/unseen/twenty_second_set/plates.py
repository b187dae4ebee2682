"""A surface through scattered points, as a thin plate bends."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def plate(x, centres, weights):
    squared = (x[:, None] - centres).square().sum(-1)
    apart = squared > 0
    return torch.where(apart, squared * torch.where(apart, squared, 1.0).log(), 0.0) @ weights


class PlateFunction(Function):
    @staticmethod
    def forward(ctx, x, centres, weights):
        ctx.save_for_backward(x, centres, weights)
        return plate(x, centres, weights)

    @staticmethod
    def backward(ctx, g):
        x, centres, weights = ctx.saved_tensors
        difference = x[:, None] - centres
        squared = difference.square().sum(-1)
        log = torch.where(squared > 0, squared, 1.0).log()
        slope = torch.where(squared > 0, g[:, None] * weights * (log + 1), 0.0)
        moved = 2 * slope[..., None] * difference
        return moved.sum(1), -moved.sum(0), g @ (squared * log)


class ThinPlateSpline(Function):
    """sum_j w_j r_j^2 log r_j^2 with r_j = |x - c_j|; x (M, 2), c (N, 2), w (N,) -> (M,)."""

    @staticmethod
    def forward(ctx, x, c, w):
        diff = x.unsqueeze(1) - c.unsqueeze(0)
        r2 = (diff**2).sum(-1)
        u = torch.where(r2 == 0, torch.zeros_like(r2), r2 * torch.log(r2))
        ctx.save_for_backward(diff, r2, u, w)
        return u @ w

    @staticmethod
    def backward(ctx, grad_out):
        diff, r2, u, w = ctx.saved_tensors
        grad_u = grad_out.unsqueeze(1) * w
        grad_r2 = grad_u * (torch.log(r2) + 1)
        grad_diff = 2 * grad_r2.unsqueeze(-1) * diff
        return grad_diff.sum(1), -grad_diff.sum(0), u.t() @ grad_out


def points_and_centres():
    centres = torch.randn(4, 2)
    return {"x": torch.cat([centres[:2], torch.randn(3, 2)]), "centres": centres, "weights": torch.randn(4)}


OPERATIONS = [
    Operation(
        "surface through scattered points, point at a centre",
        PlateFunction,
        ThinPlateSpline,
        plate,
        points_and_centres,
        named="at a centre the logarithm of zero is infinite, and times the zero difference it gives NaN",
        kinds=("not finite", "only at zeros", "only for some values"),
        named_words=(r"\bnan\b|not finite|infinit", r"log", r"r2"),
        located=(r"gradient of (x|centres|c)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
