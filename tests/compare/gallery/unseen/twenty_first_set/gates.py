"""Normalisers and gates: responses against their mean, a gate of the Gaussian, squares of positive parts."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function
from torch.nn.functional import gelu

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EPS = 1e-6


def responses(x, gamma, beta):
    size = x.norm(dim=1, keepdim=True)
    return gamma * (x * size / (size.mean(2, keepdim=True) + EPS)) + beta + x


class ResponsesFunction(Function):
    @staticmethod
    def forward(ctx, x, gamma, beta):
        ctx.save_for_backward(x, gamma)
        return responses(x, gamma, beta)

    @staticmethod
    def backward(ctx, g):
        x, gamma = ctx.saved_tensors
        size = x.norm(dim=1, keepdim=True)
        mean = size.mean(2, keepdim=True) + EPS
        ratio = size / mean
        to_ratio = (g * gamma * x).sum(1, keepdim=True)
        to_size = (to_ratio - (to_ratio * ratio).mean(2, keepdim=True)) / mean
        to_x = g * (1 + gamma * ratio) + to_size * x / size
        return to_x, (g * x * ratio).sum((0, 1)), g.sum((0, 1))


class GRN(Function):
    """Global response normalization of ConvNeXt v2, channels last: x of shape (N, positions, C)."""

    @staticmethod
    def forward(ctx, x, gamma, beta):
        gx = torch.sqrt((x * x).sum(dim=1, keepdim=True))
        denom = gx.mean(dim=-1, keepdim=True) + EPS
        nx = gx / denom
        ctx.save_for_backward(x, gamma, gx, denom, nx)
        return gamma * (x * nx) + beta + x

    @staticmethod
    def backward(ctx, grad_output):
        x, gamma, gx, denom, nx = ctx.saved_tensors
        grad_beta = grad_output.sum(dim=(0, 1))
        grad_gamma = (grad_output * x * nx).sum(dim=(0, 1))
        grad_xn = grad_output * gamma
        grad_nx = (grad_xn * x).sum(dim=1, keepdim=True)
        grad_gx = grad_nx / denom
        grad_x = grad_output + grad_xn * nx + grad_gx * x / gx
        return grad_x, grad_gamma, grad_beta


def gaussian_gate(x):
    value, gate = x.chunk(2, -1)
    return value * gelu(gate, approximate="tanh")


class GaussianGateFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return gaussian_gate(x)

    @staticmethod
    def backward(ctx, g):
        value, gate = ctx.saved_tensors[0].chunk(2, -1)
        scale = math.sqrt(2 / math.pi)
        t = torch.tanh(scale * gate * (1 + 0.044715 * gate**2))
        slope = (1 + t) / 2 + gate * (1 - t**2) * scale * (1 + 3 * 0.044715 * gate**2) / 2
        return torch.cat([g * gate * (1 + t) / 2, g * value * slope], -1)


class GEGLU(Function):
    """Gated linear unit with the tanh form of GELU; the second half of the features is the gate."""

    @staticmethod
    def forward(ctx, x):
        a, b = x.chunk(2, dim=-1)
        inner = math.sqrt(2.0 / math.pi) * (b + 0.044715 * b * b * b)
        cdf = 0.5 * (1.0 + torch.tanh(inner))
        ctx.save_for_backward(a, b, cdf)
        return a * b * cdf

    @staticmethod
    def backward(ctx, dy):
        a, b, cdf = ctx.saved_tensors
        pdf = torch.exp(-0.5 * b * b) / math.sqrt(2.0 * math.pi)
        da = dy * b * cdf
        db = dy * a * (cdf + b * pdf)
        return torch.cat((da, db), dim=-1)


def squares_of_positive(x, w_in, w_out):
    return (x @ w_in.mT).relu().square() @ w_out.mT


class SquaredReLUFFN(Function):
    """Feed-forward block of Primer."""

    @staticmethod
    def forward(ctx, x, w_in, w_out):
        h = (x @ w_in.t()).clamp_(min=0)
        h2 = h.mul_(h)
        ctx.save_for_backward(x, w_in, w_out, h, h2)
        return h2 @ w_out.t()

    @staticmethod
    def backward(ctx, grad_out):
        x, w_in, w_out, h, h2 = ctx.saved_tensors
        grad_w_out = grad_out.t() @ h2
        grad_h = 2 * h * (grad_out @ w_out)
        return grad_h @ w_in, grad_h.t() @ x, grad_w_out


OPERATIONS = [
    Operation(
        "responses against their mean, mean held fixed",
        ResponsesFunction,
        GRN,
        responses,
        lambda: {"x": torch.randn(2, 5, 4), "gamma": torch.randn(4), "beta": torch.randn(4)},
        options={"whole_numbers": False},
        named="x: the mean of the responses in the denominator depends on x too, and its term is missing",
        kinds=("missing term",),
        named_words=(r"missing|left out|lacks", r"\bmean\b"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "gate of the Gaussian, slope of the exact form",
        GaussianGateFunction,
        GEGLU,
        gaussian_gate,
        lambda: {"x": torch.randn(4, 6)},
        named="forward has the tanh form of GELU, and backward the derivative of the exact one",
        kinds=("factor by element", "only for some values", "another operand", "wrong intermediate value"),
        named_words=(r"\bpdf\b", r"tanh|erf|exact|GELU", r"another function"),
        located=(r"gradient of x\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "squares of positive parts, squared in place",
            SquaredReLUFFN.apply,
            squares_of_positive,
            lambda: {"x": torch.randn(5, 3), "w_in": torch.randn(4, 3), "w_out": torch.randn(2, 4)},
        ),
        named="the hidden values are squared in place, so backward sees the squares where the values belong",
        kinds=("another operand", "wrong intermediate value", "factor by element", "change of the source"),
        named_words=(
            r"in.?place|mul_|same tensor|overwr",
            r"\bh2?\b.*(sqrt|square|power)|sqrt\(h2?\)",
            r"h \* h|mul\(",
        ),
        located=(r"gradient of x\b", r"gradient of w_in\b"),
    ),
]
