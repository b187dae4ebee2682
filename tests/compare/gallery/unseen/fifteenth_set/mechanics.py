"""Mechanics: hand of an arm of links, cost of a controlled system, coupled oscillators."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EFFORT = 0.4
STEPS = 4
SYSTEM = ((0.9, 0.3, 0.0), (-0.2, 0.8, 0.1), (0.1, 0.0, 0.7))
INPUTS = ((0.5, 0.0), (0.3, -0.6), (0.0, 0.8))


def hand(angles, lengths):
    directions = torch.cumsum(angles, 1)
    return torch.stack([(lengths * directions.cos()).sum(1), (lengths * directions.sin()).sum(1)], 1)


class HandFunction(Function):
    @staticmethod
    def forward(ctx, angles, lengths):
        ctx.save_for_backward(angles, lengths)
        return hand(angles, lengths)

    @staticmethod
    def backward(ctx, g):
        angles, lengths = ctx.saved_tensors
        directions = torch.cumsum(angles, 1)
        along = g[:, :1] * directions.cos() + g[:, 1:] * directions.sin()
        across = g[:, 1:] * directions.cos() - g[:, :1] * directions.sin()
        return (across * lengths).flip(1).cumsum(1).flip(1), along.sum(0)


class PlanarArm(Function):
    @staticmethod
    def forward(ctx, q, link):
        phi = q.cumsum(dim=1)
        c, s = phi.cos(), phi.sin()
        ctx.save_for_backward(c, s, link)
        return torch.stack((c @ link, s @ link), dim=1)

    @staticmethod
    def backward(ctx, grad_tip):
        c, s, link = ctx.saved_tensors
        gx, gy = grad_tip.unbind(dim=1)
        grad_phi = link * (gy.unsqueeze(1) * c - gx.unsqueeze(1) * s)
        grad_q = grad_phi.cumsum(dim=1)
        grad_link = gx @ c + gy @ s
        return grad_q, grad_link


def controlled_cost(start, feedback):
    a, b = torch.tensor(SYSTEM).to(start), torch.tensor(INPUTS).to(start)
    state, cost = start, 0
    for _ in range(STEPS):
        control = -feedback @ state
        cost = cost + state @ state + EFFORT * control @ control
        state = a @ state + b @ control
    return cost + state @ state


class ControlledCostFunction(Function):
    @staticmethod
    def forward(ctx, start, feedback):
        ctx.save_for_backward(start, feedback)
        return controlled_cost(start, feedback)

    @staticmethod
    def backward(ctx, g):
        start, feedback = ctx.saved_tensors
        a, b = torch.tensor(SYSTEM).to(start), torch.tensor(INPUTS).to(start)
        states = [start]
        for _ in range(STEPS):
            states.append(a @ states[-1] - b @ (feedback @ states[-1]))
        to_state, to_feedback = 2 * g * states.pop(), torch.zeros_like(feedback)
        for state in reversed(states):
            to_control = b.T @ to_state - 2 * g * EFFORT * (feedback @ state)
            to_feedback -= torch.outer(to_control, state)
            to_state = 2 * g * state + a.T @ to_state - feedback.T @ to_control
        return to_state, to_feedback


class LQRCost(Function):
    @staticmethod
    def forward(ctx, x0, K):
        A = torch.tensor(SYSTEM).to(x0)
        B = torch.tensor(INPUTS).to(x0)
        xs, cost = [x0], x0.new_zeros(())
        for _ in range(STEPS):
            u = K @ xs[-1]
            cost = cost + xs[-1].square().sum() + EFFORT * u.square().sum()
            xs.append(A @ xs[-1] - B @ u)
        ctx.save_for_backward(K, A, B, torch.stack(xs))
        return cost + xs[-1].square().sum()

    @staticmethod
    def backward(ctx, grad):
        K, A, B, xs = ctx.saved_tensors
        closed = A - B @ K
        lam = 2 * xs[STEPS]
        grad_K = torch.zeros_like(K)
        for t in range(STEPS - 1, -1, -1):
            u = K @ xs[t]
            grad_K += torch.outer(2 * EFFORT * u - B.t() @ lam, xs[t])
            lam = 2 * xs[t] + closed.t() @ lam
        return grad * lam, grad * grad_K


def oscillator_rates(phase, coupling):
    return (coupling * torch.sin(phase - phase[:, None])).mean(1)


class Kuramoto(Function):
    @staticmethod
    def forward(ctx, theta, K):
        diff = theta.unsqueeze(0) - theta.unsqueeze(1)
        ctx.save_for_backward(diff, K)
        return (K * diff.sin()).sum(dim=1) / theta.numel()

    @staticmethod
    def backward(ctx, grad):
        diff, K = ctx.saved_tensors
        n = diff.size(0)
        J = K * diff.cos() / n
        grad_theta = J.t() @ grad - J.sum(dim=0) * grad
        grad_K = grad.unsqueeze(1) * diff.sin() / n
        return grad_theta, grad_K


OPERATIONS = [
    Operation(
        "hand of an arm, direction of the sums",
        HandFunction,
        PlanarArm,
        hand,
        lambda: {"angles": torch.randn(3, 4), "lengths": 0.5 + torch.rand(4)},
        named="angles: the sums run over the earlier links, where they belong over the later ones",
        kinds=("not transposed", "flipped", "transposed", "another operand"),
        named_words=(r"direction|revers|flip", r"transpos", r"cumsum"),
        located=(r"gradient of (angles|q)\b",),
    ),
    Operation(
        "cost of a controlled system, effort through the state",
        ControlledCostFunction,
        LQRCost,
        controlled_cost,
        lambda: {"start": torch.randn(3), "feedback": torch.randn(2, 3) / 2},
        named="the carried gradient lacks the effort's part, 2 EFFORT K^T u: the effort depends on the state too",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"no effect", r"EFFORT"),
        located=(r"gradient of (start|x0)", r"gradient of (feedback|K)\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "coupled oscillators, sum of the own part",
            Kuramoto.apply,
            oscillator_rates,
            lambda: {"phase": torch.randn(5), "coupling": torch.randn(5, 5)},
        ),
        named="phase: the own part sums the couplings over dimension 0, the receivers, instead of 1, the senders",
        kinds=("wrong sum", "another operand", "transposed", "not transposed"),
        named_words=(r"\bsum\b", r"dimension|dim\b", r"transpos"),
        located=(r"gradient of (phase|theta)",),
    ),
]
