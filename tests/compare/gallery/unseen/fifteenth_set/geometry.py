"""Geometry: places on an ellipsoid, distance on a hyperboloid, way between directions, a lens."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn.functional import normalize

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

FLATNESS = 0.2


def place_on_ellipsoid(latitude, longitude, height):
    radius = 1 / torch.sqrt(1 - FLATNESS * torch.sin(latitude) ** 2)
    from_axis = (radius + height) * torch.cos(latitude)
    up = ((1 - FLATNESS) * radius + height) * torch.sin(latitude)
    return torch.stack([from_axis * torch.cos(longitude), from_axis * torch.sin(longitude), up], 1)


class PlaceOnEllipsoidFunction(Function):
    @staticmethod
    def forward(ctx, latitude, longitude, height):
        ctx.save_for_backward(latitude, longitude, height)
        return place_on_ellipsoid(latitude, longitude, height)

    @staticmethod
    def backward(ctx, g):
        latitude, longitude, height = ctx.saved_tensors
        sine, cosine = torch.sin(latitude), torch.cos(latitude)
        radius = 1 / torch.sqrt(1 - FLATNESS * sine**2)
        to_axis = g[:, 0] * torch.cos(longitude) + g[:, 1] * torch.sin(longitude)
        to_east = g[:, 1] * torch.cos(longitude) - g[:, 0] * torch.sin(longitude)
        to_radius = to_axis * cosine + g[:, 2] * (1 - FLATNESS) * sine
        to_latitude = to_radius * FLATNESS * sine * cosine * radius**3
        to_latitude = to_latitude + g[:, 2] * ((1 - FLATNESS) * radius + height) * cosine
        to_latitude = to_latitude - to_axis * (radius + height) * sine
        return to_latitude, to_east * (radius + height) * cosine, to_axis * cosine + g[:, 2] * sine


class GeodeticToECEF(Function):
    @staticmethod
    def forward(ctx, lat, lon, h):
        slat, clat, slon, clon = lat.sin(), lat.cos(), lon.sin(), lon.cos()
        N = (1 - FLATNESS * slat**2).rsqrt()
        ctx.save_for_backward(slat, clat, slon, clon, N, h)
        x = (N + h) * clat * clon
        y = (N + h) * clat * slon
        z = (N * (1 - FLATNESS) + h) * slat
        return torch.stack((x, y, z), dim=-1)

    @staticmethod
    def backward(ctx, grad):
        slat, clat, slon, clon, N, h = ctx.saved_tensors
        gx, gy, gz = grad.unbind(-1)
        dN = FLATNESS * slat * clat * N**3
        dr = dN * clat - (N + h) * slat
        dz = dN * slat + (N * (1 - FLATNESS) + h) * clat
        grad_lat = (gx * clon + gy * slon) * dr + gz * dz
        grad_lon = (gy * clon - gx * slon) * (N + h) * clat
        grad_h = gx * clat * clon + gy * clat * slon + gz * slat
        return grad_lat, grad_lon, grad_h


def hyperboloid_distance(a, b):
    time_a, time_b = torch.sqrt(1 + (a**2).sum(1)), torch.sqrt(1 + (b**2).sum(1))
    return torch.acosh(time_a * time_b - (a * b).sum(1))


class HyperboloidDistanceFunction(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return hyperboloid_distance(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        time_a = torch.sqrt(1 + (a**2).sum(1, keepdim=True))
        time_b = torch.sqrt(1 + (b**2).sum(1, keepdim=True))
        inner = time_a * time_b - (a * b).sum(1, keepdim=True)
        scale = g[:, None] / torch.sqrt(inner**2 - 1)
        return scale * (a * time_b / time_a - b), scale * (b * time_a / time_b - a)


class LorentzDistance(Function):
    @staticmethod
    def forward(ctx, u, v):
        u0 = (1 + u.square().sum(dim=1, keepdim=True)).sqrt()
        v0 = (1 + v.square().sum(dim=1, keepdim=True)).sqrt()
        z = u0 * v0 - (u * v).sum(dim=1, keepdim=True)
        ctx.save_for_backward(u, v, u0, v0, z)
        return torch.acosh(z).squeeze(1)

    @staticmethod
    def backward(ctx, grad):
        u, v, u0, v0, z = ctx.saved_tensors
        grad_z = grad.unsqueeze(1) / (z.square() - 1).sqrt()
        grad_u = grad_z * (u * u0 / v0 - v)
        grad_v = grad_z * (v * v0 / u0 - u)
        return grad_u, grad_v


def between_directions(a, b, t):
    angle = torch.acos((a * b).sum(1))
    first, second = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    return first[:, None] * a + second[:, None] * b


class Slerp(Function):
    @staticmethod
    def forward(ctx, p, q, t):
        dot = (p * q).sum(dim=1)
        omega = torch.acos(dot)
        so = torch.sin(omega)
        sp, sq = torch.sin((1 - t) * omega), torch.sin(t * omega)
        ctx.save_for_backward(p, q, t, omega, so, sp, sq)
        return (sp / so).unsqueeze(1) * p + (sq / so).unsqueeze(1) * q

    @staticmethod
    def backward(ctx, grad):
        p, q, t, omega, so, sp, sq = ctx.saved_tensors
        gwp = (grad * p).sum(dim=1)
        gwq = (grad * q).sum(dim=1)
        co = torch.cos(omega)
        cp, cq = torch.cos((1 - t) * omega), torch.cos(t * omega)
        dwp = ((1 - t) * cp - sp * co / so) / so
        dwq = (t * cq - sq * co / so) / so
        grad_dot = -(gwp * dwp + gwq * dwq) / so
        grad_t = omega * (gwp * cp + gwq * cq) / so
        grad_p = (sp / so).unsqueeze(1) * grad + grad_dot.unsqueeze(1) * q
        grad_q = (sq / so).unsqueeze(1) * grad + grad_dot.unsqueeze(1) * p
        return grad_p, grad_q, grad_t


def through_lens(points, bend):
    square = (points**2).sum(1, keepdim=True)
    return points * (1 + bend[0] * square + bend[1] * square**2)


class ThroughLensFunction(Function):
    @staticmethod
    def forward(ctx, points, bend):
        ctx.save_for_backward(points, bend)
        return through_lens(points, bend)

    @staticmethod
    def backward(ctx, g):
        points, bend = ctx.saved_tensors
        square, dots = (points**2).sum(1, keepdim=True), (g * points).sum(1, keepdim=True)
        to_square = dots * (bend[0] + 2 * bend[1] * square)
        to_points = g * (1 + bend[0] * square + bend[1] * square**2) + 2 * to_square * points
        return to_points, torch.stack([(dots * square).sum(), (dots * square**2).sum()])


class RadialDistortion(Function):
    @staticmethod
    def forward(ctx, xy, k):
        r2 = xy.square().sum(dim=-1, keepdim=True)
        factor = 1 + r2 * (k[0] + r2 * k[1])
        ctx.save_for_backward(xy, k, r2, factor)
        return factor * xy

    @staticmethod
    def backward(ctx, grad_out):
        xy, k, r2, factor = ctx.saved_tensors
        dfactor = 2 * xy * (k[0] + 2 * k[1] * r2)
        grad_xy = grad_out * (factor + dfactor * xy)
        radial = (grad_out * xy).sum(dim=-1, keepdim=True)
        grad_k = torch.stack([(radial * r2).sum(), (radial * r2 * r2).sum()])
        return grad_xy, grad_k


OPERATIONS = [
    Operation(
        "place on an ellipsoid, radius in the height",
        PlaceOnEllipsoidFunction,
        GeodeticToECEF,
        place_on_ellipsoid,
        lambda: {"latitude": torch.randn(6) / 2, "longitude": torch.randn(6), "height": torch.rand(6)},
        named="latitude: the radius's slope lacks the factor 1 - FLATNESS in the third coordinate",
        kinds=("factor of one term", "step left out", "another operand"),
        named_words=(r"FLATNESS", r"\b0\.8\b|1\.25|5 ?/ ?4|4 ?/ ?5", r"factor"),
        located=(r"gradient of lat",),
    ),
    Operation(
        "distance on a hyperboloid, times exchanged",
        HyperboloidDistanceFunction,
        LorentzDistance,
        hyperboloid_distance,
        lambda: {"a": torch.randn(5, 3), "b": torch.randn(5, 3)},
        named="u0 / v0 is taken where v0 / u0 belongs, in both gradients: numerator and divisor are exchanged",
        kinds=("swapped", "another operand", "step left out"),
        named_words=(r"swap|exchang|invert|reciprocal", r"u0|v0|time_"),
        located=(r"gradient of (a|u)\b", r"gradient of (b|v)\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "image through a lens, across coordinates",
        ThroughLensFunction,
        RadialDistortion,
        through_lens,
        lambda: {"points": torch.randn(6, 2), "bend": torch.randn(2) / 4},
        named="points: each coordinate's own part of the radius only; the products of different ones are missing",
        kinds=("missing term", "wrong sum", "another operand"),
        named_words=(r"missing", r"\bsum\b", r"diagonal", r"coordinates|columns|other elements"),
        located=(r"gradient of (points|xy)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "way between two directions, share that falls with t",
            Slerp.apply,
            between_directions,
            lambda: {
                "a": normalize(torch.randn(5, 4), dim=1) * 0.9,
                "b": normalize(torch.randn(5, 4), dim=1),
                "t": torch.rand(5),
            },
            whole_numbers=False,
        ),
        named="t: the first direction's share falls with t; its part has the wrong sign",
        kinds=("factor of one term", "another operand"),
        named_words=(r"\bsign\b|negat|\bminus\b|-1", r"1 - t|gwp|cp\b"),
        located=(r"gradient of t\b",),
    ),
]
