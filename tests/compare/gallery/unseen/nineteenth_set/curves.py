"""Curves: cubic pieces between points, a quotient of weights through points, areas, derivatives of a curve."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

KNOTS = torch.tensor([0.0, 1.0, 2.5, 3.0, 4.5])


def cubic_pieces(at, values):
    knots = KNOTS.to(at)
    rise = (values[1:] - values[:-1]) / (knots[1:] - knots[:-1])
    slopes = torch.cat([rise[:1], (rise[1:] + rise[:-1]) / 2, rise[-1:]])
    piece = (at[:, None] >= knots[1:-1]).sum(1)
    width = (knots[1:] - knots[:-1])[piece]
    t = (at - knots[piece]) / width
    ends = (1 + 2 * t) * (1 - t) ** 2 * values[piece] + t**2 * (3 - 2 * t) * values[piece + 1]
    return ends + width * (t * (1 - t) ** 2 * slopes[piece] + t**2 * (t - 1) * slopes[piece + 1])


class CubicPiecesFunction(Function):
    @staticmethod
    def forward(ctx, at, values):
        ctx.save_for_backward(at, values)
        return cubic_pieces(at, values)

    @staticmethod
    def backward(ctx, g):
        at, values = ctx.saved_tensors
        knots = KNOTS.to(at)
        widths = knots[1:] - knots[:-1]
        rise = (values[1:] - values[:-1]) / widths
        slopes = torch.cat([rise[:1], (rise[1:] + rise[:-1]) / 2, rise[-1:]])
        piece = (at[:, None] >= knots[1:-1]).sum(1)
        w = widths[piece]
        t = (at - knots[piece]) / w
        left, right = values[piece], values[piece + 1]
        to_t = 6 * t * (1 - t) * (right - left)
        to_t = to_t + w * ((1 - t) * (1 - 3 * t) * slopes[piece] + t * (3 * t - 2) * slopes[piece + 1])
        to_values, to_slopes = torch.zeros_like(values), torch.zeros_like(values)
        to_values.index_add_(0, piece, g * (1 + 2 * t) * (1 - t) ** 2)
        to_values.index_add_(0, piece + 1, g * t**2 * (3 - 2 * t))
        to_slopes.index_add_(0, piece, g * w * t * (1 - t) ** 2)
        to_slopes.index_add_(0, piece + 1, g * w * t**2 * (t - 1))
        to_rise = (to_slopes[1:] + to_slopes[:-1]) / 2
        to_rise[0] += to_slopes[0] / 2
        to_rise[-1] += to_slopes[-1] / 2
        to_values[1:] += to_rise / widths
        to_values[:-1] -= to_rise / widths
        return g * to_t / w, to_values


class HermiteCurve(Function):
    """Cubic Hermite interpolation with slopes from averaged differences (one-sided at the ends)."""

    @staticmethod
    def basis(t):
        return 2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t, -2 * t**3 + 3 * t**2, t**3 - t**2

    @staticmethod
    def basis_slope(t):
        return 6 * t**2 - 6 * t, 3 * t**2 - 4 * t + 1, 6 * t - 6 * t**2, 3 * t**2 - 2 * t

    @staticmethod
    def forward(ctx, x, y):
        knots = KNOTS.to(x)
        h = knots.diff()
        delta = y.diff() / h
        m = torch.empty_like(y)
        m[1:-1] = 0.5 * (delta[1:] + delta[:-1])
        m[0], m[-1] = delta[0], delta[-1]
        i = torch.bucketize(x, knots[1:-1], right=True)
        t = (x - knots[i]) / h[i]
        h00, h10, h01, h11 = HermiteCurve.basis(t)
        ctx.save_for_backward(y, m, i, t, h)
        return h00 * y[i] + h10 * h[i] * m[i] + h01 * y[i + 1] + h11 * h[i] * m[i + 1]

    @staticmethod
    def backward(ctx, grad):
        y, m, i, t, h = ctx.saved_tensors
        h00, h10, h01, h11 = HermiteCurve.basis(t)
        d00, d10, d01, d11 = HermiteCurve.basis_slope(t)
        slope = d00 * y[i] + d10 * h[i] * m[i] + d01 * y[i + 1] + d11 * h[i] * m[i + 1]
        grad_x = grad * slope / h[i]
        grad_y = torch.zeros_like(y)
        grad_m = torch.zeros_like(y)
        grad_y.index_add_(0, i, grad * h00).index_add_(0, i + 1, grad * h01)
        grad_m.index_add_(0, i, grad * h10 * h[i]).index_add_(0, i + 1, grad * h11 * h[i])
        grad_delta = 0.5 * (grad_m[1:] + grad_m[:-1])
        grad_y[1:] += grad_delta / h
        grad_y[:-1] -= grad_delta / h
        return grad_x, grad_y


def quotient_curve(at, values, weights):
    near = weights / (at[:, None] - KNOTS.to(at) - 0.2)
    return (near @ values) / near.sum(1)


class QuotientCurveFunction(Function):
    @staticmethod
    def forward(ctx, at, values, weights):
        ctx.save_for_backward(at, values, weights)
        return quotient_curve(at, values, weights)

    @staticmethod
    def backward(ctx, g):
        at, values, weights = ctx.saved_tensors
        far = at[:, None] - KNOTS.to(at) - 0.2
        near = weights / far
        total = near.sum(1, keepdim=True)
        to_near = g[:, None] * (values - (near @ values)[:, None] / total) / total
        return -(to_near * near / far).sum(1), (g[:, None] * near / total).sum(0), (to_near / far).sum(0)


class BarycentricRational(Function):
    @staticmethod
    def forward(ctx, x, f, w):
        diff = x.unsqueeze(1) - (KNOTS.to(x) + 0.2)
        c = w / diff
        den = c.sum(dim=1)
        p = (c * f).sum(dim=1) / den
        ctx.save_for_backward(f, w, diff, c, den, p)
        return p

    @staticmethod
    def backward(ctx, grad_p):
        f, w, diff, c, den, p = ctx.saved_tensors
        g = (grad_p / den).unsqueeze(1)
        grad_f = (g * c).sum(dim=0)
        grad_c = g * (f - p.unsqueeze(1))
        grad_w = (grad_c / diff).sum(dim=0)
        grad_x = -(grad_c * w / diff).sum(dim=1)
        return grad_x, grad_f, grad_w


def enclosed(corners):
    after = corners.roll(-1, 0)
    area = 0.5 * (corners[:, 0] * after[:, 1] - after[:, 0] * corners[:, 1]).sum()
    around = (after - corners).norm(dim=1).sum()
    return 12.5 * area / around**2


class Compactness(Function):
    """Isoperimetric quotient of a polygon, with 12.5 for four pi."""

    @staticmethod
    def forward(ctx, p):
        nxt = torch.roll(p, -1, dims=0)
        edge = nxt - p
        length = edge.norm(dim=1)
        area = 0.5 * (p[:, 0] * nxt[:, 1] - nxt[:, 0] * p[:, 1]).sum()
        perimeter = length.sum()
        ctx.save_for_backward(p, edge, length, area, perimeter)
        return 12.5 * area / perimeter**2

    @staticmethod
    def backward(ctx, grad):
        p, edge, length, area, perimeter = ctx.saved_tensors
        nxt, prev = torch.roll(p, -1, dims=0), torch.roll(p, 1, dims=0)
        grad_area = 12.5 * grad / perimeter**2
        grad_perimeter = -25 * grad * area / perimeter**3
        unit = edge / length.unsqueeze(1)
        grad_p = -grad_perimeter * unit
        chord = nxt - prev
        grad_p = grad_p + 0.5 * grad_area * torch.stack([chord[:, 1], -chord[:, 0]], dim=1)
        return grad_p


def bend(curve):
    d1 = (curve[2:] - curve[:-2]) / 2
    d2 = curve[2:] - 2 * curve[1:-1] + curve[:-2]
    return (d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0]) / (d1**2).sum(1) ** 1.5


class PlaneCurvature(Function):
    """Signed curvature at the inner points of a plane curve."""

    @staticmethod
    def forward(ctx, c):
        v = 0.5 * (c[2:] - c[:-2])
        a = c[2:] + c[:-2] - 2 * c[1:-1]
        cross = v[:, 0] * a[:, 1] - v[:, 1] * a[:, 0]
        speed2 = v.square().sum(dim=1)
        kappa = cross / speed2.pow(1.5)
        ctx.save_for_backward(v, a, speed2, kappa)
        return kappa

    @staticmethod
    def backward(ctx, grad_kappa):
        v, a, speed2, kappa = ctx.saved_tensors
        grad_cross = (grad_kappa / speed2.pow(1.5)).unsqueeze(1)
        grad_speed2 = -1.5 * grad_kappa * kappa / speed2
        grad_v = grad_cross * torch.stack([a[:, 1], -a[:, 0]], dim=1) + 2 * grad_speed2.unsqueeze(1) * v
        grad_a = grad_cross * torch.stack([-v[:, 1], v[:, 0]], dim=1)
        grad_c = v.new_zeros(v.shape[0] + 2, 2)
        grad_c[2:] += 0.5 * grad_v + grad_a
        grad_c[:-2] += grad_a - 0.5 * grad_v
        grad_c[1:-1] = -2 * grad_a
        return grad_c


def ring():
    angle = torch.arange(6) * 1.05
    return {"corners": torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(6, 2)}


def path():
    return {"curve": torch.stack([torch.arange(7.0), torch.zeros(7)], 1) + 0.3 * torch.randn(7, 2)}


def through_points():
    at = torch.tensor([0.7, 1.9, 2.9, 3.9]) + 0.1 * torch.rand(4)
    alternating = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    return {"at": at, "values": torch.randn(5), "weights": alternating * (0.5 + torch.rand(5))}


OPERATIONS = [
    Operation(
        "cubic pieces, slopes at the ends",
        CubicPiecesFunction,
        HermiteCurve,
        cubic_pieces,
        lambda: {"at": 4.4 * torch.rand(8) + 0.05, "values": torch.randn(5)},
        named="values: the slopes at the two ends are halved as if they were means of two differences",
        kinds=("only at borders", "factor of one term", "missing term", "only at some indices", "few elements"),
        named_words=(r"ends?\b|border|first|last|edge", r"\bm\[0\]|\bm\[-1\]|grad_m"),
        located=(r"gradient of (values|y)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "quotient of weights through points, square of the distance",
        QuotientCurveFunction,
        BarycentricRational,
        quotient_curve,
        through_points,
        named="at: the derivative of the reciprocal distance lacks a power of the distance",
        kinds=("factor by element", "step left out", "another operand"),
        named_words=(r"\bdiff\b|distance", r"squar|power|reciprocal", r"divi"),
        located=(r"gradient of (at|x)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "area that a line encloses, edge before a corner", Compactness.apply, enclosed, ring, whole_numbers=False
        ),
        named="corners: in the part through the perimeter the edge that ends at a corner is missing",
        kinds=("missing term", "step left out", "shifted"),
        named_words=(r"missing", r"roll", r"shift", r"edge|unit|before|previous|perimeter"),
        located=(r"gradient of (corners|p)\b",),
    ),
    WrongFunction(
        Case("bend of a curve, inner points written over", PlaneCurvature.apply, bend, path, whole_numbers=False),
        named="the inner points' gradient replaces what their neighbours added, where it is to be added",
        kinds=("missing term", "only at some indices", "wrong sum", "step left out"),
        named_words=(r"overwrit|written over|replac|in.?place|\+=|add|accumul", r"missing"),
        located=(r"gradient of (curve|c)\b",),
    ),
]
