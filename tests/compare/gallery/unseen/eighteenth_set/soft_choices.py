"""Soft choices: a soft maximum with a learned sharpness, samples between 0 and 1."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def soft_maximum(x, sharpness):
    r = sharpness[:, None]
    return ((r * x).exp().mean(-1, keepdim=True).log() / r).squeeze(-1)


class SoftMaximumFunction(Function):
    @staticmethod
    def forward(ctx, x, sharpness):
        out = soft_maximum(x, sharpness)
        ctx.save_for_backward(x, sharpness, out)
        return out

    @staticmethod
    def backward(ctx, g):
        x, sharpness, out = ctx.saved_tensors
        weights = (sharpness[:, None] * x).softmax(-1)
        return g[..., None] * weights, (g * ((weights * x).sum(-1) - out) / sharpness).sum(0)


class LSEPool(Function):
    """log(mean(exp(r x))) / r over the pixels, with a learned r for each channel."""

    @staticmethod
    def forward(ctx, x, r):
        n = x.shape[-1]
        z = x * r.view(1, -1, 1)
        lse = torch.logsumexp(z, dim=-1) - torch.log(torch.tensor(n, dtype=x.dtype))
        ctx.save_for_backward(x, r, torch.softmax(z, dim=-1))
        return lse / r

    @staticmethod
    def backward(ctx, grad_output):
        x, r, p = ctx.saved_tensors
        grad_x = grad_output.unsqueeze(-1) * p
        grad_r = (grad_output * (p * x).sum(-1) / r).sum(0)
        return grad_x, grad_r


def bounded_samples(a, b, u):
    return (1 - (1 - u) ** (1 / b)) ** (1 / a)


class BoundedSamplesFunction(Function):
    @staticmethod
    def forward(ctx, a, b, u):
        ctx.save_for_backward(a, b, u)
        return bounded_samples(a, b, u)

    @staticmethod
    def backward(ctx, g):
        a, b, u = ctx.saved_tensors
        rest = (1 - u) ** (1 / b)
        inside = 1 - rest
        x = inside ** (1 / a)
        to_inside = g * x / (a * inside)
        return (
            -g * x * inside.log() / a**2,
            to_inside * rest * (1 - u).log() / b**2,
            to_inside * rest / (b * (1 - u)),
        )


class KumaraswamySample(Function):
    """Reparameterized sample x = (1 - (1 - u)^(1/b))^(1/a)."""

    @staticmethod
    def forward(ctx, a, b, u):
        v = torch.pow(1 - u, 1 / b)
        x = torch.pow(1 - v, 1 / a)
        ctx.save_for_backward(a, b, u, v, x)
        return x

    @staticmethod
    def backward(ctx, grad_x):
        a, b, u, v, x = ctx.saved_tensors
        grad_a = -grad_x * x * torch.log(1 - v) / (a * a)
        dx_dv = -torch.pow(1 - v, 1 / a - 1) / a
        grad_b = grad_x * dx_dv * v * torch.log(1 - u) / (b * b)
        grad_u = -grad_x * dx_dv * v / (b * (1 - u))
        return grad_a, grad_b, grad_u


OPERATIONS = [
    Operation(
        "soft maximum with a sharpness, divisor",
        SoftMaximumFunction,
        LSEPool,
        soft_maximum,
        lambda: {"x": torch.randn(2, 3, 5), "sharpness": 0.5 + torch.rand(3)},
        named="the logarithm is divided by the sharpness, and the derivative of that divisor is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"lse|/ ?r|div"),
        located=(r"gradient of (sharpness|r)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "samples between 0 and 1, sign of one power",
            KumaraswamySample.apply,
            bounded_samples,
            lambda: {"a": 0.8 + torch.rand(6), "b": 0.8 + torch.rand(6), "u": 0.1 + 0.8 * torch.rand(6)},
            whole_numbers=False,
        ),
        named="b stands in the divisor of an exponent, whose derivative has a minus that b's gradient lacks",
        kinds=("constant factor", "factor of one term", "another operand"),
        named_words=(r"-1|negat|sign|minus", r"-grad_x|-dx_dv", r"factor"),
        located=(r"gradient of b\b",),
    ),
]
RIGHT += [
    Case(
        "right: samples between 0 and 1",
        BoundedSamplesFunction.apply,
        bounded_samples,
        lambda: {"a": 0.8 + torch.rand(6), "b": 0.8 + torch.rand(6), "u": 0.1 + 0.8 * torch.rand(6)},
        whole_numbers=False,
    )
]
