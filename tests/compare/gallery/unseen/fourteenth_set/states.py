"""States: a recurrent unit whose gate sees the state, a step of Runge and Kutta, a stick broken into parts."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

STEP = 0.8


def simple_recurrent(candidates, gates, peek):
    state, states = torch.zeros_like(candidates[0]), []
    for candidate, gate in zip(candidates, gates, strict=True):
        forget = torch.sigmoid(gate + peek * state)
        state = forget * state + (1 - forget) * candidate
        states.append(state)
    return torch.stack(states)


class SimpleRecurrentFunction(Function):
    @staticmethod
    def forward(ctx, candidates, gates, peek):
        states = simple_recurrent(candidates, gates, peek)
        ctx.save_for_backward(candidates, gates, peek, states)
        return states

    @staticmethod
    def backward(ctx, g):
        candidates, gates, peek, states = ctx.saved_tensors
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        forget = torch.sigmoid(gates + peek * before)
        to_candidates, to_gates = torch.zeros_like(g), torch.zeros_like(g)
        carried = torch.zeros_like(g[0])
        for t in reversed(range(len(g))):
            carried = carried + g[t]
            to_candidates[t] = carried * (1 - forget[t])
            to_gates[t] = carried * (before[t] - candidates[t]) * forget[t] * (1 - forget[t])
            carried = carried * forget[t] + to_gates[t] * peek
        return to_candidates, to_gates, (to_gates * before).sum((0, 1))


class SRUCell(Function):
    @staticmethod
    def forward(ctx, u, pre, v):
        c = torch.zeros_like(u[0])
        cs, fs = [c], []
        for t in range(u.size(0)):
            f = torch.sigmoid(pre[t] + v * c)
            c = f * c + (1 - f) * u[t]
            cs.append(c)
            fs.append(f)
        ctx.save_for_backward(u, v, torch.stack(cs), torch.stack(fs))
        return torch.stack(cs[1:])

    @staticmethod
    def backward(ctx, grad_c):
        u, v, c, f = ctx.saved_tensors
        grad_u = torch.empty_like(u)
        grad_pre = torch.empty_like(u)
        grad_v = torch.zeros_like(v)
        dc = torch.zeros_like(c[0])
        for t in range(u.size(0) - 1, -1, -1):
            dc = dc + grad_c[t]
            grad_u[t] = (1 - f[t]) * dc
            grad_pre[t] = dc * (c[t] - u[t]) * f[t] * (1 - f[t])
            grad_v += (grad_pre[t] * c[t]).sum(0)
            dc = f[t] * dc
        return grad_u, grad_pre, grad_v


def runge_kutta(x, weight):
    def slope(point):
        return torch.tanh(point @ weight.T)

    first = slope(x)
    second = slope(x + STEP / 2 * first)
    third = slope(x + STEP / 2 * second)
    fourth = slope(x + STEP * third)
    return x + STEP / 6 * (first + 2 * second + 2 * third + fourth)


class RungeKuttaFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return runge_kutta(x, weight)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        points, slopes = [x], [torch.tanh(x @ weight.T)]
        for part in (STEP / 2, STEP / 2, STEP):
            points.append(x + part * slopes[-1])
            slopes.append(torch.tanh(points[-1] @ weight.T))
        grad_x, grad_weight, to_point = g, torch.zeros_like(weight), torch.zeros_like(g)
        for point, slope, share, part in zip(
            reversed(points), reversed(slopes), (1, 2, 2, 1), (0, STEP, STEP / 2, STEP / 2), strict=True
        ):
            to_sum = (STEP / 6 * share * g + part * to_point) * (1 - slope**2)
            to_point = to_sum @ weight
            grad_x, grad_weight = grad_x + to_point, grad_weight + to_sum.T @ point
        return grad_x, grad_weight


def slope_vjp(grad_k, k, point, w):
    pre = grad_k * (1 - k * k)
    return pre @ w, pre.t() @ point


class RK4Step(Function):
    @staticmethod
    def forward(ctx, x, w):
        k1 = torch.tanh(x @ w.t())
        x2 = x + 0.5 * STEP * k1
        k2 = torch.tanh(x2 @ w.t())
        x3 = x + 0.5 * STEP * k2
        k3 = torch.tanh(x3 @ w.t())
        x4 = x + STEP * k3
        k4 = torch.tanh(x4 @ w.t())
        ctx.save_for_backward(x, x2, x3, x4, k1, k2, k3, k4, w)
        return x + STEP * (k1 + 2 * k2 + 2 * k3 + k4) / 6

    @staticmethod
    def backward(ctx, grad):
        x, x2, x3, x4, k1, k2, k3, k4, w = ctx.saved_tensors
        h = STEP
        gx4, gw4 = slope_vjp(grad * h / 6, k4, x4, w)
        gx3, gw3 = slope_vjp(grad * h / 3 + gx4 * h / 2, k3, x3, w)
        gx2, gw2 = slope_vjp(grad * h / 3 + gx3 * h / 2, k2, x2, w)
        gx1, gw1 = slope_vjp(grad * h / 6 + gx2 * h / 2, k1, x, w)
        return grad + gx1 + gx2 + gx3 + gx4, gw1 + gw2 + gw3 + gw4


def broken_stick(logits):
    part = torch.sigmoid(logits)
    left = torch.cumprod(torch.cat([torch.ones_like(part[:, :1]), 1 - part], 1), 1)
    return torch.cat([part * left[:, :-1], left[:, -1:]], 1)


class BrokenStickFunction(Function):
    @staticmethod
    def forward(ctx, logits):
        lengths = broken_stick(logits)
        ctx.save_for_backward(logits, lengths)
        return lengths

    @staticmethod
    def backward(ctx, g):
        logits, lengths = ctx.saved_tensors
        part = torch.sigmoid(logits)
        weighted = g * lengths
        later = weighted.sum(1, keepdim=True) - weighted.cumsum(1)
        return (1 - part) * weighted[:, :-1] - part * later[:, :-1]


class StickBreaking(Function):
    @staticmethod
    def forward(ctx, x):
        v = torch.sigmoid(x)
        w = x.new_empty(x.size(0), x.size(1) + 1)
        rest = torch.ones_like(x[:, 0])
        for k in range(x.size(1)):
            w[:, k] = v[:, k] * rest
            rest = rest * (1 - v[:, k])
        w[:, -1] = rest
        ctx.save_for_backward(v, w)
        return w

    @staticmethod
    def backward(ctx, grad_w):
        v, w = ctx.saved_tensors
        gw = grad_w * w
        tail = gw.flip(1).cumsum(1).flip(1)
        return gw[:, :-1] * (1 - v) - v * tail[:, :-1]


OPERATIONS = [
    Operation(
        "recurrent unit, gate that sees the state",
        SimpleRecurrentFunction,
        SRUCell,
        simple_recurrent,
        lambda: {"candidates": torch.randn(5, 2, 3), "gates": torch.randn(5, 2, 3), "peek": torch.randn(3)},
        named="the gradient of the state before lacks its part through the gate, the gate's gradient times peek",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of (candidates|gates)",),
    ),
    Operation(
        "step of Runge and Kutta, last point",
        RungeKuttaFunction,
        RK4Step,
        runge_kutta,
        lambda: {"x": torch.randn(4, 3), "weight": torch.randn(3, 3)},
        named="the third slope gets the last point's gradient times half of the step, where the whole step belongs",
        kinds=("factor of one term", "constant factor"),
        named_words=(r"factor", r"\btwice\b|\bhalf\b|/ 2|\b2\b.*times|times.*\b2\b"),
        located=(r"gradient of x", r"gradient of weight"),
    ),
    Operation(
        "broken stick, sum of the later parts",
        BrokenStickFunction,
        StickBreaking,
        broken_stick,
        lambda: (torch.randn(3, 5),),
        named="the sum of the later parts begins at the part itself instead of the next one",
        kinds=("shifted", "missing term", "another operand", "wrong sum"),
        named_words=(r"shift", r"itself", r"1:|next|one (place|step|column)", r"too many|extra|no such term"),
        located=(r"gradient of (logits|input 0)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
