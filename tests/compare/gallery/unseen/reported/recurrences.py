"""Reported mistakes in scans and recurrences."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

STEPS = 4


def running_sum(x):
    return x.cumsum(1)


class RunningSumFunction(Function):
    @staticmethod
    def forward(ctx, x):
        return running_sum(x)

    @staticmethod
    def backward(ctx, g):
        return g.flip(1).cumsum(1).flip(1)


class Cumsum(Function):
    @staticmethod
    def forward(ctx, x):
        return torch.cumsum(x, dim=1)

    @staticmethod
    def backward(ctx, grad_output):
        grad_input = torch.cumsum(-grad_output, dim=1)
        end = grad_input.size(1) - 1
        return grad_input - grad_input.select(1, end).unsqueeze(1).expand_as(grad_input)


def recurrence(x, weight):
    h = torch.zeros_like(x[0])
    for t in range(STEPS):
        h = torch.tanh(x[t] + h @ weight.T)
    return h


class RecurrenceFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        states = [torch.zeros_like(x[0])]
        for t in range(STEPS):
            states.append(torch.tanh(x[t] + states[-1] @ weight.T))
        ctx.save_for_backward(weight, torch.stack(states))
        return states[-1]

    @staticmethod
    def backward(ctx, g):
        weight, states = ctx.saved_tensors
        grad_x, grad_weight = torch.zeros_like(states[1:]), torch.zeros_like(weight)
        for t in reversed(range(STEPS)):
            delta = g * (1 - states[t + 1] ** 2)
            grad_x[t] = delta
            grad_weight += delta.T @ states[t]
            g = delta @ weight
        return grad_x, grad_weight


class RecurrentLayer(Function):
    @staticmethod
    def forward(ctx, x, weight):
        h = torch.zeros_like(x[0])
        hidden = []
        for step in x:
            hidden.append(h)
            h = torch.tanh(step + h @ weight.t())
        ctx.save_for_backward(x, weight, torch.stack(hidden), h)
        return h

    @staticmethod
    def backward(ctx, grad_h):
        x, weight, hidden, last = ctx.saved_tensors
        outputs = torch.cat([hidden[1:], last[None]])
        grad_x = torch.zeros_like(x)
        grad_weight = torch.zeros_like(weight)
        dh = grad_h
        for t in range(len(x) - 1, -1, -1):
            dz = dh * (1 - outputs[t] * outputs[t])
            grad_x[t] = dz
            grad_weight += dz.t() @ hidden[t]
            dh = torch.zeros_like(dh)
        return grad_x, grad_weight


def both_directions(x, decay):
    forward, backward = [], []
    h = torch.zeros_like(x[0])
    for t in range(STEPS):
        h = decay * h + x[t]
        forward.append(h)
    h = torch.zeros_like(x[0])
    for t in reversed(range(STEPS)):
        h = decay * h + x[t]
        backward.insert(0, h)
    return torch.stack(forward) + torch.stack(backward)


class BothDirectionsFunction(Function):
    @staticmethod
    def forward(ctx, x, decay):
        ctx.save_for_backward(x, decay)
        return both_directions(x, decay)

    @staticmethod
    def backward(ctx, g):
        x, decay = ctx.saved_tensors
        grad_x, grad_decay = torch.zeros_like(x), torch.zeros_like(decay)
        for order in (range(STEPS), range(STEPS - 1, -1, -1)):
            states, h = {}, torch.zeros_like(x[0])
            for t in order:
                states[t] = h
                h = decay * h + x[t]
            carry = torch.zeros_like(x[0])
            for t in reversed(order):
                carry = carry + g[t]
                grad_x[t] += carry
                grad_decay += (carry * states[t]).sum(0)
                carry = carry * decay
        return grad_x, grad_decay


class Bidirectional(Function):
    @staticmethod
    def forward(ctx, x, decay):
        ctx.save_for_backward(x, decay)
        return both_directions(x, decay)

    @staticmethod
    def backward(ctx, dy):
        x, decay = ctx.saved_tensors
        dy = dy.clone()
        ddecay = torch.zeros_like(decay)
        hidden = [torch.zeros_like(x[0])]
        for t in range(STEPS - 1):
            hidden.append(decay * hidden[t] + x[t])
        carry = torch.zeros_like(x[0])
        for t in reversed(range(STEPS)):
            carry = carry + dy[t]
            dy[t] = carry
            ddecay += (carry * hidden[t]).sum(0)
            carry = carry * decay
        hidden = [torch.zeros_like(x[0])]
        for t in reversed(range(1, STEPS)):
            hidden.insert(0, decay * hidden[0] + x[t])
        dx = dy.clone()
        carry = torch.zeros_like(x[0])
        for t in range(STEPS):
            carry = carry + dy[t]
            dx[t] += carry
            ddecay += (carry * hidden[t]).sum(0)
            carry = carry * decay
        return dx, ddecay


OPERATIONS = [
    Operation(
        "running sum, own element",
        RunningSumFunction,
        Cumsum,
        running_sum,
        lambda: (torch.randn(5, 4),),
        named="each element's own gradient is missing from the sum of later ones (pytorch/pytorch #1122)",
        kinds=("missing term", "shifted", "another operand"),
        named_words=(r"diagonal|own|same|i = k|k = i|\+ grad_output|column",),
        located=(r"gradient of x",),
    ),
    Operation(
        "recurrence, hidden gradient dropped",
        RecurrenceFunction,
        RecurrentLayer,
        recurrence,
        lambda: (torch.randn(4, 3, 2), torch.randn(2, 2)),
        named="the gradient of the hidden state is set to 0 between the steps (ooples/AiDotNet #722)",
        kinds=("zero", "missing term", "only at some indices", "change of the source"),
        named_words=(r"earlier|before|later|first|index 3|last|constant|missing|zero|dz @ weight",),
        located=(r"gradient of x", r"gradient of weight"),
        options={"whole_numbers": False},
    ),
    Operation(
        "two directions, incoming gradient written over",
        BothDirectionsFunction,
        Bidirectional,
        both_directions,
        lambda: (torch.randn(4, 3, 2), torch.rand(2)),
        named="the second direction uses the first one's result as its incoming gradient (apache/mxnet #18203)",
        kinds=("another operand", "missing term", "step left out", "change of the source"),
        named_words=(r"incoming|twice|too many|counts|dy\b", r"missing|surplus|another"),
        located=(r"gradient of x",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
