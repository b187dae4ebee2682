"""Vehicles: poses one after the other, a drive with a steering angle, points that a scanner sees."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

TIME = 0.5
WHEELBASE = 1.5


def composed(first, second):
    cos, sin = first[:, 2].cos(), first[:, 2].sin()
    x = first[:, 0] + cos * second[:, 0] - sin * second[:, 1]
    y = first[:, 1] + sin * second[:, 0] + cos * second[:, 1]
    return torch.stack([x, y, first[:, 2] + second[:, 2]], 1)


class ComposedFunction(Function):
    @staticmethod
    def forward(ctx, first, second):
        ctx.save_for_backward(first, second)
        return composed(first, second)

    @staticmethod
    def backward(ctx, g):
        first, second = ctx.saved_tensors
        cos, sin = first[:, 2].cos(), first[:, 2].sin()
        along = cos * g[:, 0] + sin * g[:, 1]
        across = cos * g[:, 1] - sin * g[:, 0]
        to_heading = g[:, 2] + across * second[:, 0] - along * second[:, 1]
        grad_first = torch.stack([g[:, 0], g[:, 1], to_heading], 1)
        return grad_first, torch.stack([along, across, g[:, 2]], 1)


def rotation(theta):
    c, s = torch.cos(theta), torch.sin(theta)
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


class PoseCompose(Function):
    """SE(2): T_a * T_b for poses (x, y, theta)."""

    @staticmethod
    def forward(ctx, a, b):
        R = rotation(a[..., 2])
        ctx.save_for_backward(R)
        xy = a[..., :2] + (R @ b[..., :2, None]).squeeze(-1)
        return torch.cat([xy, a[..., 2:] + b[..., 2:]], dim=-1)

    @staticmethod
    def backward(ctx, grad_pose):
        (R,) = ctx.saved_tensors
        grad_xy, grad_theta = grad_pose[..., :2], grad_pose[..., 2:]
        grad_a = torch.cat([grad_xy, grad_theta], dim=-1)
        grad_b_xy = (R.transpose(-1, -2) @ grad_xy.unsqueeze(-1)).squeeze(-1)
        grad_b = torch.cat([grad_b_xy, grad_theta], dim=-1)
        return grad_a, grad_b


def drive(speed, steering):
    place, heading, places = speed.new_zeros(speed.shape[1], 2), torch.zeros_like(speed[0]), []
    for v, angle in zip(speed, steering, strict=True):
        place = place + TIME * v[:, None] * torch.stack([heading.cos(), heading.sin()], 1)
        heading = heading + TIME * v * angle.tan() / WHEELBASE
        places.append(place)
    return torch.stack(places)


class DriveFunction(Function):
    @staticmethod
    def forward(ctx, speed, steering):
        ctx.save_for_backward(speed, steering)
        return drive(speed, steering)

    @staticmethod
    def backward(ctx, g):
        speed, steering = ctx.saved_tensors
        turns = TIME * speed * steering.tan() / WHEELBASE
        heading = turns.cumsum(0) - turns
        to_place = g.flip(0).cumsum(0).flip(0)
        ahead = torch.stack([heading.cos(), heading.sin()], 2)
        left = torch.stack([-heading.sin(), heading.cos()], 2)
        through_heading = TIME * speed * (to_place * left).sum(2)
        to_turn = through_heading.flip(0).cumsum(0).flip(0) - through_heading
        slope = TIME / WHEELBASE
        grad_speed = TIME * (to_place * ahead).sum(2) + slope * steering.tan() * to_turn
        return grad_speed, slope * speed / steering.cos() ** 2 * to_turn


class BicycleModel(Function):
    @staticmethod
    def forward(ctx, v, delta):
        steps, n = v.shape
        x, y, theta = v.new_zeros(n), v.new_zeros(n), v.new_zeros(n)
        path = v.new_empty(steps, n, 2)
        thetas = torch.empty_like(v)
        for t in range(steps):
            x = x + TIME * v[t] * torch.cos(theta)
            y = y + TIME * v[t] * torch.sin(theta)
            theta = theta + TIME * v[t] / WHEELBASE * torch.tan(delta[t])
            path[t, :, 0], path[t, :, 1], thetas[t] = x, y, theta
        ctx.save_for_backward(v, delta, thetas)
        return path

    @staticmethod
    def backward(ctx, grad_path):
        v, delta, thetas = ctx.saved_tensors
        grad_v, grad_delta = torch.zeros_like(v), torch.zeros_like(delta)
        gx, gy, gtheta = (grad_path.new_zeros(v.size(1)) for _ in range(3))
        for t in reversed(range(v.size(0))):
            gx = gx + grad_path[t, :, 0]
            gy = gy + grad_path[t, :, 1]
            c, s = torch.cos(thetas[t]), torch.sin(thetas[t])
            tan = torch.tan(delta[t])
            grad_v[t] = TIME * (gx * c + gy * s + gtheta * tan / WHEELBASE)
            grad_delta[t] = gtheta * TIME * v[t] / WHEELBASE * (1 + tan * tan)
            gtheta = gtheta + TIME * v[t] * (gy * c - gx * s)
        return grad_v, grad_delta


def seen_by_scanner(points):
    distance = points.norm(dim=1)
    longitude = torch.atan2(points[:, 1], points[:, 0])
    return torch.stack([longitude, torch.asin(points[:, 2] / distance)], 1), distance


class SphericalProjection(Function):
    @staticmethod
    def forward(ctx, xyz):
        x, y, z = xyz.unbind(-1)
        r = xyz.norm(dim=-1)
        ctx.save_for_backward(xyz, r)
        angles = torch.stack([torch.atan2(y, x), torch.asin(z / r)], dim=-1)
        return angles, r

    @staticmethod
    def backward(ctx, grad_angles, grad_r):
        xyz, r = ctx.saved_tensors
        x, y, z = xyz.unbind(-1)
        rho2 = x * x + y * y
        rho = rho2.sqrt()
        g_lon, g_lat = grad_angles.unbind(-1)
        grad_x = -g_lon * y / rho2 - g_lat * x * z / (rho * r * r)
        grad_y = g_lon * x / rho2 - g_lat * y * z / (rho * r * r)
        grad_z = g_lat * rho / (r * r)
        return torch.stack([grad_x, grad_y, grad_z], dim=-1)


OPERATIONS = [
    Operation(
        "poses one after the other, turn of the second place",
        ComposedFunction,
        PoseCompose,
        composed,
        lambda: {"first": torch.randn(5, 3), "second": torch.randn(5, 3)},
        named="first: the heading's gradient lacks the part through the turned place of the second pose",
        kinds=("missing term", "passes the incoming gradient through", "only at some indices", "step left out"),
        named_words=(r"missing", r"passes", r"second|\bb\b", r"rotat|theta|\bR\b|turn"),
        located=(r"gradient of (first|a)\b",),
    ),
    Operation(
        "drive with a steering angle, heading after the step",
        DriveFunction,
        BicycleModel,
        drive,
        lambda: {"speed": torch.randn(4, 3), "steering": 0.5 * torch.randn(4, 3)},
        named="the saved headings are those after each step, where the step itself is made in the one before",
        kinds=("shifted", "another operand"),
        named_words=(r"thetas?\b", r"heading", r"shift|previous|before|earlier|roll"),
        located=(r"gradient of (speed|v)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "points seen by a scanner, distance",
            SphericalProjection.apply,
            seen_by_scanner,
            lambda: {"points": torch.randn(6, 3)},
            whole_numbers=False,
        ),
        named="the incoming gradient of the second output, the distance, is not used",
        kinds=("missing term", "ignores the incoming gradient", "step left out"),
        named_words=(r"output 1|second output|grad_r\b|distance", r"ignore|not use|unused|missing"),
        located=(r"gradient of (points|xyz)",),
    ),
]
