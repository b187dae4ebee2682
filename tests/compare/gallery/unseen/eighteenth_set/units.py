"""Units: gates with bounds, the approximate Gaussian unit, norms of powers, gates that close."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

ALPHA, LIMIT = 1.702, 1.0
EPS = 1e-3
ORDERS = 3
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 0.5


def bounded_gate(x):
    gate, linear = x[:, ::2].clamp(max=LIMIT), x[:, 1::2].clamp(-LIMIT, LIMIT)
    return gate * torch.sigmoid(ALPHA * gate) * (linear + 1)


class BoundedGateFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return bounded_gate(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        gate, linear = x[:, ::2].clamp(max=LIMIT), x[:, 1::2].clamp(-LIMIT, LIMIT)
        s = torch.sigmoid(ALPHA * gate)
        to_x = torch.empty_like(x)
        to_x[:, ::2] = g * (linear + 1) * s * (1 + ALPHA * gate * (1 - s)) * (x[:, ::2] <= LIMIT)
        to_x[:, 1::2] = g * gate * s * (x[:, 1::2].abs() < LIMIT)
        return to_x


class ClampedSwiGLU(Function):
    """Interleaved gate and linear part, both clamped before the activation."""

    @staticmethod
    def forward(ctx, x):
        x_glu, x_linear = x[..., ::2], x[..., 1::2]
        x_glu = x_glu.clamp(min=None, max=LIMIT)
        x_linear = x_linear.clamp(min=-LIMIT, max=LIMIT)
        ctx.save_for_backward(x, x_glu, x_linear)
        return x_glu * torch.sigmoid(ALPHA * x_glu) * (x_linear + 1)

    @staticmethod
    def backward(ctx, grad):
        x, x_glu, x_linear = ctx.saved_tensors
        sig = torch.sigmoid(ALPHA * x_glu)
        grad_linear = grad * x_glu * sig
        grad_glu = grad * (x_linear + 1) * (sig + ALPHA * x_glu * sig * (1 - sig))
        dx = torch.stack([grad_glu, grad_linear], dim=-1).flatten(-2)
        return dx.masked_fill(x > LIMIT, 0)


def approximate_gaussian_gate(x, w, v):
    return F.gelu(x @ w, approximate="tanh") * (x @ v)


class ApproximateGaussianGateFunction(Function):
    @staticmethod
    def forward(ctx, x, w, v):
        ctx.save_for_backward(x, w, v)
        return approximate_gaussian_gate(x, w, v)

    @staticmethod
    def backward(ctx, g):
        x, w, v = ctx.saved_tensors
        a, b = x @ w, x @ v
        root = math.sqrt(2 / math.pi)
        t = torch.tanh(root * (a + 0.044715 * a**3))
        slope = (1 + t) / 2 + a / 2 * (1 - t * t) * root * (1 + 0.134145 * a * a)
        to_a, to_b = g * b * slope, g * a * (1 + t) / 2
        return to_a @ w.mT + to_b @ v.mT, x.mT @ to_a, x.mT @ to_b


SQRT_2_OVER_PI = 0.7978845608028654


def gelu_tanh_grad(x):
    inner = SQRT_2_OVER_PI * x * (1 + 0.044715 * x * x)
    th = torch.tanh(inner)
    d_inner = SQRT_2_OVER_PI * (1 + 0.044715 * x * x)
    return 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * d_inner


class GEGLUTanh(Function):
    @staticmethod
    def forward(ctx, x, W, V):
        gate = torch.mm(x, W)
        up = torch.mm(x, V)
        act = 0.5 * gate * (1 + torch.tanh(SQRT_2_OVER_PI * gate * (1 + 0.044715 * gate * gate)))
        ctx.save_for_backward(x, W, V, gate, up, act)
        return act * up

    @staticmethod
    def backward(ctx, dy):
        x, W, V, gate, up, act = ctx.saved_tensors
        dgate = dy * up * gelu_tanh_grad(gate)
        dup = dy * act
        dx = dgate.mm(W.t()).addmm_(dup, V.t())
        return dx, x.t().mm(dgate), x.t().mm(dup)


def norms_of_powers(x, weight, bias):
    powers = [x**n / ((x**n).square().mean(-1, keepdim=True) + EPS).sqrt() for n in range(1, ORDERS + 1)]
    return sum(w * power for w, power in zip(weight, powers, strict=True)) + bias


class NormsOfPowersFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return norms_of_powers(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        to_x, to_weight = torch.zeros_like(x), torch.zeros_like(weight)
        for n in range(1, ORDERS + 1):
            scale = ((x**n).square().mean(-1, keepdim=True) + EPS).rsqrt()
            normal = x**n * scale
            to_weight[n - 1] = (g * normal).sum()
            to_power = (g - normal * (g * normal).mean(-1, keepdim=True)) * scale * weight[n - 1]
            to_x += to_power * n * x ** (n - 1)
        return to_x, to_weight, g.sum()


class PolyNorm(Function):
    """y = w1 norm(x) + w2 norm(x^2) + w3 norm(x^3) + b"""

    @staticmethod
    def forward(ctx, x, w, b):
        y = b.expand_as(x).clone()
        normed, rstds = [], []
        p = x
        for i in range(ORDERS):
            rstd = torch.rsqrt(p.pow(2).mean(-1, keepdim=True) + EPS)
            normed.append(p * rstd)
            rstds.append(rstd)
            y += w[i] * normed[i]
            p = p * x
        ctx.save_for_backward(x, w, *normed, *rstds)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w, *rest = ctx.saved_tensors
        normed, rstds = rest[:ORDERS], rest[ORDERS:]
        dw = torch.stack([(dy * n).sum() for n in normed])
        dx = torch.zeros_like(x)
        for i in range(ORDERS):
            d = w[i] * dy
            d = rstds[i] * (d - normed[i] * (d * normed[i]).mean(-1, keepdim=True))
            dx += d * (i + 1) * x.pow(i) * rstds[i]
        return dx, dw, dy.sum()


OPERATIONS = [
    Operation(
        "gate and linear part with bounds, lower bound",
        BoundedGateFunction,
        ClampedSwiGLU,
        bounded_gate,
        lambda: {"x": 1.2 * torch.randn(4, 8)},
        named="the linear part is bounded below too, and its gradient is kept there",
        kinds=("step left out", "only for some values", "only at some indices"),
        named_words=(r"clamp", r"LIMIT", r"bound|<"),
        located=(r"gradient of x\b",),
        options={"kinks": True},
    ),
    Operation(
        "approximate Gaussian gate, three times the cubic part",
        ApproximateGaussianGateFunction,
        GEGLUTanh,
        approximate_gaussian_gate,
        lambda: {"x": torch.randn(5, 3), "w": torch.randn(3, 4), "v": torch.randn(3, 4)},
        named="the derivative of the cubic part inside of the tanh has lost its factor of 3",
        kinds=("factor of one term", "another operand"),
        named_words=(r"\b3\b|three", r"0\.13", r"0\.0447"),
        located=(r"gradients? of .*\b(x|w|W)\b",),
    ),
    Operation(
        "norms of powers, divided twice",
        NormsOfPowersFunction,
        PolyNorm,
        norms_of_powers,
        lambda: {"x": torch.randn(4, 5), "weight": torch.randn(3), "bias": torch.randn(())},
        named="x: the gradient of each power is divided by its root mean square a second time",
        kinds=("factor by element", "another operand", "step left out", "wrong intermediate value"),
        named_words=(r"rstds?", r"twice|left out"),
        located=(r"gradient of x\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)


def closing_gate(log_alpha, u):
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + log_alpha) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


class HardConcrete(Function):
    """Gate for L0 regularization; u is uniform noise."""

    @staticmethod
    def forward(ctx, log_alpha, u):
        s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / TEMPERATURE)
        s_bar = s * (HIGH - LOW) + LOW
        ctx.save_for_backward(s, u)
        return s_bar.clamp(0, 1)

    @staticmethod
    def backward(ctx, grad):
        s, u = ctx.saved_tensors
        inside = (s > 0) & (s < 1)
        ds = grad * inside * (HIGH - LOW) * s * (1 - s) / TEMPERATURE
        return ds, ds / (u * (1 - u))


WRONG += [
    WrongFunction(
        Case(
            "gate that closes, mask before the stretch",
            HardConcrete.apply,
            closing_gate,
            lambda: {"log_alpha": torch.randn(6, 5), "u": 0.1 + 0.8 * torch.rand(6, 5)},
            kinks=True,
            whole_numbers=False,
        ),
        named="the mask asks whether the sigmoid is between 0 and 1; the stretched value is what was clamped",
        kinds=("step left out", "only for some values", "another operand"),
        named_words=(r"clamp", r"mask|inside", r"LOW|HIGH|s_bar"),
        located=(r"gradients? of .*\blog_alpha\b",),
    ),
]
