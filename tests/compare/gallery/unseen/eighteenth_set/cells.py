"""Cells: one gate that does not see the state, exact steps of a state space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def positive_part(x):
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


def minimal_cell(k, x, h0):
    h, rows = h0, []
    for t in range(k.size(1)):
        z = torch.sigmoid(k[:, t])
        h = (1 - z) * h + z * positive_part(x[:, t])
        rows.append(h)
    return torch.stack(rows, 1)


class MinimalCellFunction(Function):
    @staticmethod
    def forward(ctx, k, x, h0):
        rows = minimal_cell(k, x, h0)
        ctx.save_for_backward(k, x, torch.cat([h0[:, None], rows[:, :-1]], 1))
        return rows

    @staticmethod
    def backward(ctx, g):
        k, x, before = ctx.saved_tensors
        z, s = torch.sigmoid(k), torch.sigmoid(x)
        carried, to_rows = torch.zeros_like(g[:, 0]), []
        for t in reversed(range(k.size(1))):
            to_rows.append(carried + g[:, t])
            carried = to_rows[-1] * (1 - z[:, t])
        d = torch.stack(to_rows[::-1], 1)
        to_k = d * (positive_part(x) - before) * z * (1 - z)
        return to_k, d * z * torch.where(x >= 0, torch.ones_like(x), s * (1 - s)), carried


def g_act(x):
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


class MinGRU(Function):
    """h_t = (1 - z_t) h_{t-1} + z_t g(x_t); the gates do not see the state."""

    @staticmethod
    def forward(ctx, k, x, h_0):
        z = k.sigmoid()
        h_tilde = g_act(x)
        hs = [h_0]
        for t in range(k.shape[1]):
            hs.append(torch.lerp(hs[-1], h_tilde[:, t], z[:, t]))
        H = torch.stack(hs, dim=1)
        ctx.save_for_backward(z, h_tilde, H)
        return H[:, 1:].clone()

    @staticmethod
    def backward(ctx, grad_out):
        z, h_tilde, H = ctx.saved_tensors
        dz = torch.empty_like(z)
        dtilde = torch.empty_like(z)
        dh = torch.zeros_like(H[:, 0])
        for t in range(z.shape[1] - 1, -1, -1):
            dh = dh + grad_out[:, t]
            dz[:, t] = dh * (h_tilde[:, t] - H[:, t])
            dtilde[:, t] = dh * z[:, t]
            dh = dh * (1 - z[:, t])
        dk = dz * z * (1 - z)
        dx = dtilde * h_tilde * (1 - h_tilde)
        return dk, dx, dh


def exact_states(u, delta, a, b):
    h, rows = torch.zeros_like(a).expand(u.size(0), -1), []
    for t in range(u.size(1)):
        decay = (delta[:, t, None] * a).exp()
        h = decay * h + (decay - 1) / a * b * u[:, t, None]
        rows.append(h)
    return torch.stack(rows, 1)


class ExactStatesFunction(Function):
    @staticmethod
    def forward(ctx, u, delta, a, b):
        rows = exact_states(u, delta, a, b)
        ctx.save_for_backward(u, delta, a, b, F.pad(rows, (0, 0, 1, -1)))
        return rows

    @staticmethod
    def backward(ctx, g):
        u, delta, a, b, before = ctx.saved_tensors
        decay = (delta[..., None] * a).exp()
        d = g.clone()
        for t in reversed(range(u.size(1) - 1)):
            d[:, t] += d[:, t + 1] * decay[:, t + 1]
        drive = (decay - 1) / a
        to_decay = d * (before + b * u[..., None] / a)
        to_a = (to_decay * decay * delta[..., None] - d * drive * b * u[..., None] / a).sum((0, 1))
        to_b = (d * drive * u[..., None]).sum((0, 1))
        return (d * drive * b).sum(-1), (to_decay * decay * a).sum(-1), to_a, to_b


class S4DZOH(Function):
    """Diagonal state space, zero-order hold: A_bar = exp(dt A), B_bar = (A_bar - 1) / A * B."""

    @staticmethod
    def forward(ctx, u, dt, A, B):
        dA = torch.exp(dt.unsqueeze(-1) * A)
        dB = (dA - 1) / A * B
        x = torch.zeros(u.shape[0], A.shape[0], dtype=u.dtype, device=u.device)
        xs = []
        for i in range(u.shape[1]):
            x = dA[:, i] * x + dB[:, i] * u[:, i, None]
            xs.append(x)
        states = torch.stack(xs, dim=1)
        ctx.save_for_backward(u, dt, A, B, dA, dB, states)
        return states

    @staticmethod
    def backward(ctx, dout):
        u, dt, A, B, dA, dB, xs = ctx.saved_tensors
        g_dA = torch.zeros_like(dA)
        g_dB = torch.zeros_like(dB)
        g_u = torch.zeros_like(u)
        gx = torch.zeros_like(xs[:, 0])
        for i in reversed(range(u.shape[1])):
            gx = gx + dout[:, i]
            if i > 0:
                g_dA[:, i] = gx * xs[:, i - 1]
            g_dB[:, i] = gx * u[:, i, None]
            g_u[:, i] = (gx * dB[:, i]).sum(-1)
            gx = gx * dA[:, i]
        g_dA = g_dA + g_dB * B / A
        g_B = (g_dB * (dA - 1) / A).sum((0, 1))
        g_A = (g_dA * dA * dt.unsqueeze(-1)).sum((0, 1))
        g_dt = (g_dA * dA * A).sum(-1)
        return g_u, g_dt, g_A, g_B


OPERATIONS = [
    Operation(
        "cell without a state in its gates, positive candidates",
        MinimalCellFunction,
        MinGRU,
        minimal_cell,
        lambda: {"k": torch.randn(2, 4, 3), "x": torch.randn(2, 4, 3), "h0": torch.randn(2, 3)},
        named="where x is positive the candidate is x + 1/2, and the sigmoid's derivative is taken of it",
        kinds=("only for some values", "step left out", "another operand"),
        named_words=(r"torch\.where|of where\b", r"x >=? 0|positive", r"sigmoid"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "exact steps of a state space, divisor of the input matrix",
        ExactStatesFunction,
        S4DZOH,
        exact_states,
        lambda: {
            "u": torch.randn(2, 4),
            "delta": 0.2 + torch.rand(2, 4),
            "a": -0.5 - torch.rand(3),
            "b": torch.randn(3),
        },
        named="a: the input's factor is divided by a, and that part of the quotient rule is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"/ ?A|div"),
        located=(r"gradient of (a|A)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
