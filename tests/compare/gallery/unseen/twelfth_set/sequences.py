"""Sequences: gaps of time, the update of a stack."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def decaying_over_gaps(x, gaps, tau):
    state, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        state = state * (-gaps[:, t, None] / tau).exp() + x[:, t]
        states.append(state)
    return torch.stack(states, 1)


class TimeDecay(Function):
    @staticmethod
    def forward(ctx, x, dt, tau):
        decay = torch.exp(-dt.unsqueeze(-1) / tau)
        h = x.clone()
        for t in range(1, x.size(1)):
            h[:, t] += decay[:, t] * h[:, t - 1]
        ctx.save_for_backward(dt, tau, decay, h)
        return h

    @staticmethod
    def backward(ctx, grad_h):
        dt, tau, decay, h = ctx.saved_tensors
        dh = grad_h.clone()
        d_decay = torch.zeros_like(decay)
        for t in range(dh.size(1) - 1, 0, -1):
            d_decay[:, t] = dh[:, t] * h[:, t - 1]
            dh[:, t - 1] += decay[:, t] * dh[:, t]
        d_exponent = d_decay * decay
        d_dt = -(d_exponent / tau).sum(-1)
        d_tau = (d_exponent * dt.unsqueeze(-1)).sum((0, 1))
        return dh, d_dt, d_tau


def stack_update(stack, top, push, pop):
    keep = 1 - push - pop
    pushed = torch.cat([top[:, None], stack[:, :-1]], 1)
    popped = torch.cat([stack[:, 1:], torch.zeros_like(top)[:, None]], 1)
    return push[:, None, None] * pushed + pop[:, None, None] * popped + keep[:, None, None] * stack


def stack_inputs():
    gates = torch.rand(3, 3).softmax(1)
    return {"stack": torch.randn(3, 4, 2), "top": torch.randn(3, 2), "push": gates[:, 0], "pop": gates[:, 1]}


class StackUpdateFunction(Function):
    @staticmethod
    def forward(ctx, stack, top, push, pop):
        ctx.save_for_backward(stack, top, push, pop)
        return stack_update(stack, top, push, pop)

    @staticmethod
    def backward(ctx, g):
        stack, top, push, pop = ctx.saved_tensors
        keep = 1 - push - pop
        grad_stack = keep[:, None, None] * g
        grad_stack[:, :-1] += push[:, None, None] * g[:, 1:]
        grad_stack[:, 1:] += pop[:, None, None] * g[:, :-1]
        kept = (g * stack).sum((1, 2))
        pushed = (g[:, 0] * top).sum(1) + (g[:, 1:] * stack[:, :-1]).sum((1, 2))
        popped = (g[:, :-1] * stack[:, 1:]).sum((1, 2))
        return grad_stack, push[:, None] * g[:, 0], pushed - kept, popped - kept


class ContinuousStack(Function):
    @staticmethod
    def forward(ctx, stack, value, push, pop):
        a, b = push.view(-1, 1, 1), pop.view(-1, 1, 1)
        down = stack.roll(1, dims=1)
        down[:, 0] = value
        up = stack.roll(-1, dims=1)
        up[:, -1] = 0
        ctx.save_for_backward(stack, down, up, a, b)
        return a * down + b * up + (1 - a - b) * stack

    @staticmethod
    def backward(ctx, grad):
        stack, down, up, a, b = ctx.saved_tensors
        grad_push = (grad * (down - stack)).sum((1, 2))
        grad_pop = (grad * (up - stack)).sum((1, 2))
        grad_value = (a * grad)[:, 0]
        grad_stack = (1 - a - b) * grad + (a * grad).roll(-1, dims=1) + (b * grad).roll(1, dims=1)
        return grad_stack, grad_value, grad_push, grad_pop


OPERATIONS = [
    Operation(
        "update of a stack, rolled",
        StackUpdateFunction,
        ContinuousStack,
        stack_update,
        stack_inputs,
        named="backward rolls the gradient around: the top's goes to the last place, the last one's to the top",
        kinds=("missing term", "only at borders", "only at some indices", "another operand", "step left out"),
        named_words=(
            r"roll|wrap|circular|around",
            r"\bfirst\b.*\blast\b|\blast\b.*\bfirst\b",
            r"\bends?\b|border|\b0 (and|or) 3\b",
            r"one too many|extra",
        ),
        located=(r"gradient of stack",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "decay over gaps of time, inner derivative of tau",
            TimeDecay.apply,
            decaying_over_gaps,
            lambda: {"x": torch.randn(3, 5, 2), "gaps": torch.rand(3, 5) + 0.3, "tau": torch.rand(2) * 2 + 1.5},
            whole_numbers=False,
        ),
        named="tau: the exponent is -gap / tau, and the square of tau that divides its derivative is left out",
        kinds=("step left out", "factor by element", "another operand"),
        named_words=(r"divi[ds]|\bdiv\b|reciprocal|1 ?/", r"\btau\b.*(square|left out|\*\*|²)", r"factor of its own"),
        located=(r"gradient of tau",),
    ),
]
