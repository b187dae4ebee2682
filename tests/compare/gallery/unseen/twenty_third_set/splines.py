"""Splines: a uniform cubic B-spline at given places."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def b_spline(points, u):
    cell = u.detach().floor().long().clamp(0, len(points) - 4)
    s = u - cell
    weights = [(1 - s) ** 3, 3 * s**3 - 6 * s**2 + 4, -3 * s**3 + 3 * s**2 + 3 * s + 1, s**3]
    return sum(weight / 6 * points[cell + n] for n, weight in enumerate(weights))


class BSplineFunction(Function):
    @staticmethod
    def forward(ctx, points, u):
        ctx.save_for_backward(points, u)
        return b_spline(points, u)

    @staticmethod
    def backward(ctx, g):
        points, u = ctx.saved_tensors
        cell = u.floor().long().clamp(0, len(points) - 4)
        s = u - cell
        weights = [(1 - s) ** 3, 3 * s**3 - 6 * s**2 + 4, -3 * s**3 + 3 * s**2 + 3 * s + 1, s**3]
        slopes = [-((1 - s) ** 2), 3 * s**2 - 4 * s, -3 * s**2 + 2 * s + 1, s**2]
        to_points, to_u = torch.zeros_like(points), torch.zeros_like(u)
        for n in range(4):
            to_points = to_points.index_add(0, cell + n, g * weights[n] / 6)
            to_u = to_u + g * slopes[n] / 2 * points[cell + n]
        return to_points, to_u


def basis(s):
    return torch.stack(((1 - s) ** 3, 3 * s**3 - 6 * s**2 + 4, -3 * s**3 + 3 * s**2 + 3 * s + 1, s**3), dim=-1) / 6


def basis_derivative(s):
    return torch.stack((3 * (1 - s) ** 2, 9 * s**2 - 12 * s, -9 * s**2 + 6 * s + 3, 3 * s**2), dim=-1) / 6


class CubicBSpline(Function):
    """Value of a uniform cubic B-spline with control points c (K,) at places u (N,), in knots from the first."""

    @staticmethod
    def forward(ctx, c, u):
        i = torch.floor(u).long().clamp(0, c.shape[0] - 4)
        idx = i.unsqueeze(1) + torch.arange(4, device=u.device)
        s = u - i
        ctx.save_for_backward(c, idx, s)
        return (basis(s) * c[idx]).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_out):
        c, idx, s = ctx.saved_tensors
        grad_c = torch.zeros_like(c)
        grad_c.index_put_((idx,), grad_out.unsqueeze(1) * basis(s), accumulate=True)
        grad_u = grad_out * (basis_derivative(s) * c[idx]).sum(dim=1)
        return grad_c, grad_u


OPERATIONS = [
    Operation(
        "cubic B-spline, derivative of the first weight",
        BSplineFunction,
        CubicBSpline,
        b_spline,
        lambda: {"points": torch.randn(7), "u": 4 * torch.rand(9)},
        named="u: the derivative of (1 - s)^3 has the wrong sign: the inner derivative -1 is missing",
        kinds=("factor of one term",),
        named_words=(r"\bsign\b|negat|minus|factor.*-1\b|-1\b.*(factor|times)|-3 \*|- ?\(?3 ?\*", r"1 - s"),
        located=(r"gradient of u\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
