"""Estimates: a filter for a moving state, a steady spread, several sensors in one, a tracker with a gain."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction


def filtered_states(measured, drift, noise):
    state, spread, states = torch.zeros_like(noise), torch.ones_like(noise), []
    for each in measured:
        spread = spread + drift
        gain = spread / (spread + noise)
        state = state + gain * (each - state)
        spread = (1 - gain) * spread
        states.append(state)
    return torch.stack(states)


class ScalarKalman(Function):
    """Random-walk Kalman filter, one state per series."""

    @staticmethod
    def forward(ctx, z, Q, R):
        m, P = torch.zeros_like(R), torch.ones_like(R)
        means, gains, priors = [m], [], []
        for obs in z:
            prior = P + Q
            K = prior / (prior + R)
            m = m + K * (obs - m)
            P = (1 - K) * prior
            means.append(m)
            gains.append(K)
            priors.append(prior)
        ctx.save_for_backward(z, R, torch.stack(means), torch.stack(gains), torch.stack(priors))
        return torch.stack(means[1:])

    @staticmethod
    def backward(ctx, grad_means):
        z, R, means, gains, priors = ctx.saved_tensors
        grad_z = torch.zeros_like(z)
        grad_Q, grad_R = torch.zeros_like(R), torch.zeros_like(R)
        grad_m, grad_P = torch.zeros_like(R), torch.zeros_like(R)
        for t in reversed(range(len(z))):
            K, prior, m = gains[t], priors[t], means[t]
            grad_m = grad_m + grad_means[t]
            grad_K = grad_m * (z[t] - m)
            grad_z[t] = grad_m * K
            grad_m = grad_m * (1 - K)
            grad_prior = grad_P * (1 - K)
            total = prior + R
            grad_prior = grad_prior + grad_K * R / total**2
            grad_R = grad_R - grad_K * prior / total**2
            grad_Q = grad_Q + grad_prior
            grad_P = grad_prior
        return grad_z, grad_Q, grad_R


def steady_spread(move, noise):
    n = len(move)
    eye = torch.eye(n * n).to(move)
    return torch.linalg.solve(eye - torch.kron(move, move), noise.flatten()).reshape(n, n)


def solve_stein(A, Q):
    n = A.shape[0]
    lhs = torch.eye(n * n, dtype=A.dtype, device=A.device) - torch.kron(A, A)
    return torch.linalg.solve(lhs, Q.reshape(-1)).reshape(n, n)


class DiscreteLyapunov(Function):
    """Solution X of X = A X A^T + Q."""

    @staticmethod
    def forward(ctx, A, Q):
        X = solve_stein(A, Q)
        ctx.save_for_backward(A, X)
        return X

    @staticmethod
    def backward(ctx, grad_X):
        A, X = ctx.saved_tensors
        S = solve_stein(A.t(), grad_X)
        grad_A = 2 * S @ A @ X
        return grad_A, S


def sensors_in_one(readings, spreads):
    weights = 1 / spreads**2
    return (weights * readings).sum(-1) / weights.sum(-1), weights.sum(-1) ** -0.5


class InverseVarianceFusion(Function):
    """Fused reading and its standard deviation."""

    @staticmethod
    def forward(ctx, y, sigma):
        w = sigma.pow(-2)
        total = w.sum(dim=-1)
        mean = (w * y).sum(dim=-1) / total
        std = total.rsqrt()
        ctx.save_for_backward(y, sigma, w, total, mean, std)
        return mean, std

    @staticmethod
    def backward(ctx, grad_mean, grad_std):
        y, sigma, w, total, mean, std = ctx.saved_tensors
        grad_y = grad_mean.unsqueeze(-1) * w / total.unsqueeze(-1)
        grad_w = grad_mean.unsqueeze(-1) * (y - mean.unsqueeze(-1)) / total.unsqueeze(-1)
        grad_total = -0.5 * grad_std * std
        grad_w = grad_w + grad_total.unsqueeze(-1)
        grad_sigma = -2 * grad_w * w / sigma
        return grad_y, grad_sigma


def tracked(measured, gain, rate_gain):
    place, speed, places = torch.zeros_like(gain), torch.zeros_like(gain), []
    for each in measured:
        place = place + 0.5 * speed
        miss = each - place
        place = place + gain * miss
        speed = speed + 2 * rate_gain * miss
        places.append(place)
    return torch.stack(places)


class AlphaBetaTracker(Function):
    @staticmethod
    def forward(ctx, z, alpha, beta):
        x, v = torch.zeros_like(alpha), torch.zeros_like(alpha)
        out, misses = [], []
        for t in range(z.shape[0]):
            x = x + 0.5 * v
            r = z[t] - x
            x = x + alpha * r
            v = v + beta * r / 0.5
            out.append(x)
            misses.append(r)
        ctx.save_for_backward(alpha, beta, torch.stack(misses))
        return torch.stack(out)

    @staticmethod
    def backward(ctx, grad_out):
        alpha, beta, misses = ctx.saved_tensors
        steps = misses.shape[0]
        grad_z = torch.zeros_like(misses)
        grad_alpha, grad_beta = torch.zeros_like(alpha), torch.zeros_like(beta)
        gx, gv = torch.zeros_like(alpha), torch.zeros_like(alpha)
        for t in range(steps - 1, -1, -1):
            gx = gx + grad_out[t]
            gr = alpha * gx + beta * gv / 0.5
            grad_alpha = grad_alpha + gx * misses[t]
            grad_beta = grad_beta + gv * misses[t] / 0.5
            grad_z[t] = gr
            gv = gv + 0.5 * gx
            gx = gx - gr
        return grad_z, grad_alpha, grad_beta


def walks():
    return {"measured": torch.randn(5, 3), "drift": 0.2 + torch.rand(3), "noise": 0.3 + torch.rand(3)}


def sensors():
    return {"readings": torch.randn(4, 3), "spreads": 0.5 + torch.rand(4, 3)}


WRONG = [
    WrongFunction(
        Case(
            "filter for a moving state, gain in the spread",
            ScalarKalman.apply,
            filtered_states,
            walks,
            whole_numbers=False,
        ),
        named="drift and noise: the gain's part through the spread after the step, (1 - gain) spread, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"\bK\b|gain", r"grad_P|spread|\bP\b", r"constant"),
        located=(r"gradient of (drift|Q)\b", r"gradient of (noise|R)\b"),
    ),
    WrongFunction(
        Case(
            "steady spread, both halves as equal",
            DiscreteLyapunov.apply,
            steady_spread,
            lambda: {"move": 0.3 * torch.randn(3, 3).clamp(-1.5, 1.5), "noise": torch.randn(3, 3)},
            whole_numbers=False,
        ),
        named="move: twice one of the two products, whose transposed twin differs as the solution is not symmetric",
        kinds=("missing term", "not transposed", "transposed", "another operand", "wrong half", "factor of one term"),
        named_words=(r"transpos|symmetr|\.t\(\)|\.T\b",),
        located=(r"gradient of (move|A)\b",),
    ),
    WrongFunction(
        Case(
            "sensors in one, power of the deviation",
            InverseVarianceFusion.apply,
            sensors_in_one,
            sensors,
            whole_numbers=False,
        ),
        named="spreads: in the derivative of the reciprocal root the deviation stands for its third power",
        kinds=("step left out", "factor of one term", "factor by element", "another operand"),
        named_words=(r"rsqrt|power|\*\* ?3|cube|std|total",),
        located=(r"gradient of (spreads|sigma)\b",),
    ),
    WrongFunction(
        Case(
            "tracker with a gain, prediction before the miss",
            AlphaBetaTracker.apply,
            tracked,
            lambda: {"measured": torch.randn(5, 3), "gain": torch.rand(3), "rate_gain": torch.rand(3)},
        ),
        named="the speed's gradient takes that of the place before the miss is subtracted: two lines in wrong order",
        kinds=("another operand", "missing term", "step left out"),
        named_words=(r"\bgr\b|miss|\br\b", r"order|before|after"),
        located=(r"gradient of (measured|z)\b",),
    ),
]

RIGHT: list[Case] = []
