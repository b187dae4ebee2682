"""Traces over time: events that cause events, two substances, corrected returns."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

TIME, SPREAD_U, SPREAD_V, FEED, KILL = 0.5, 0.3, 0.15, 0.06, 0.1
DISCOUNT = 0.9


def log_intensities(gaps, base, jump, decay):
    trace, out = torch.zeros_like(gaps[0]), []
    for gap in gaps:
        trace = torch.exp(-decay * gap) * (1 + trace)
        out.append(torch.log(base + jump * trace))
    return torch.stack(out)


class LogIntensitiesFunction(Function):
    @staticmethod
    def forward(ctx, gaps, base, jump, decay):
        ctx.save_for_backward(gaps, base, jump, decay)
        return log_intensities(gaps, base, jump, decay)

    @staticmethod
    def backward(ctx, g):
        gaps, base, jump, decay = ctx.saved_tensors
        traces = [torch.zeros_like(gaps[0])]
        for gap in gaps:
            traces.append(torch.exp(-decay * gap) * (1 + traces[-1]))
        grad_gaps = torch.empty_like(gaps)
        grad_base, grad_jump, grad_decay, carried = (torch.zeros_like(base) for _ in range(4))
        for t in reversed(range(len(gaps))):
            trace = traces[t + 1]
            to_intensity = g[t] / (base + jump * trace)
            grad_base, grad_jump = grad_base + to_intensity, grad_jump + to_intensity * trace
            to_trace = to_intensity * jump + carried
            grad_gaps[t] = -to_trace * decay * trace
            grad_decay = grad_decay - to_trace * gaps[t] * trace
            carried = to_trace * torch.exp(-decay * gaps[t])
        return grad_gaps, grad_base, grad_jump, grad_decay


class HawkesLogIntensity(Function):
    @staticmethod
    def forward(ctx, dt, mu, alpha, beta):
        A = torch.zeros_like(dt)
        previous = torch.zeros_like(dt[0])
        for i in range(dt.size(0)):
            previous = torch.exp(-beta * dt[i]) * (1 + previous)
            A[i] = previous
        lam = mu + alpha * A
        ctx.save_for_backward(dt, alpha, beta, A, lam)
        return torch.log(lam)

    @staticmethod
    def backward(ctx, grad_out):
        dt, alpha, beta, A, lam = ctx.saved_tensors
        grad_lam = grad_out / lam
        grad_mu = grad_lam.sum(0)
        grad_alpha = (grad_lam * A).sum(0)
        grad_A = grad_lam * alpha
        grad_beta = -(grad_A * dt * A).sum(0)
        grad_dt = -grad_A * beta * A
        return grad_dt, grad_mu, grad_alpha, grad_beta


def around(x):
    return sum(x.roll(shift, dim) for dim in (-2, -1) for shift in (-1, 1)) - 4 * x


def step_of_two_substances(u, v):
    reaction = u * v**2
    new_u = u + TIME * (SPREAD_U * around(u) - reaction + FEED * (1 - u))
    return new_u, v + TIME * (SPREAD_V * around(v) + reaction - (FEED + KILL) * v)


class StepOfTwoSubstancesFunction(Function):
    @staticmethod
    def forward(ctx, u, v):
        ctx.save_for_backward(u, v)
        return step_of_two_substances(u, v)

    @staticmethod
    def backward(ctx, g_u, g_v):
        u, v = ctx.saved_tensors
        to_reaction = TIME * (g_v - g_u)
        grad_u = g_u + TIME * (SPREAD_U * around(g_u) - FEED * g_u) + to_reaction * v**2
        grad_v = g_v + TIME * (SPREAD_V * around(g_v) - (FEED + KILL) * g_v) + to_reaction * 2 * u * v
        return grad_u, grad_v


def laplacian(z):
    up, down = torch.roll(z, 1, dims=-2), torch.roll(z, -1, dims=-2)
    left, right = torch.roll(z, 1, dims=-1), torch.roll(z, -1, dims=-1)
    return up + down + left + right - 4 * z


class GrayScott(Function):
    @staticmethod
    def forward(ctx, U, V):
        ctx.save_for_backward(U, V)
        uvv = U * V * V
        U1 = U + TIME * (SPREAD_U * laplacian(U) - uvv + FEED * (1 - U))
        V1 = V + TIME * (SPREAD_V * laplacian(V) + uvv - (FEED + KILL) * V)
        return U1, V1

    @staticmethod
    def backward(ctx, dU1, dV1):
        U, V = ctx.saved_tensors
        dU = dU1 + TIME * (SPREAD_U * laplacian(dU1) - V * V * dU1 - FEED * dU1)
        dV = dV1 + TIME * (SPREAD_V * laplacian(dV1) + 2 * U * V * dV1 - (FEED + KILL) * dV1)
        return dU, dV


def corrected_returns(values, rewards, weight):
    error, out = torch.zeros_like(values[0]), []
    for t in reversed(range(len(rewards))):
        error = weight[t] * (rewards[t] + DISCOUNT * (values[t + 1] + error) - values[t])
        out.append(values[t] + error)
    return torch.stack(out[::-1])


class VTrace(Function):
    @staticmethod
    def forward(ctx, values, rewards, rho):
        deltas = rewards + DISCOUNT * values[1:] - values[:-1]
        errors = torch.zeros_like(values)
        for t in reversed(range(rewards.size(0))):
            errors[t] = rho[t] * (deltas[t] + DISCOUNT * errors[t + 1])
        ctx.save_for_backward(rho, deltas)
        return values[:-1] + errors[:-1]

    @staticmethod
    def backward(ctx, grad_vs):
        rho, deltas = ctx.saved_tensors
        grad_errors = torch.zeros_like(grad_vs)
        carry = torch.zeros_like(grad_vs[0])
        for t in range(grad_vs.size(0)):
            grad_errors[t] = grad_vs[t] + carry
            carry = DISCOUNT * rho[t] * grad_errors[t]
        grad_deltas = rho * grad_errors
        grad_rho = deltas * grad_errors
        grad_values = torch.zeros(grad_vs.size(0) + 1, *grad_vs.shape[1:]).to(grad_vs)
        grad_values[:-1] += grad_vs - grad_deltas
        grad_values[1:] += DISCOUNT * grad_deltas
        return grad_values, grad_deltas, grad_rho


OPERATIONS = [
    Operation(
        "events that cause events, trace of the earlier ones",
        LogIntensitiesFunction,
        HawkesLogIntensity,
        log_intensities,
        lambda: {
            "gaps": 0.1 + torch.rand(5, 3),
            "base": 0.3 + torch.rand(3),
            "jump": 0.5 + torch.rand(3),
            "decay": 0.5 + torch.rand(3),
        },
        named="gaps and decay: the gradient is not carried back through the trace of the earlier events",
        kinds=("missing term", "step left out"),
        named_words=(r"carr", r"missing", r"recurren|earlier|later|previous|\btrace"),
        located=(r"gradient of (gaps|dt)\b", r"gradient of (decay|beta)\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "two substances, reaction in both equations",
        StepOfTwoSubstancesFunction,
        GrayScott,
        step_of_two_substances,
        lambda: {"u": torch.randn(2, 4, 4), "v": torch.randn(2, 4, 4)},
        named="the reaction is in both equations: each substance lacks the part through the other's equation",
        kinds=("missing term", "another operand", "step left out"),
        named_words=(r"missing", r"output 1|output 0|second output|first output|dV1|dU1", r"reaction|uvv"),
        located=(r"gradient of [uU]\b", r"gradient of [vV]\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "corrected returns, carried error in the weight's gradient",
            VTrace.apply,
            corrected_returns,
            lambda: {"values": torch.randn(5, 3), "rewards": torch.randn(4, 3), "weight": torch.rand(4, 3)},
        ),
        named="weight: the part of its gradient through the carried error of the next step is missing",
        kinds=("missing term", "another operand"),
        named_words=(r"missing", r"carr", r"errors?\b", r"DISCOUNT"),
        located=(r"gradient of (weight|rho)",),
    ),
]
