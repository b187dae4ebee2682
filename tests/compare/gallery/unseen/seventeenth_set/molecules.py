"""Curves in space: turns of a chain of atoms, length along a path, areas under a curve."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def turns(p):
    b1, b2, b3 = (p[:, 1:] - p[:, :-1]).unbind(1)
    n1, n2 = torch.cross(b1, b2, dim=1), torch.cross(b2, b3, dim=1)
    return torch.atan2(b2.norm(dim=1) * (b1 * n2).sum(1), (n1 * n2).sum(1))


class TurnsFunction(Function):
    @staticmethod
    def forward(ctx, p):
        ctx.save_for_backward(p)
        return turns(p)

    @staticmethod
    def backward(ctx, g):
        (p,) = ctx.saved_tensors
        b1, b2, b3 = (p[:, 1:] - p[:, :-1]).unbind(1)
        n1, n2 = torch.cross(b1, b2, dim=1), torch.cross(b2, b3, dim=1)
        length = b2.norm(dim=1, keepdim=True)
        first = -length * n1 / n1.square().sum(1, keepdim=True)
        last = length * n2 / n2.square().sum(1, keepdim=True)
        s = (b1 * b2).sum(1, keepdim=True) / length**2
        t = (b3 * b2).sum(1, keepdim=True) / length**2
        return g[:, None, None] * torch.stack(
            [first, t * last - (1 + s) * first, s * first - (1 + t) * last, last], 1
        )


class DihedralAngle(Function):
    """Torsion of four atoms; forces as in Blondel and Karplus 1996."""

    @staticmethod
    def forward(ctx, xyz):
        i, j, k, l = xyz.unbind(dim=1)  # noqa: E741
        F, G, H = i - j, j - k, l - k
        A, B = torch.cross(F, G, dim=-1), torch.cross(H, G, dim=-1)
        lenG = (G * G).sum(-1, keepdim=True).sqrt()
        sin = (torch.cross(B, A, dim=-1) * G).sum(-1, keepdim=True) / lenG
        cos = (A * B).sum(-1, keepdim=True)
        ctx.save_for_backward(F, G, A, B, lenG)
        return torch.atan2(sin, cos).squeeze(-1)

    @staticmethod
    def backward(ctx, grad_phi):
        F, G, A, B, lenG = ctx.saved_tensors
        grad_phi = grad_phi.unsqueeze(-1)
        A2, B2 = (A * A).sum(-1, keepdim=True), (B * B).sum(-1, keepdim=True)
        FG = (F * G).sum(-1, keepdim=True)
        grad_i = -grad_phi * lenG / A2 * A
        grad_l = grad_phi * lenG / B2 * B
        grad_j = -grad_i + grad_phi * FG / (A2 * lenG) * A
        # the sum of the forces vanishes
        grad_k = -(grad_i + grad_j + grad_l)
        return torch.stack([grad_i, grad_j, grad_k, grad_l], dim=1)


def length_along(points):
    return (points[:, 1:] - points[:, :-1]).norm(dim=2).cumsum(1)


class LengthAlongFunction(Function):
    @staticmethod
    def forward(ctx, points):
        ctx.save_for_backward(points)
        return length_along(points)

    @staticmethod
    def backward(ctx, g):
        (points,) = ctx.saved_tensors
        steps = points[:, 1:] - points[:, :-1]
        lengths = steps.norm(dim=2, keepdim=True)
        directions = torch.where(lengths > 0, steps / torch.where(lengths > 0, lengths, 1), 0)
        to_steps = g.flip(1).cumsum(1).flip(1)[:, :, None] * directions
        grad = torch.zeros_like(points)
        grad[:, 1:] += to_steps
        grad[:, :-1] -= to_steps
        return grad


class ArcLength(Function):
    @staticmethod
    def forward(ctx, path):
        seg = torch.diff(path, dim=1)
        seg_len = seg.square().sum(dim=-1).sqrt()
        ctx.save_for_backward(seg, seg_len)
        return torch.cumsum(seg_len, dim=1)

    @staticmethod
    def backward(ctx, grad_s):
        seg, seg_len = ctx.saved_tensors
        suffix = torch.flip(torch.cumsum(torch.flip(grad_s, [1]), dim=1), [1])
        grad_seg = (suffix / seg_len).unsqueeze(-1) * seg
        zero = torch.zeros_like(grad_seg[:, :1])
        return torch.cat([zero, grad_seg], dim=1) - torch.cat([grad_seg, zero], dim=1)


def area_under(values, width):
    inner = 4 * values[:, 1:-1:2].sum(1) + 2 * values[:, 2:-1:2].sum(1)
    return width / 3 * (values[:, 0] + inner + values[:, -1])


class SimpsonIntegral(Function):
    """Composite Simpson's rule on an odd number of samples."""

    @staticmethod
    def forward(ctx, y, h):
        fours, twos = y[:, 1:-1:2].sum(dim=1), y[:, 2:-2:2].sum(dim=1)
        total = (y[:, 0] + y[:, -1] + 4 * fours + 2 * twos) / 3
        ctx.save_for_backward(h, total)
        ctx.samples = y.size(1)
        return h * total

    @staticmethod
    def backward(ctx, grad_area):
        h, total = ctx.saved_tensors
        coef = torch.ones(ctx.samples)
        coef[1:-1:2] = 4
        coef[2:-1:2] = 2
        coef = (coef / 3).to(grad_area)
        grad_y = (grad_area * h).unsqueeze(1) * coef
        return grad_y, grad_area * total


def path_with_rests():
    points = torch.randn(3, 5, 2)
    points[:, 2] = points[:, 1]
    return {"points": points}


OPERATIONS = [
    Operation(
        "turns of a chain, force on the inner atoms",
        TurnsFunction,
        DihedralAngle,
        turns,
        lambda: {"p": torch.randn(5, 4, 3)},
        named="the part of the second atom that goes with the last bond is missing, and so in the third's sum",
        kinds=("missing term", "only at some indices", "another operand"),
        named_words=(r"missing", r"\bH\b|\bHG\b|grad_l|\bB\b", r"b3"),
        located=(r"gradient of (p|xyz)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "length along a path, steps of no length",
        LengthAlongFunction,
        ArcLength,
        length_along,
        path_with_rests,
        named="0 / 0, NaN, where two points after one another are the same",
        kinds=("not finite", "only at zeros", "only for some values", "few elements", "only at some indices"),
        named_words=(r"\bnan\b|not finite", r"zero|\b0\b"),
        located=(r"gradient of (points|path)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "area under a curve, weights in single precision",
            SimpsonIntegral.apply,
            area_under,
            lambda: {"values": torch.randn(4, 7), "width": torch.rand(4)},
        ),
        named="values: the weights, which are divided by 3, are made in float32, so float64 is no more exact",
        kinds=("only in one dtype",),
        named_words=(r"float32|single|precision|exact|dtype",),
        located=(r"gradient of (values|y)\b",),
    ),
]
