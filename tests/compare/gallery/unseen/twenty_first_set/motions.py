"""Motions: a body that turns, an integrator that saturates, a filter of second order."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

LIMIT = 1.0


def cross(a, b):
    (a0, a1, a2), (b0, b1, b2) = a.unbind(-1), b.unbind(-1)
    return torch.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], -1)


def angular_acceleration(omega, inertia, torque):
    return (torque - cross(omega, inertia * omega)) / inertia


class AngularAccelerationFunction(Function):
    @staticmethod
    def forward(ctx, omega, inertia, torque):
        acceleration = angular_acceleration(omega, inertia, torque)
        ctx.save_for_backward(omega, inertia, acceleration)
        return acceleration

    @staticmethod
    def backward(ctx, g):
        omega, inertia, acceleration = ctx.saved_tensors
        grad_torque = g / inertia
        to_momentum = cross(omega, grad_torque)
        grad_omega = cross(grad_torque, inertia * omega) + inertia * to_momentum
        grad_inertia = (to_momentum * omega - grad_torque * acceleration).sum(0)
        return grad_omega, grad_inertia, grad_torque


class EulerRigidBody(Function):
    """Euler's equations in the body frame, principal axes: w' = I^-1 (tau - w x I w)."""

    @staticmethod
    def forward(ctx, w, I, tau):  # noqa: E741
        L = I * w
        w_dot = (tau - cross(w, L)) / I
        ctx.save_for_backward(w, I, L, w_dot)
        return w_dot

    @staticmethod
    def backward(ctx, grad_wdot):
        w, I, L, w_dot = ctx.saved_tensors  # noqa: E741
        grad_tau = grad_wdot / I
        # gyroscopic term: d(w x L) = dw x L + w x dL
        grad_gyro = -grad_tau
        grad_w = cross(L, grad_gyro)
        grad_L = cross(grad_gyro, w)
        grad_I = -grad_tau * w_dot + grad_L * w
        return grad_w, grad_I.sum(dim=0), grad_tau


def saturated_sums(start, u):
    states = []
    for change in u.unbind(1):
        start = (start + change).clamp(-LIMIT, LIMIT)
        states.append(start)
    return torch.stack(states, 1)


class SaturatedSumsFunction(Function):
    @staticmethod
    def forward(ctx, start, u):
        states, within = [], []
        for change in u.unbind(1):
            unbounded = start + change
            within.append(unbounded.abs() <= LIMIT)
            start = unbounded.clamp(-LIMIT, LIMIT)
            states.append(start)
        ctx.save_for_backward(torch.stack(within, 1))
        return torch.stack(states, 1)

    @staticmethod
    def backward(ctx, g):
        (within,) = ctx.saved_tensors
        grad_u = torch.zeros_like(g)
        later = torch.zeros_like(g[:, 0])
        for t in reversed(range(g.size(1))):
            later = (later + g[:, t]) * within[:, t]
            grad_u[:, t] = later
        return later, grad_u


class AntiWindupIntegrator(Function):
    """Integrator of a PI controller, clamped after each sample."""

    @staticmethod
    def forward(ctx, x0, u):
        x, history = x0, []
        for t in range(u.shape[1]):
            x = x + u[:, t]
            x = torch.clamp(x, -LIMIT, LIMIT)
            history.append(x)
        out = torch.stack(history, dim=1)
        ctx.save_for_backward(x0, out)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        x0, out = ctx.saved_tensors
        states = torch.cat([x0[:, None], out], dim=1)
        grad_u = torch.empty_like(grad_out)
        carry = torch.zeros_like(x0)
        for t in range(grad_out.shape[1] - 1, -1, -1):
            inside = (states[:, t] > -LIMIT) & (states[:, t] < LIMIT)
            carry = (carry + grad_out[:, t]) * inside
            grad_u[:, t] = carry
        return carry, grad_u


def second_order_filter(x, b, a):
    y = []
    for t in range(x.size(1)):
        value = b[0] * x[:, t]
        for k in (1, 2):
            if t >= k:
                value = value + b[k] * x[:, t - k] - a[k - 1] * y[t - k]
        y.append(value)
    return torch.stack(y, 1)


class Biquad(Function):
    """Direct form I, zero initial state. b = (b0, b1, b2), a = (a1, a2) with a0 = 1."""

    @staticmethod
    def forward(ctx, x, b, a):
        y = torch.zeros_like(x)
        for n in range(x.shape[1]):
            y[:, n] = b[0] * x[:, n]
            if n > 0:
                y[:, n] += b[1] * x[:, n - 1] - a[0] * y[:, n - 1]
            if n > 1:
                y[:, n] += b[2] * x[:, n - 2] - a[1] * y[:, n - 2]
        ctx.save_for_backward(x, b, a, y)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, b, a, y = ctx.saved_tensors
        grad_x = grad_b = grad_a = None
        N = x.shape[1]
        v = grad_y.clone()
        for n in range(N - 2, -1, -1):
            v[:, n] -= a[0] * v[:, n + 1]
            if n < N - 2:
                v[:, n] -= a[1] * v[:, n + 2]
        if ctx.needs_input_grad[0]:
            grad_x = b[0] * v
            grad_x[:, :-1] += b[1] * v[:, 1:]
            grad_x[:, :-2] += b[2] * v[:, 2:]
        if ctx.needs_input_grad[1]:
            grad_b = torch.stack([(v * x).sum(), (v[:, 1:] * x[:, :-1]).sum(), (v[:, 2:] * x[:, :-2]).sum()])
            grad_a = -torch.stack([(v[:, 1:] * y[:, :-1]).sum(), (v[:, 2:] * y[:, :-2]).sum()])
        return grad_x, grad_b, grad_a


OPERATIONS = [
    Operation(
        "a body that turns, momentum as a constant",
        AngularAccelerationFunction,
        EulerRigidBody,
        angular_acceleration,
        lambda: {"omega": torch.randn(4, 3), "inertia": 0.5 + torch.rand(3), "torque": torch.randn(4, 3)},
        named="omega: the momentum, inertia * omega, depends on omega too, and its gradient is not passed on",
        kinds=("missing term",),
        named_words=(r"constant", r"missing", r"\bI \* grad_L|grad_L \* I\b"),
        located=(r"gradient of (omega|w)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "an integrator that saturates, state before the step in the mask",
        SaturatedSumsFunction,
        AntiWindupIntegrator,
        saturated_sums,
        lambda: {"start": 0.3 * torch.randn(5), "u": 0.8 * torch.randn(5, 6)},
        named="the gradient stops where the state before a step is at the limit, not where the state after it is",
        kinds=("shifted", "only for some values", "only at bounds", "another operand", "factor by element"),
        named_words=(r"t \+ 1|\bout\b", r"shifted|next step|one step", r"mask|\binside\b"),
        located=(r"gradient of (u|start|x0)\b",),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "a filter of second order, two gradients under one condition",
            Biquad.apply,
            second_order_filter,
            lambda: {
                "x": torch.randn(3, 7),
                "b": torch.randn(3),
                "a": torch.tensor([-0.5, 0.3]) + 0.1 * torch.randn(2),
            },
            whole_numbers=False,
        ),
        named="the gradient of a is computed only if b requires one",
        kinds=("depends on which inputs require a gradient",),
        named_words=(r"requires? (a |no )?grad", r"needs_input_grad"),
        located=(r"gradient of a\b",),
    ),
]
