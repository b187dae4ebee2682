"""Recurrent cells: a gate that opens at its own times, and a light gated cell with ReLU."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

LEAK = 0.1


def times() -> dict[str, torch.Tensor]:
    """Draw times, and period, shift and ratio of the open part of three gates."""
    return {
        "t": 10 * torch.rand(8),
        "period": 2 + torch.rand(3),
        "shift": torch.rand(3),
        "ratio": 0.4 + 0.2 * torch.rand(3),
    }


def open_at_times(t, period, shift, ratio):
    turns = (t[:, None] - shift) / period
    phase = turns - turns.floor().detach()
    closed = LEAK * phase
    return torch.where(
        phase < ratio / 2, 2 * phase / ratio, torch.where(phase < ratio, 2 - 2 * phase / ratio, closed)
    )


class OpenAtTimesFunction(Function):
    @staticmethod
    def forward(ctx, t, period, shift, ratio):
        turns = (t[:, None] - shift) / period
        phase = turns - turns.floor()
        rising, falling = phase < ratio / 2, (phase >= ratio / 2) & (phase < ratio)
        ctx.save_for_backward(turns, phase, period, ratio, rising, falling)
        y = torch.where(falling, 2 - 2 * phase / ratio, LEAK * phase)
        return torch.where(rising, 2 * phase / ratio, y)

    @staticmethod
    def backward(ctx, g):
        turns, phase, period, ratio, rising, falling = ctx.saved_tensors
        sign = rising.to(g.dtype) - falling.to(g.dtype)
        to_phase = g * torch.where(rising | falling, 2 * sign / ratio, torch.full_like(g, LEAK))
        to_time = to_phase / period
        to_ratio = -g * sign * 2 * phase / ratio**2
        return to_time.sum(1), -(to_phase * turns).sum(0) / period, -to_time.sum(0), to_ratio.sum(0)


class PhasedTimeGate(Function):
    """Time gate k_t of the Phased LSTM with learned tau, s and r_on; t is (T,), the gate is (T, units)."""

    @staticmethod
    def forward(ctx, t, tau, s, r_on):
        cycles = (t.unsqueeze(1) - s) / tau
        phi = cycles - torch.floor(cycles)
        r = r_on.expand_as(phi)
        k = LEAK * phi
        up = phi < r / 2
        down = (phi < r) & ~up
        k[up] = 2 * phi[up] / r[up]
        k[down] = 2 - 2 * phi[down] / r[down]
        ctx.save_for_backward(phi, tau, r, up, down)
        return k

    @staticmethod
    def backward(ctx, grad_k):
        phi, tau, r, up, down = ctx.saved_tensors
        d_phi = torch.full_like(phi, LEAK)
        d_phi[up] = 2 / r[up]
        d_phi[down] = -2 / r[down]
        d_r = torch.zeros_like(phi)
        d_r[up] = -2 * phi[up] / r[up] ** 2
        d_r[down] = 2 * phi[down] / r[down] ** 2

        grad_phi = grad_k * d_phi
        grad_t = (grad_phi / tau).sum(dim=1)
        grad_s = -(grad_phi / tau).sum(dim=0)
        grad_tau = -(grad_phi * phi / tau).sum(dim=0)
        grad_r = (grad_k * d_r).sum(dim=0)
        return grad_t, grad_tau, grad_s, grad_r


def light_cell(a, b, u, v):
    h, states = a.new_zeros(a.shape[1:]), []
    for za, ca in zip(a, b, strict=True):
        z = torch.sigmoid(za + h @ u)
        h = z * h + (1 - z) * torch.relu(ca + h @ v)
        states.append(h)
    return torch.stack(states)


class LightCellFunction(Function):
    @staticmethod
    def forward(ctx, a, b, u, v):
        h = [a.new_zeros(a.shape[1:])]
        gates, candidates = [], []
        for za, ca in zip(a, b, strict=True):
            gates.append(torch.sigmoid(za + h[-1] @ u))
            candidates.append(torch.relu(ca + h[-1] @ v))
            h.append(gates[-1] * h[-1] + (1 - gates[-1]) * candidates[-1])
        states = torch.stack(h)
        ctx.save_for_backward(u, v, states[:-1], torch.stack(gates), torch.stack(candidates))
        return states[1:]

    @staticmethod
    def backward(ctx, g):
        u, v, before, gates, candidates = ctx.saved_tensors
        to_a, to_b = torch.empty_like(gates), torch.empty_like(gates)
        to_h = torch.zeros_like(g[0])
        for n in reversed(range(len(g))):
            to_h = to_h + g[n]
            to_a[n] = to_h * (before[n] - candidates[n]) * gates[n] * (1 - gates[n])
            to_b[n] = to_h * (1 - gates[n]) * (candidates[n] > 0)
            to_h = to_h * gates[n] + to_a[n] @ u.mT + to_b[n] @ v.mT
        return to_a, to_b, torch.einsum("tni,tnj->ij", before, to_a), torch.einsum("tni,tnj->ij", before, to_b)


class LiGRU(Function):
    """Light GRU, input projections wz and wh are (T, N, H); no reset gate, ReLU candidate."""

    @staticmethod
    def forward(ctx, wz, wh, Uz, Uh):
        T = wz.shape[0]
        hs = wz.new_zeros(T + 1, *wz.shape[1:])
        zs = torch.zeros_like(wz)
        cs = torch.zeros_like(wz)
        for t in range(T):
            zs[t] = torch.sigmoid(wz[t] + hs[t] @ Uz)
            cs[t] = torch.relu(wh[t] + hs[t] @ Uh)
            hs[t + 1] = zs[t] * hs[t] + (1 - zs[t]) * cs[t]
        ctx.save_for_backward(hs, zs, cs, Uz, Uh)
        return hs[1:].clone()

    @staticmethod
    def backward(ctx, grad_hs):
        hs, zs, cs, Uz, Uh = ctx.saved_tensors
        grad_wz, grad_wh = torch.zeros_like(zs), torch.zeros_like(cs)
        grad_Uz, grad_Uh = torch.zeros_like(Uz), torch.zeros_like(Uh)
        dh = torch.zeros_like(hs[0])
        for t in range(zs.shape[0] - 1, -1, -1):
            dh = dh + grad_hs[t]
            dz = dh * (hs[t] - cs[t]) * zs[t] * (1 - zs[t])
            dc = dh * (1 - zs[t]) * (cs[t] > 0)
            grad_wz[t], grad_wh[t] = dz, dc
            grad_Uz += hs[t].T @ dz
            grad_Uh += hs[t + 1].T @ dc
            dh = dh * zs[t] + dz @ Uz.T + dc @ Uh.T
        return grad_wz, grad_wh, grad_Uz, grad_Uh


OPERATIONS = [
    Operation(
        "gate with a period, phase in the place of all turns",
        OpenAtTimesFunction,
        PhasedTimeGate,
        open_at_times,
        times,
        named="period: (t - s) / tau has the derivative -cycles / tau; backward has phi, without whole cycles",
        kinds=("another operand", "factor by element", "step left out", "missing term", "only for some values"),
        named_words=(r"\bcycles\b", r"\bphi\b", r"floor", r"\bturns\b"),
        located=(r"gradient of (period|tau)\b",),
        options={"whole_numbers": False, "kinks": True},
    ),
    Operation(
        "light cell, next state in the gradient of a weight",
        LightCellFunction,
        LiGRU,
        light_cell,
        lambda: {
            "a": torch.randn(4, 3, 2),
            "b": torch.randn(4, 3, 2),
            "u": torch.randn(2, 2),
            "v": torch.randn(2, 2),
        },
        named="v: its gradient takes the state after each step, hs[t + 1], instead of the state before it, hs[t]",
        kinds=("shifted", "another operand", "step left out"),
        named_words=(r"hs\[t( \+ 1)?\]|\bhs\b", r"\bt \+ 1\b", r"state|step|\bh\b"),
        located=(r"gradient of (v|Uh)\b",),
        options={"kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
