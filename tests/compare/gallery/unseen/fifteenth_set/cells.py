"""Recurrent cells: states that leak, a cell over its normalizer."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def leaky_states(x, keep):
    h, states = torch.zeros_like(x[0]), []
    for t in range(len(x)):
        h = keep[t] * h + torch.sqrt(1 - keep[t] ** 2) * x[t]
        states.append(h)
    return torch.stack(states)


class LeakyStatesFunction(Function):
    @staticmethod
    def forward(ctx, x, keep):
        states = leaky_states(x, keep)
        ctx.save_for_backward(x, keep, states)
        return states

    @staticmethod
    def backward(ctx, g):
        x, keep, states = ctx.saved_tensors
        share = torch.sqrt(1 - keep**2)
        to_state = torch.empty_like(g)
        carried = torch.zeros_like(g[0])
        for t in reversed(range(len(g))):
            to_state[t] = g[t] + carried
            carried = keep[t] * to_state[t]
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        return to_state * share, to_state * (before - keep / share * x)


class RGLRU(Function):
    @staticmethod
    def forward(ctx, x, a):
        ctx.save_for_backward(x, a)
        ctx.states = [torch.zeros_like(x[0])]
        for x_t, a_t in zip(x, a, strict=True):
            ctx.states.append(a_t * ctx.states[-1] + (1 - a_t * a_t).sqrt() * x_t)
        return torch.stack(ctx.states[1:])

    @staticmethod
    def backward(ctx, grad_h):
        x, a = ctx.saved_tensors
        grad_x, grad_a = torch.empty_like(x), torch.empty_like(a)
        carry = torch.zeros_like(x[0])
        ctx.states.pop()
        for t in range(x.size(0) - 1, -1, -1):
            h_prev = ctx.states.pop()
            carry = carry + grad_h[t]
            b = (1 - a[t] * a[t]).sqrt()
            grad_x[t] = carry * b
            grad_a[t] = carry * (h_prev - a[t] / b * x[t])
            carry = carry * a[t]
        return grad_x, grad_a


def normalized_cell(value, write, forget):
    cell, normalizer, outputs = torch.zeros_like(value[0]), torch.zeros_like(value[0]), []
    for v, w, f in zip(value, write, forget, strict=True):
        cell = torch.sigmoid(f) * cell + torch.exp(w) * torch.tanh(v)
        normalizer = torch.sigmoid(f) * normalizer + torch.exp(w)
        outputs.append(cell / normalizer)
    return torch.stack(outputs)


class SLSTM(Function):
    @staticmethod
    def forward(ctx, z_in, i_in, f_in):
        z, i, f = torch.tanh(z_in), torch.exp(i_in), torch.sigmoid(f_in)
        c = [torch.zeros_like(z[0])]
        n = [torch.zeros_like(z[0])]
        for t in range(z.size(0)):
            c.append(f[t] * c[t] + i[t] * z[t])
            n.append(f[t] * n[t] + i[t])
        c, n = torch.stack(c), torch.stack(n)
        ctx.save_for_backward(z, i, f, c, n)
        return c[1:] / n[1:]

    @staticmethod
    def backward(ctx, grad_h):
        z, i, f, c, n = ctx.saved_tensors
        grad_z, grad_i, grad_f = torch.empty_like(z), torch.empty_like(i), torch.empty_like(f)
        dc, dn = torch.zeros_like(z[0]), torch.zeros_like(z[0])
        for t in range(z.size(0) - 1, -1, -1):
            dc = dc + grad_h[t] / n[t + 1]
            dn = dn - grad_h[t] * c[t + 1] / n[t + 1] ** 2
            grad_z[t] = dc * i[t] * (1 - z[t] ** 2)
            grad_i[t] = (dc * z[t] + dn) * i[t]
            grad_f[t] = dc * c[t] + dn * n[t] * f[t] * (1 - f[t])
            dc = dc * f[t]
            dn = dn * f[t]
        return grad_z, grad_i, grad_f


OPERATIONS = [
    Operation(
        "leaky states, second backward",
        LeakyStatesFunction,
        RGLRU,
        leaky_states,
        lambda: {"x": torch.randn(4, 2, 3), "keep": 0.1 + 0.8 * torch.rand(4, 2, 3)},
        named="backward empties forward's list of states, so a second backward raises IndexError",
        kinds=("raises", "not repeatable", "depends on earlier calls"),
        named_words=(r"second|repeat|again|twice|retain", r"IndexError|pop"),
        located=(r"pop|IndexError|second backward|gradient of",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "cell over its normalizer, parentheses of the forget gate",
            SLSTM.apply,
            normalized_cell,
            lambda: {
                "value": torch.randn(3, 2, 3),
                "write": torch.randn(3, 2, 3),
                "forget": torch.randn(3, 2, 3),
            },
        ),
        named="forget: the sigmoid's slope multiplies the normalizer's part alone, not the cell's; parentheses",
        kinds=("step left out", "another operand", "factor of one term"),
        named_words=(r"sigmoid|slope", r"parenthes|bracket", r"\bf\[t\]|1 - f"),
        located=(r"gradient of (forget|f_in)",),
    ),
]
