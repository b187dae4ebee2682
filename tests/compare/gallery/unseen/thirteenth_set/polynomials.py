"""Polynomials of Chebyshev, and a curve by repeated interpolation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def chebyshev(x, weight):
    terms = [torch.ones_like(x), x]
    for _ in range(len(weight) - 2):
        terms.append(2 * x * terms[-1] - terms[-2])
    return sum(w * term for w, term in zip(weight, terms, strict=True))


class ChebyshevFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return chebyshev(x, weight)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        terms, slopes = [torch.ones_like(x), x], [torch.zeros_like(x), torch.ones_like(x)]
        for _ in range(len(weight) - 2):
            slopes.append(2 * terms[-1] + 2 * x * slopes[-1] - slopes[-2])
            terms.append(2 * x * terms[-1] - terms[-2])
        grad_x = g * sum(w * slope for w, slope in zip(weight, slopes, strict=True))
        return grad_x, torch.stack([(g * term).sum() for term in terms])


def chebyshev_terms(x, count):
    out = torch.empty(count, *x.shape, dtype=x.dtype)
    out[0] = 1
    out[1] = x
    for k in range(2, count):
        out[k] = 2 * x * out[k - 1] - out[k - 2]
    return out


class ChebyshevSeries(Function):
    @staticmethod
    def forward(ctx, x, coefficients):
        terms = chebyshev_terms(x, coefficients.numel())
        ctx.save_for_backward(terms, coefficients)
        return torch.tensordot(coefficients, terms, dims=1)

    @staticmethod
    def backward(ctx, grad):
        terms, coefficients = ctx.saved_tensors
        derivative = torch.zeros_like(grad)
        for k in range(1, coefficients.numel()):
            derivative += k * coefficients[k] * terms[k - 1]
        return grad * derivative, (terms * grad).flatten(1).sum(dim=1)


def curve(points, t):
    t = t[:, None]
    levels = [point.expand(len(t), -1) for point in points]
    while len(levels) > 1:
        levels = [(1 - t) * a + t * b for a, b in pairwise(levels)]
    return levels[0]


class CurveFunction(Function):
    @staticmethod
    def forward(ctx, points, t):
        ctx.save_for_backward(points, t)
        return curve(points, t)

    @staticmethod
    def backward(ctx, g):
        points, t = ctx.saved_tensors
        t = t[:, None]
        levels = [points[:, None].expand(-1, len(t), -1)]
        while len(levels[-1]) > 1:
            levels.append((1 - t) * levels[-1][:-1] + t * levels[-1][1:])
        grad, grad_t = g[None], torch.zeros_like(t)
        for level in reversed(levels[:-1]):
            grad_t = grad_t + (grad * (level[1:] - level[:-1])).sum((0, 2))[:, None]
            nothing = torch.zeros_like(grad[:1])
            grad = torch.cat([(1 - t) * grad, nothing]) + torch.cat([nothing, t * grad])
        return grad.sum(1), grad_t[:, 0]


class DeCasteljau(Function):
    @staticmethod
    def forward(ctx, control, t):
        s = t.unsqueeze(-1)
        level = control.unsqueeze(1).repeat(1, t.numel(), 1)
        while level.shape[0] > 1:
            last = level
            level = torch.lerp(last[:-1], last[1:], s)
        ctx.save_for_backward(s, last)
        ctx.degree = control.shape[0] - 1
        return level[0]

    @staticmethod
    def backward(ctx, grad_point):
        s, last = ctx.saved_tensors
        grad_t = (grad_point * (last[1] - last[0])).sum(dim=-1)
        grads = [grad_point]
        for _ in range(ctx.degree):
            wider = [torch.zeros_like(grad_point) for _ in range(len(grads) + 1)]
            for i, grad in enumerate(grads):
                wider[i] = wider[i] + (1 - s) * grad
                wider[i + 1] = wider[i + 1] + s * grad
            grads = wider
        return torch.stack([grad.sum(dim=0) for grad in grads]), grad_t


OPERATIONS = [
    Operation(
        "series of Chebyshev, rule for powers",
        ChebyshevFunction,
        ChebyshevSeries,
        chebyshev,
        lambda: {"x": torch.randn(4, 3), "weight": torch.randn(5)},
        named="x: the derivative of term k is taken as k times term k - 1, as for powers",
        kinds=("factor by element", "another operand", "missing term"),
        named_words=(r"derivative of|another function|other function|power",),
        located=(r"gradient of x",),
    ),
    Operation(
        "curve by interpolation, only the last level",
        CurveFunction,
        DeCasteljau,
        curve,
        lambda: {"points": torch.randn(4, 2), "t": torch.rand(5)},
        named="t: only the last interpolation counts, so the gradient is a third of the expected one",
        kinds=("constant factor", "missing term"),
        named_words=(r"missing", r"constant|detach", r"0\.333|1/3|third|\b3\b.*times"),
        located=(r"gradient of t\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
