"""Geometry: distances on a sphere, between sets of points, turns around an axis, a projective map."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def on_sphere(start, end):
    (lat1, lon1), (lat2, lon2) = start.unbind(1), end.unbind(1)
    part = torch.sin((lat2 - lat1) / 2) ** 2
    return 2 * torch.asin(torch.sqrt(part + lat1.cos() * lat2.cos() * torch.sin((lon2 - lon1) / 2) ** 2))


class OnSphereFunction(Function):
    @staticmethod
    def forward(ctx, start, end):
        ctx.save_for_backward(start, end)
        return on_sphere(start, end)

    @staticmethod
    def backward(ctx, g):
        start, end = ctx.saved_tensors
        (lat1, lon1), (lat2, lon2) = start.unbind(1), end.unbind(1)
        north, east = lat2 - lat1, torch.sin((lon2 - lon1) / 2) ** 2
        a = torch.sin(north / 2) ** 2 + lat1.cos() * lat2.cos() * east
        to_a = g / torch.sqrt(a * (1 - a))
        to_lat1 = to_a * (-north.sin() / 2 - lat1.sin() * lat2.cos() * east)
        to_lat2 = to_a * (north.sin() / 2 - lat1.cos() * lat2.sin() * east)
        to_lon = to_a * lat1.cos() * lat2.cos() * (lon2 - lon1).sin() / 2
        return torch.stack([to_lat1, -to_lon], 1), torch.stack([to_lat2, to_lon], 1)


class Haversine(Function):
    @staticmethod
    def forward(ctx, p, q):
        dlat, dlon = (q - p).unbind(dim=1)
        cos_cos = torch.cos(p[:, 0]) * torch.cos(q[:, 0])
        h = torch.sin(0.5 * dlat).square() + cos_cos * torch.sin(0.5 * dlon).square()
        ctx.save_for_backward(dlat, dlon, cos_cos, h)
        return 2 * torch.asin(h.sqrt())

    @staticmethod
    def backward(ctx, grad):
        dlat, dlon, cos_cos, h = ctx.saved_tensors
        grad_h = grad * torch.rsqrt(h * (1 - h))
        grad_dlat = grad_h * torch.sin(0.5 * dlat) * torch.cos(0.5 * dlat)
        grad_dlon = grad_h * cos_cos * torch.sin(0.5 * dlon) * torch.cos(0.5 * dlon)
        grad_q = torch.stack((grad_dlat, grad_dlon), dim=1)
        return -grad_q, grad_q


def between_sets(x, y):
    squares = ((x[:, None] - y[None]) ** 2).sum(2)
    return squares.min(1).values.mean() + squares.min(0).values.mean()


class BetweenSetsFunction(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return between_sets(x, y)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        squares = ((x[:, None] - y[None]) ** 2).sum(2)
        near_x, near_y = squares.min(1).indices, squares.min(0).indices
        from_x, from_y = 2 * g / len(x) * (x - y[near_x]), 2 * g / len(y) * (y - x[near_y])
        return from_x.index_add(0, near_y, -from_y), from_y.index_add(0, near_x, -from_x)


class ChamferDistance(Function):
    @staticmethod
    def forward(ctx, x, y):
        d = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(dim=-1)
        dist1, idx1 = d.min(dim=1)
        dist2, idx2 = d.min(dim=0)
        ctx.save_for_backward(x, y, idx1, idx2)
        return dist1.mean() + dist2.mean()

    @staticmethod
    def backward(ctx, grad_dist):
        x, y, idx1, idx2 = ctx.saved_tensors
        g1 = grad_dist * 2 / x.shape[0] * (x - y[idx1])
        g2 = grad_dist * 2 / y.shape[0] * (y - x[idx2])
        grad_x, grad_y = g1.clone(), g2.clone()
        grad_x[idx2] -= g2
        grad_y[idx1] -= g1
        return grad_x, grad_y


def rodrigues_rotation(x, axis, angle):
    sine, cosine = angle.sin()[:, None], angle.cos()[:, None]
    along = (axis * x).sum(1, keepdim=True)
    return x * cosine + torch.linalg.cross(axis, x) * sine + axis * along * (1 - cosine)


class TurnedFunction(Function):
    @staticmethod
    def forward(ctx, x, axis, angle):
        ctx.save_for_backward(x, axis, angle)
        return rodrigues_rotation(x, axis, angle)

    @staticmethod
    def backward(ctx, g):
        x, axis, angle = ctx.saved_tensors
        sine, cosine = angle.sin()[:, None], angle.cos()[:, None]
        along, to_along = (axis * x).sum(1, keepdim=True), (axis * g).sum(1, keepdim=True)
        grad_x = g * cosine + torch.linalg.cross(g, axis) * sine + axis * to_along * (1 - cosine)
        grad_axis = torch.linalg.cross(x, g) * sine + (1 - cosine) * (g * along + x * to_along)
        slope = -x * sine + torch.linalg.cross(axis, x) * cosine + axis * along * sine
        return grad_x, grad_axis, (g * slope).sum(1)


def cross(a, b):
    return torch.stack(
        (
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ),
        dim=1,
    )


class Rodrigues(Function):
    @staticmethod
    def forward(ctx, x, k, theta):
        s, c = torch.sin(theta).unsqueeze(1), torch.cos(theta).unsqueeze(1)
        kx = (k * x).sum(dim=1, keepdim=True)
        ctx.save_for_backward(x, k, s, c, kx)
        return c * x + s * cross(k, x) + (1 - c) * kx * k

    @staticmethod
    def backward(ctx, gy):
        x, k, s, c, kx = ctx.saved_tensors
        gk = (gy * k).sum(dim=1, keepdim=True)
        grad_x = c * gy + s * cross(gy, k) + (1 - c) * gk * k
        grad_k = s * cross(gy, x) + (1 - c) * (kx * gy + gk * x)
        grad_theta = (gy * (c * cross(k, x) + s * (kx * k - x))).sum(dim=1)
        return grad_x, grad_k, grad_theta


def projective(points, matrix):
    mapped = torch.cat([points, torch.ones_like(points[:, :1])], 1) @ matrix.T
    return mapped[:, :2] / mapped[:, 2:]


class Homography(Function):
    @staticmethod
    def forward(ctx, pts, H):
        ph = torch.nn.functional.pad(pts, (0, 1), value=1.0)
        uvw = ph @ H.t()
        ctx.save_for_backward(ph, uvw, H)
        return uvw[:, :2] / uvw[:, 2:]

    @staticmethod
    def backward(ctx, grad_out):
        ph, uvw, H = ctx.saved_tensors
        w = uvw[:, 2:]
        grad_uv = grad_out / w
        grad_w = -(grad_out * uvw[:, :2]).sum(dim=1, keepdim=True) / w
        grad_uvw = torch.cat((grad_uv, grad_w), dim=1)
        return (grad_uvw @ H)[:, :2], grad_uvw.t() @ ph


OPERATIONS = [
    Operation(
        "distance on a sphere, circles of latitude",
        OnSphereFunction,
        Haversine,
        on_sphere,
        lambda: {"start": torch.randn(5, 2) / 2, "end": torch.randn(5, 2) / 2},
        named="the latitudes' gradients lack the part through the cosines of the latitudes",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"\bcos\b"),
        located=(r"gradient of start", r"gradient of end"),
        options={"whole_numbers": False},
    ),
    Operation(
        "distance between sets of points, repeated neighbours",
        BetweenSetsFunction,
        ChamferDistance,
        between_sets,
        lambda: {"x": torch.randn(6, 2), "y": torch.randn(7, 2)},
        named="a point that is the nearest of several gets the gradient of only one of them",
        kinds=("only at some indices", "missing term", "few elements"),
        named_words=(
            r"repeat|duplicate|several|same index|last one|overwrit",
            r"accumulat|index_add|scatter",
            r"missing",
        ),
        located=(r"gradient of x", r"gradient of y"),
        options={"whole_numbers": False},
    ),
    Operation(
        "turn around an axis, order of a cross product",
        TurnedFunction,
        Rodrigues,
        rodrigues_rotation,
        lambda: {"x": torch.randn(5, 3), "axis": torch.randn(5, 3), "angle": torch.randn(5)},
        named="axis: the cross product's factors are exchanged, so that term has the wrong sign",
        kinds=("factor of one term",),
        named_words=(r"-1\b|sign|negat", r"cross"),
        located=(r"gradient of axis",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "projective map, divisor",
            Homography.apply,
            projective,
            lambda: {"points": torch.randn(5, 2), "matrix": torch.eye(3) * 2 + torch.randn(3, 3) / 5},
            whole_numbers=False,
        ),
        named="the divisor's gradient is divided by the divisor once instead of twice",
        kinds=("another operand", "step left out", "factor of one term", "missing term"),
        named_words=(r"\bdiv\b", r"squar|power|twice"),
        located=(r"gradient of points", r"gradient of matrix"),
    ),
]
