"""Gates: a recurrent unit with one gate, mixed branches of two tasks, a gate over places."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def one_gate_states(x, h, w_gate, w_state):
    states = []
    for step in x:
        gate = torch.sigmoid(torch.cat([step, h], 1) @ w_gate)
        candidate = torch.tanh(torch.cat([step, gate * h], 1) @ w_state)
        h = h + gate * (candidate - h)
        states.append(h)
    return torch.stack(states)


class OneGateStatesFunction(Function):
    @staticmethod
    def forward(ctx, x, h, w_gate, w_state):
        previous, gates, candidates = [], [], []
        for step in x:
            previous.append(h)
            gates.append(torch.sigmoid(torch.cat([step, h], 1) @ w_gate))
            candidates.append(torch.tanh(torch.cat([step, gates[-1] * h], 1) @ w_state))
            h = h + gates[-1] * (candidates[-1] - h)
        kept = [torch.stack(each) for each in (previous, gates, candidates)]
        ctx.save_for_backward(x, w_gate, w_state, *kept)
        return torch.stack([*previous[1:], h])

    @staticmethod
    def backward(ctx, g):
        x, w_gate, w_state, previous, gates, candidates = ctx.saved_tensors
        size = x.size(2)
        to_x, to_gate, to_state = torch.zeros_like(x), torch.zeros_like(w_gate), torch.zeros_like(w_state)
        to_h = torch.zeros_like(previous[0])
        for n in range(x.size(0) - 1, -1, -1):
            h, gate, candidate = previous[n], gates[n], candidates[n]
            to_h = to_h + g[n]
            inner = to_h * gate * (1 - candidate.square())
            to_state += torch.cat([x[n], gate * h], 1).mT @ inner
            to_x[n], to_reset = (inner @ w_state.mT).split([size, h.size(1)], 1)
            slope = (to_h * (candidate - h) + to_reset * h) * gate * (1 - gate)
            to_gate += torch.cat([x[n], h], 1).mT @ slope
            through_x, through_h = (slope @ w_gate.mT).split([size, h.size(1)], 1)
            to_x[n] += through_x
            to_h = to_h * (1 - gate) + to_reset * gate + through_h
        return to_x, to_h, to_gate, to_state


class MinimalGatedUnit(Function):
    """MGU (Zhou et al. 2016), unrolled over the first dimension of x."""

    @staticmethod
    def forward(ctx, x, h0, Wf, Wh):
        hs, fs, cs = [h0], [], []
        for t in range(x.size(0)):
            f = torch.sigmoid(torch.cat((x[t], hs[t]), dim=1) @ Wf)
            c = torch.tanh(torch.cat((x[t], f * hs[t]), dim=1) @ Wh)
            hs.append((1 - f) * hs[t] + f * c)
            fs.append(f)
            cs.append(c)
        ctx.save_for_backward(x, Wf, Wh, torch.stack(hs), torch.stack(fs), torch.stack(cs))
        return torch.stack(hs[1:])

    @staticmethod
    def backward(ctx, grad_out):
        x, Wf, Wh, hs, fs, cs = ctx.saved_tensors
        n_in = x.size(2)
        dx = torch.zeros_like(x)
        dWf = torch.zeros_like(Wf)
        dWh = torch.zeros_like(Wh)
        dh_next = torch.zeros_like(hs[0])
        for t in reversed(range(x.size(0))):
            h, f, c = hs[t], fs[t], cs[t]
            dh = grad_out[t] + dh_next
            # candidate
            dc = dh * f * (1 - c**2)
            dWh += torch.cat((x[t], f * h), dim=1).t() @ dc
            dxfh = dc @ Wh.t()
            # forget gate
            df = dh * (c - h) * f * (1 - f)
            dWf += torch.cat((x[t], h), dim=1).t() @ df
            dxh = df @ Wf.t()
            dx[t] = dxfh[:, :n_in] + dxh[:, :n_in]
            dh_next = dh * (1 - f) + dxfh[:, n_in:] * f + dxh[:, n_in:]
        return dx, dh_next, dWf, dWh


def mixed_branches(a, b, mix):
    return tuple(torch.einsum("ij,jnc->inc", mix, torch.stack([a, b])).unbind(0))


class MixedBranchesFunction(Function):
    @staticmethod
    def forward(ctx, a, b, mix):
        ctx.save_for_backward(a, b, mix)
        return mix[0, 0] * a + mix[0, 1] * b, mix[1, 0] * a + mix[1, 1] * b

    @staticmethod
    def backward(ctx, to_first, to_second):
        a, b, mix = ctx.saved_tensors
        to_a = mix[0, 0] * to_first + mix[1, 0] * to_second
        to_b = mix[0, 1] * to_first + mix[1, 1] * to_second
        to_mix = [(g * branch).sum() for g in (to_first, to_second) for branch in (a, b)]
        return to_a, to_b, torch.stack(to_mix).view(2, 2)


class CrossStitch(Function):
    """[ya; yb] = alpha @ [xa; xb] (Misra et al. 2016)"""

    @staticmethod
    def forward(ctx, xa, xb, alpha):
        x = torch.stack((xa, xb))
        ctx.save_for_backward(x, alpha)
        y = torch.tensordot(alpha, x, dims=1)
        return y[0].clone(), y[1].clone()

    @staticmethod
    def backward(ctx, grad_ya, grad_yb):
        x, alpha = ctx.saved_tensors
        grad_y = torch.stack((grad_ya, grad_yb))
        grad_x = torch.tensordot(alpha, grad_y, dims=1)
        grad_alpha = grad_y.flatten(1) @ x.flatten(1).t()
        return grad_x[0], grad_x[1], grad_alpha


def gate_over_places(x, weight, bias):
    u, v = x.chunk(2, 2)
    return u * (weight @ v + bias.unsqueeze(1))


class SpatialGatingUnit(Function):
    """gMLP: u * (W v + b), W mixes the tokens."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        u, v = x.chunk(2, dim=-1)
        gate = torch.matmul(weight, v) + bias[:, None]
        ctx.save_for_backward(u, v, gate, weight)
        return u * gate

    @staticmethod
    def backward(ctx, grad_output):
        u, v, gate, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        grad_gate = grad_output * u
        if ctx.needs_input_grad[0]:
            grad_x = torch.cat((grad_output * gate, torch.matmul(weight.t(), grad_gate)), dim=-1)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.matmul(grad_gate, v.transpose(1, 2)).sum(dim=0)
            grad_bias = grad_gate.sum(dim=(0, 2))
        return grad_x, grad_weight, grad_bias


