"""Robots: an arm of two links and a driven robot."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

DT = 0.1


def hand_of_arm(q, lengths):
    a, b = q[:, 0], q[:, 0] + q[:, 1]
    x = lengths[0] * a.cos() + lengths[1] * b.cos()
    y = lengths[0] * a.sin() + lengths[1] * b.sin()
    return torch.stack([x, y], 1)


class HandOfArmFunction(Function):
    @staticmethod
    def forward(ctx, q, lengths):
        ctx.save_for_backward(q, lengths)
        return hand_of_arm(q, lengths)

    @staticmethod
    def backward(ctx, g):
        q, lengths = ctx.saved_tensors
        angles = q.cumsum(1)
        cos, sin = angles.cos(), angles.sin()
        gx, gy = g[:, :1], g[:, 1:]
        grad_angles = lengths * (gy * cos - gx * sin)
        grad_q = torch.stack([grad_angles.sum(1), grad_angles[:, 1]], 1)
        return grad_q, (gx * cos + gy * sin).sum(0)


class TwoLinkForward(Function):
    """Forward kinematics of a planar arm with two joints."""

    @staticmethod
    def forward(ctx, q, lengths):
        q1, q12 = q[:, 0], q[:, 0] + q[:, 1]
        ctx.save_for_backward(q1, q12, lengths)
        l1, l2 = lengths
        return torch.stack((l1 * q1.cos() + l2 * q12.cos(), l1 * q1.sin() + l2 * q12.sin()), dim=1)

    @staticmethod
    def backward(ctx, grad_output):
        q1, q12, lengths = ctx.saved_tensors
        l1, l2 = lengths
        gx, gy = grad_output.unbind(1)
        grad_q1 = -gx * l1 * q1.sin() + gy * l1 * q1.cos()
        grad_q2 = -gx * l2 * q12.sin() + gy * l2 * q12.cos()
        grad_l1 = (gx * q1.cos() + gy * q1.sin()).sum()
        grad_l2 = (gx * q12.cos() + gy * q12.sin()).sum()
        return torch.stack((grad_q1, grad_q2), dim=1), torch.stack((grad_l1, grad_l2))


def driven_robot(pose, controls):
    x, y, heading = pose.unbind(1)
    for v, w in zip(controls[..., 0].unbind(1), controls[..., 1].unbind(1), strict=True):
        x, y, heading = x + DT * v * heading.cos(), y + DT * v * heading.sin(), heading + DT * w
    return torch.stack([x, y, heading], 1)


class DrivenRobotFunction(Function):
    @staticmethod
    def forward(ctx, pose, controls):
        w = controls[..., 1]
        headings = pose[:, 2:] + DT * (w.cumsum(1) - w)
        ctx.save_for_backward(headings, controls)
        return driven_robot(pose, controls)

    @staticmethod
    def backward(ctx, g):
        headings, controls = ctx.saved_tensors
        gx, gy, gh = g.unbind(1)
        grad_controls = torch.zeros_like(controls)
        for k in reversed(range(controls.shape[1])):
            cos, sin = headings[:, k].cos(), headings[:, k].sin()
            grad_controls[:, k, 0] = DT * (gx * cos + gy * sin)
            grad_controls[:, k, 1] = DT * gh
            gh = gh + DT * controls[:, k, 0] * (gy * cos - gx * sin)
        return torch.stack([gx, gy, gh], 1), grad_controls


class UnicycleRollout(Function):
    """Poses (x, y, theta) of a unicycle after T steps of (speed, turn rate)."""

    @staticmethod
    def forward(ctx, pose, controls):
        x, y, th = pose[:, 0].clone(), pose[:, 1].clone(), pose[:, 2].clone()
        thetas = []
        for k in range(controls.size(1)):
            v, w = controls[:, k, 0], controls[:, k, 1]
            x += DT * v * torch.cos(th)
            y += DT * v * torch.sin(th)
            th += DT * w
            thetas.append(th.clone())
        ctx.save_for_backward(controls, torch.stack(thetas, dim=1))
        return torch.stack((x, y, th), dim=1)

    @staticmethod
    def backward(ctx, grad_output):
        controls, thetas = ctx.saved_tensors
        gx, gy, gth = grad_output.unbind(1)
        grads = []
        for k in range(controls.size(1) - 1, -1, -1):
            th, v = thetas[:, k], controls[:, k, 0]
            gv = DT * (gx * torch.cos(th) + gy * torch.sin(th))
            gw = DT * gth
            grads.append(torch.stack((gv, gw), dim=1))
            gth = gth + DT * v * (gy * torch.cos(th) - gx * torch.sin(th))
        return torch.stack((gx, gy, gth), dim=1), torch.stack(grads[::-1], dim=1)


OPERATIONS = [
    Operation(
        "hand of an arm, second link by the first joint",
        HandOfArmFunction,
        TwoLinkForward,
        hand_of_arm,
        lambda: {"q": torch.randn(5, 2), "lengths": torch.rand(2) + 0.5},
        named="q: the first joint turns the second link too; its gradient lacks grad_q2",
        kinds=("missing term", "step left out", "only at some indices", "wrong sum"),
        named_words=(r"missing|left out|leaves out", r"grad_q2|q12|l2", r"\[.*0\]|column 0"),
        located=(r"gradient of q\b",),
    ),
    Operation(
        "driven robot, heading after the step",
        DrivenRobotFunction,
        UnicycleRollout,
        driven_robot,
        lambda: {"pose": torch.randn(4, 3), "controls": torch.randn(4, 5, 2)},
        named="forward saves the headings after each step; backward needs those before it",
        kinds=("another operand", "wrong intermediate value", "shifted", "step left out"),
        named_words=(r"\bth\b|thetas|heading", r"before|after|next|previous|shift"),
        located=(r"gradient of (controls|pose)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
