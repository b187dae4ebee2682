"""Steps of differential equations: Heun's, the leapfrog's, diffusion through conductors."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

STEP = 0.5


def heun(x, weight):
    first = torch.tanh(x @ weight.T)
    second = torch.tanh((x + STEP * first) @ weight.T)
    return x + STEP / 2 * (first + second)


class HeunStepFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return heun(x, weight)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        first = torch.tanh(x @ weight.T)
        end = x + STEP * first
        second = torch.tanh(end @ weight.T)
        through_second = STEP / 2 * g * (1 - second**2)
        grad_end = through_second @ weight
        through_first = (STEP / 2 * g + STEP * grad_end) * (1 - first**2)
        grad_x = g + grad_end + through_first @ weight
        return grad_x, through_first.T @ x + through_second.T @ end


class HeunStep(Function):
    @staticmethod
    def forward(ctx, x, w):
        k1 = torch.tanh(x @ w.t())
        k2 = torch.tanh((x + STEP * k1) @ w.t())
        ctx.save_for_backward(x, w, k1, k2)
        return x + 0.5 * STEP * (k1 + k2)

    @staticmethod
    def backward(ctx, grad_y):
        x, w, k1, k2 = ctx.saved_tensors
        a2 = 0.5 * STEP * grad_y * (1 - k2 * k2)
        g_mid = a2 @ w
        a1 = (0.5 * STEP * grad_y + STEP * g_mid) * (1 - k1 * k1)
        grad_x = grad_y + g_mid + a1 @ w
        grad_w = (a1 + a2).t() @ x
        return grad_x, grad_w


class ImprovedEuler(Function):
    @staticmethod
    def forward(ctx, state, weight):
        ctx.save_for_backward(state, weight)
        slope = torch.tanh(state @ weight.T)
        corrected = torch.tanh((state + STEP * slope) @ weight.T)
        return state + STEP * (slope + corrected) / 2

    @staticmethod
    def backward(ctx, g):
        state, weight = ctx.saved_tensors
        slope = torch.tanh(state @ weight.T)
        ahead = state + STEP * slope
        corrected = torch.tanh(ahead @ weight.T)
        grad_state, grad_weight = g.clone(), torch.zeros_like(weight)
        for point, value in ((state, slope), (ahead, corrected)):
            inner = STEP / 2 * g * (1 - value**2)
            grad_state += inner @ weight
            grad_weight += inner.T @ point
        return grad_state, grad_weight


def leapfrog(position, momentum, strength):
    half = momentum - STEP / 2 * strength * position.sin()
    moved = position + STEP * half
    return moved, half - STEP / 2 * strength * moved.sin()


class Leapfrog(Function):
    @staticmethod
    def forward(ctx, q, p, k):
        p_half = p - 0.5 * STEP * k * torch.sin(q)
        q_new = q + STEP * p_half
        p_new = p_half - 0.5 * STEP * k * torch.sin(q_new)
        ctx.save_for_backward(q, q_new, k)
        return q_new, p_new

    @staticmethod
    def backward(ctx, dq_new, dp_new):
        q, q_new, k = ctx.saved_tensors
        dp = dp_new + STEP * dq_new
        dq = dq_new - 0.5 * STEP * dp_new * k * torch.cos(q_new)
        dk = -0.5 * STEP * dp_new * torch.sin(q_new)
        dq = dq - 0.5 * STEP * dp * k * torch.cos(q)
        dk = dk - 0.5 * STEP * dp * torch.sin(q)
        return dq, dp, dk.sum(dim=0)


def diffused(heat, conductivity):
    flux = conductivity * (heat[:, 1:] - heat[:, :-1])
    still = torch.zeros_like(heat[:, :1])
    return heat + STEP * (torch.cat([flux, still], 1) - torch.cat([still, flux], 1))


class DiffusionFunction(Function):
    @staticmethod
    def forward(ctx, heat, conductivity):
        ctx.save_for_backward(heat, conductivity)
        return diffused(heat, conductivity)

    @staticmethod
    def backward(ctx, g):
        heat, conductivity = ctx.saved_tensors
        grad_flux = STEP * (g[:, :-1] - g[:, 1:])
        moved = grad_flux * conductivity
        grad_heat = g.clone()
        grad_heat[:, 1:] += moved
        grad_heat[:, :-1] -= moved
        return grad_heat, (grad_flux * (heat[:, 1:] - heat[:, :-1])).sum(0)


class HeatStep(Function):
    @staticmethod
    def forward(ctx, u, c):
        flow = c * u.diff(dim=1)
        out = u.clone()
        out[:, :-1] += STEP * flow
        out[:, 1:] -= STEP * flow
        ctx.save_for_backward(u, c)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        u, c = ctx.saved_tensors
        du = u.diff(dim=1)
        dg = grad_out.diff(dim=1)
        grad_c = -STEP * (dg * du).sum(0)
        laplacian = torch.zeros_like(u)
        laplacian[:, 1:-1] = c[1:] * dg[:, 1:] - c[:-1] * dg[:, :-1]
        return grad_out + STEP * laplacian, grad_c


OPERATIONS = [
    Operation(
        "step of Heun, point of the second slope",
        HeunStepFunction,
        HeunStep,
        heun,
        lambda: {"x": torch.randn(5, 3), "weight": torch.randn(3, 3)},
        named="the weight's gradient takes the second slope at x, where forward takes it at x + step * first",
        kinds=("another operand", "missing term", "step left out"),
        named_words=(r"\badd\b.*(left out|instead|place)", r"x.*instead of|instead of.*x|place", r"missing|left out"),
        located=(r"gradient of (weight|w)",),
    ),
    Operation(
        "step of Heun, second slope through the first",
        HeunStepFunction,
        ImprovedEuler,
        heun,
        lambda: {"x": torch.randn(5, 3), "weight": torch.randn(3, 3)},
        named="the first slope is treated as a constant in the point at which the second is taken",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of x", r"gradient of weight"),
    ),
    Operation(
        "diffusion, ends",
        DiffusionFunction,
        HeatStep,
        diffused,
        lambda: {"heat": torch.randn(3, 6), "conductivity": torch.rand(5) + 0.2},
        named="heat: the first and the last column lack the flux to their only neighbour",
        kinds=("only at borders", "missing term", "only at some indices", "step left out"),
        named_words=(r"border", r"\bends?\b|\bfirst\b.*\blast\b", r"column.* 0.*5", r"missing"),
        located=(r"gradient of heat",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
RIGHT = RIGHT[1:]  # the first two have the same right Function
WRONG += [
    WrongFunction(
        Case(
            "leapfrog, order of the sums",
            Leapfrog.apply,
            leapfrog,
            lambda: {"position": torch.randn(4, 3), "momentum": torch.randn(4, 3), "strength": torch.rand(3) + 0.5},
        ),
        named="the momentum gets the position's gradient before the second kick has been added to it",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of momentum",),
    ),
]
