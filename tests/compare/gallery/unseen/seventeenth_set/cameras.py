"""Cameras: points through a wide lens, distance from the epipolar lines of two views."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def wide_lens(points, focal):
    x, y, z = points.unbind(-1)
    rho = torch.sqrt(x * x + y * y)
    ratio = torch.atan(rho / z) / rho
    return focal * torch.stack([x * ratio, y * ratio], -1)


class WideLensFunction(Function):
    @staticmethod
    def forward(ctx, points, focal):
        ctx.save_for_backward(points, focal)
        return wide_lens(points, focal)

    @staticmethod
    def backward(ctx, g):
        points, focal = ctx.saved_tensors
        xy, z = points[..., :2], points[..., 2:]
        rho = xy.norm(dim=-1, keepdim=True)
        ratio = torch.atan(rho / z) / rho
        square = rho**2 + z**2
        to_ratio = focal * (g * xy).sum(-1, keepdim=True)
        to_xy = focal * g * ratio + to_ratio * (z / square - ratio) / rho * xy / rho
        return torch.cat([to_xy, -to_ratio / square], -1), (g * xy * ratio).sum()


class EquidistantFisheye(Function):
    """r = f * theta; pixel coordinates relative to the principal point."""

    @staticmethod
    def forward(ctx, p, f):
        x, y, z = p[:, 0], p[:, 1], p[:, 2]
        rho = (x * x + y * y).sqrt()
        theta = torch.atan(rho / z)
        s = theta / rho
        ctx.save_for_backward(p, f, rho, theta)
        return f * torch.stack((s * x, s * y), dim=1)

    @staticmethod
    def backward(ctx, grad_uv):
        p, f, rho, theta = ctx.saved_tensors
        x, y, z = p[:, 0], p[:, 1], p[:, 2]
        s = theta / rho
        gu, gv = grad_uv[:, 0], grad_uv[:, 1]
        grad_s = f * (gu * x + gv * y)
        grad_f = (gu * s * x + gv * s * y).sum()
        datan = 1 / (1 + (rho / z) ** 2)
        dtheta_drho = datan
        dtheta_dz = -datan * rho / (z * z)
        ds_drho = dtheta_drho / rho - theta / (rho * rho)
        grad_x = f * gu * s + grad_s * ds_drho * x / rho
        grad_y = f * gv * s + grad_s * ds_drho * y / rho
        grad_z = grad_s * dtheta_dz / rho
        return torch.stack((grad_x, grad_y, grad_z), dim=1), grad_f


def distance_from_lines(F, p, q):
    lines, others = p @ F.T, q @ F
    return (lines * q).sum(1).square() / (lines[:, :2].square().sum(1) + others[:, :2].square().sum(1))


class DistanceFromLinesFunction(Function):
    @staticmethod
    def forward(ctx, F, p, q):
        ctx.save_for_backward(F, p, q)
        return distance_from_lines(F, p, q)

    @staticmethod
    def backward(ctx, g):
        F, p, q = ctx.saved_tensors
        lines, others = p @ F.T, q @ F
        error = (lines * q).sum(1)
        square = lines[:, :2].square().sum(1) + others[:, :2].square().sum(1)
        to_error = (g * 2 * error / square)[:, None]
        to_square = (-2 * g * error**2 / square**2)[:, None]
        to_lines = to_error * q + to_square * lines * lines.new_tensor([1, 1, 0])
        to_others = to_square * others * others.new_tensor([1, 1, 0])
        return to_lines.T @ p + q.T @ to_others, to_lines @ F, to_error * lines + to_others @ F.T


class SampsonDistance(Function):
    """First-order geometric error of correspondences p, q under the fundamental matrix F."""

    @staticmethod
    def forward(ctx, F, p, q):
        Fp = p.matmul(F.t())
        Ftq = q.matmul(F)
        e = (q * Fp).sum(dim=1)
        s = Fp[:, 0] ** 2 + Fp[:, 1] ** 2 + Ftq[:, 0] ** 2 + Ftq[:, 1] ** 2
        ctx.save_for_backward(F, p, q, Fp, Ftq, e, s)
        return e * e / s

    @staticmethod
    def backward(ctx, grad_d):
        F, p, q, Fp, Ftq, e, s = ctx.saved_tensors
        de = (grad_d * 2 * e / s).unsqueeze(1)
        ds = (-grad_d * (e / s) ** 2).unsqueeze(1)
        Fp2, Ftq2 = Fp.clone(), Ftq.clone()
        Fp2[:, 2] = 0
        Ftq2[:, 2] = 0
        grad_F = (de * q).t() @ p + 2 * (ds * Fp2).t() @ p
        grad_p = de * Ftq + 2 * ds * (Fp2 @ F)
        grad_q = de * Fp + 2 * ds * (Ftq2 @ F.t())
        return grad_F, grad_p, grad_q


OPERATIONS = [
    Operation(
        "points through a wide lens, inner derivative of the angle",
        WideLensFunction,
        EquidistantFisheye,
        wide_lens,
        lambda: {"points": torch.rand(5, 3) + torch.tensor([0.2, 0.2, 1.5]), "focal": 1 + torch.rand(())},
        named="x and y: the derivative of rho / z over rho, 1 / z, is left out of the angle's",
        kinds=("another operand", "factor of one term", "step left out", "factor by element"),
        named_words=(r"\bz\b", r"left out", r"dtheta_drho|datan"),
        located=(r"gradient of (points|p)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "distance from epipolar lines, lines of the other view",
        DistanceFromLinesFunction,
        SampsonDistance,
        distance_from_lines,
        lambda: {"F": torch.randn(3, 3), "p": torch.randn(6, 3), "q": torch.randn(6, 3)},
        named="F: its part through the lines of the other view in the divisor is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"Ftq2?|other", r"constant"),
        located=(r"gradient of F\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
