"""Motion: a thrown ball with drag and a pendulum."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

DT = 0.1
GRAVITY = 9.81


def thrown_ball(v, k):
    return v - DT * k * v.norm(dim=1, keepdim=True) * v


class ThrownBallFunction(Function):
    @staticmethod
    def forward(ctx, v, k):
        speed = v.norm(dim=1, keepdim=True)
        ctx.save_for_backward(v, k, speed)
        return v - DT * k * speed * v

    @staticmethod
    def backward(ctx, g):
        v, k, speed = ctx.saved_tensors
        dot = (g * v).sum(1, keepdim=True)
        return g - DT * k * (speed * g + dot * v / speed), -DT * (dot * speed).sum()


class QuadraticDragStep(Function):
    """One Euler step of the velocity under air drag k |v| v."""

    @staticmethod
    def forward(ctx, vel, k):
        speed = torch.sqrt((vel**2).sum(dim=1, keepdim=True))
        ctx.save_for_backward(vel, k, speed)
        return vel * (1 - DT * k * speed)

    @staticmethod
    def backward(ctx, grad_out):
        vel, k, speed = ctx.saved_tensors
        grad_vel = grad_out * (1 - DT * k * speed)
        grad_k = (grad_out * -DT * speed * vel).sum()
        return grad_vel, grad_k


def swinging(angle, rate, length):
    for _ in range(3):
        rate = rate - DT * GRAVITY / length * angle.sin()
        angle = angle + DT * rate
    return angle, rate


class SwingingFunction(Function):
    @staticmethod
    def forward(ctx, angle, rate, length):
        angles = []
        for _ in range(3):
            angles.append(angle)
            rate = rate - DT * GRAVITY / length * angle.sin()
            angle = angle + DT * rate
        ctx.save_for_backward(length, *angles)
        return angle, rate

    @staticmethod
    def backward(ctx, ga, gr):
        length, *angles = ctx.saved_tensors
        gl = torch.zeros_like(length)
        for angle in reversed(angles):
            gr = gr + DT * ga
            gl = gl + gr * DT * GRAVITY / length**2 * angle.sin()
            ga = ga - gr * DT * GRAVITY / length * angle.cos()
        return ga, gr, gl


class PendulumRollout(Function):
    """Three semi-implicit Euler steps of pendulums."""

    @staticmethod
    def forward(ctx, theta, omega, length):
        history = []
        for _ in range(3):
            history.append(theta)
            omega = omega - DT * (GRAVITY / length) * torch.sin(theta)
            theta = theta + DT * omega
        ctx.save_for_backward(torch.stack(history), length)
        return theta, omega

    @staticmethod
    def backward(ctx, grad_theta, grad_omega):
        history, length = ctx.saved_tensors
        grad_length = torch.zeros_like(length)
        for t in (2, 1, 0):
            s, c = torch.sin(history[t]), torch.cos(history[t])
            grad_length += grad_omega * DT * GRAVITY / length**2 * s
            new_grad_theta = grad_theta - grad_omega * DT * (GRAVITY / length) * c
            grad_omega = grad_omega + DT * grad_theta
            grad_theta = new_grad_theta
        return grad_theta, grad_omega, grad_length


OPERATIONS = [
    Operation(
        "thrown ball, speed as a constant",
        ThrownBallFunction,
        QuadraticDragStep,
        thrown_ball,
        lambda: {"v": torch.randn(5, 3), "k": torch.rand(()) + 0.5},
        named="vel: the speed depends on vel too; its term is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"speed|norm", r"missing|left out|leaves out", r"constant"),
        located=(r"gradient of (v|vel)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "swinging weights, order of two gradients",
        SwingingFunction,
        PendulumRollout,
        swinging,
        lambda: {"angle": torch.randn(5), "rate": torch.randn(5), "length": torch.rand(5) + 0.5},
        named="theta moves with the new omega, so grad_omega needs DT * grad_theta before its use",
        kinds=("missing term", "step left out", "another operand", "wrong intermediate value"),
        named_words=(r"order|before|after", r"missing|left out|leaves out", r"grad_omega"),
        located=(r"gradients? of (angle|theta|length|rate|omega)",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