OPERATIONS = [
    Operation(
        "states of a unit with one gate, gate of the state",
        OneGateStatesFunction,
        MinimalGatedUnit,
        one_gate_states,
        lambda: {
            "x": torch.randn(3, 4, 2),
            "h": torch.randn(4, 3),
            "w_gate": torch.randn(5, 3),
            "w_state": torch.randn(5, 3),
        },
        named="the gate also multiplies the state inside of tanh, and its gradient from there is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"through.*(gate|\bf\b|sigmoid)"),
        located=(r"gradient of (w_gate|Wf)\b",),
    ),
    Operation(
        "mixed branches of two tasks, matrix not transposed",
        MixedBranchesFunction,
        CrossStitch,
        mixed_branches,
        lambda: {"a": torch.randn(4, 3), "b": torch.randn(4, 3), "mix": torch.randn(2, 2)},
        named="the gradients of the branches are mixed by the matrix, not by its transpose",
        kinds=("not transposed", "another operand", "transposed", "swapped"),
        named_words=(r"transpos|\.t\(\)|\.mT|\.T\b", r"swap|exchang"),
        located=(r"gradient of (a|xa)\b", r"gradient of (b|xb)\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "gate over places, bias asked for with the weight",
            SpatialGatingUnit.apply,
            gate_over_places,
            lambda: {"x": torch.randn(3, 4, 6), "weight": torch.randn(4, 4), "bias": torch.randn(4)},
        ),
        named="bias gets a gradient only if weight requires one",
        kinds=("depends on which inputs require a gradient", "none"),
        named_words=(r"require", r"needs_input_grad"),
        located=(r"\bbias\b",),
    ),
]
