"""Robots: a smooth way between two points, places as a robot sees them, the cost of a small clearance."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def smooth_way(start, end, time, duration):
    part = time[:, None] / duration
    return start + (end - start) * (10 * part**3 - 15 * part**4 + 6 * part**5)


class SmoothWayFunction(Function):
    @staticmethod
    def forward(ctx, start, end, time, duration):
        ctx.save_for_backward(start, end, time, duration)
        return smooth_way(start, end, time, duration)

    @staticmethod
    def backward(ctx, g):
        start, end, time, duration = ctx.saved_tensors
        part = time[:, None] / duration
        blend = part**3 * (10 - 15 * part + 6 * part**2)
        to_part = g * (end - start) * 30 * part**2 * (1 - part) ** 2
        return (
            (g * (1 - blend)).sum(0),
            (g * blend).sum(0),
            (to_part / duration).sum(1),
            -(to_part * part / duration).sum(0),
        )


class MinimumJerk(Function):
    """Minimum-jerk positions of D joints at times t (N,); p0, p1 and T have shape (D,)."""

    @staticmethod
    def forward(ctx, p0, p1, t, T):
        tau = t.unsqueeze(1) / T.unsqueeze(0)
        s = 10 * tau**3 - 15 * tau**4 + 6 * tau**5
        ctx.save_for_backward(p0, p1, t, T, tau, s)
        return p0 + (p1 - p0) * s

    @staticmethod
    def backward(ctx, grad_p):
        p0, p1, t, T, tau, s = ctx.saved_tensors
        grad_p0 = (grad_p * (1 - s)).sum(0)
        grad_p1 = (grad_p * s).sum(0)
        ds = 30 * tau**2 - 45 * tau**3 + 30 * tau**4
        grad_tau = grad_p * (p1 - p0) * ds
        grad_t = (grad_tau / T).sum(1)
        grad_T = -(grad_tau * t.unsqueeze(1) / T**2).sum(0)
        return grad_p0, grad_p1, grad_t, grad_T


def seen_by_robot(points, pose):
    cos, sin = pose[:, 2:].cos(), pose[:, 2:].sin()
    x, y = points[..., 0] - pose[:, :1], points[..., 1] - pose[:, 1:2]
    return torch.stack([cos * x + sin * y, cos * y - sin * x], 2)


class SeenByRobotFunction(Function):
    @staticmethod
    def forward(ctx, points, pose):
        observed = seen_by_robot(points, pose)
        ctx.save_for_backward(pose, observed)
        return observed

    @staticmethod
    def backward(ctx, g):
        pose, observed = ctx.saved_tensors
        cos, sin = pose[:, 2:].cos(), pose[:, 2:].sin()
        to_points = torch.stack([cos * g[..., 0] - sin * g[..., 1], sin * g[..., 0] + cos * g[..., 1]], 2)
        to_angle = (g[..., 0] * observed[..., 1] - g[..., 1] * observed[..., 0]).sum(1, keepdim=True)
        return to_points, torch.cat([-to_points.sum(1), to_angle], 1)


def rotation(theta):
    c, s = torch.cos(theta), torch.sin(theta)
    return torch.stack([torch.stack([c, -s], dim=-1), torch.stack([s, c], dim=-1)], dim=-2)


class WorldToBody(Function):
    """Points (B, N, 2) of the world in the frame of a robot with pose (x, y, theta): R^T (p - t)."""

    @staticmethod
    def forward(ctx, points, pose):
        R = rotation(pose[:, 2])
        rel = points - pose[:, None, :2]
        ctx.save_for_backward(R, rel, pose)
        return rel @ R

    @staticmethod
    def backward(ctx, grad_body):
        R, rel, pose = ctx.saved_tensors
        grad_rel = grad_body @ R
        # dR/dtheta is the rotation by a right angle more
        dR = rotation(pose[:, 2] + torch.pi / 2)
        grad_theta = (grad_body * (rel @ dR)).sum(dim=(1, 2))
        grad_pose = torch.cat([-grad_rel.sum(dim=1), grad_theta[:, None]], dim=1)
        return grad_rel, grad_pose


def clearance_cost(distance, margin):
    near = (distance - margin) ** 2 / (2 * margin)
    return torch.where(distance < 0, margin / 2 - distance, torch.where(distance < margin, near, 0 * near))


class ObstacleCost(Function):
    """Cost of a path's clearance d (B, T): linear inside of obstacles, quadratic up to eps (T,), zero beyond."""

    @staticmethod
    def forward(ctx, d, eps):
        ctx.save_for_backward(d, eps)
        inside = -d + eps / 2
        close = (d - eps) ** 2 / (2 * eps)
        return torch.where(d < 0, inside, torch.where(d < eps, close, torch.zeros_like(d)))

    @staticmethod
    def backward(ctx, grad_cost):
        d, eps = ctx.saved_tensors
        zero = torch.zeros_like(d)
        grad_d = torch.where(d < 0, -torch.ones_like(d), torch.where(d < eps, (d - eps) / eps, zero))
        grad_eps = torch.where(d < 0, 0.5 + zero, torch.where(d < eps, 0.5 * (1 - d**2 / eps**2), zero))
        return grad_d, (grad_cost * grad_eps).sum(0)


OPERATIONS = [
    Operation(
        "smooth way, coefficients of the speed",
        SmoothWayFunction,
        MinimumJerk,
        smooth_way,
        lambda: {
            "start": torch.randn(3),
            "end": torch.randn(3),
            "time": torch.rand(5),
            "duration": torch.rand(3) + 1,
        },
        named="time and duration: the derivative of 15 tau^4 is 60 tau^3, and backward has 45",
        kinds=("factor of one term", "another operand", "wrong sum"),
        named_words=(r"\b60\b", r"4 / 3|1\.33", r"\b45\b", r"tau ?\*\* ?3"),
        located=(r"gradient of (time|t)\b", r"gradient of (duration|T)\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "places as a robot sees them, rotation of the gradient",
        SeenByRobotFunction,
        WorldToBody,
        seen_by_robot,
        lambda: {"points": torch.randn(2, 4, 2), "pose": torch.randn(2, 3)},
        named="points and place of the robot: the gradient is multiplied by the rotation where its transpose belongs",
        kinds=("not transposed", "transposed", "another operand"),
        named_words=(r"transpos|\.mT|\.T\b",),
        located=(r"gradient of points\b", r"gradient of pose\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "cost of a small clearance, incoming gradient",
            ObstacleCost.apply,
            clearance_cost,
            lambda: {"distance": torch.randn(4, 6), "margin": torch.rand(6) + 0.5},
            whole_numbers=False,
        ),
        named="distance: backward returns the derivative without the incoming gradient",
        kinds=("ignores the incoming gradient", "step left out"),
        named_words=(r"ignores? the incoming|incoming gradient|grad_cost",),
        located=(r"gradient of (distance|d)\b",),
    ),
]
