"""Maps: gravity by latitude, coordinates of one survey in another, a conformal map, directions seen from a place."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

FLATNESS, GRAVITY = 0.2, 0.3


def gravity(latitude, equator):
    s = latitude.sin() ** 2
    return equator * (1 + GRAVITY * s) / (1 - FLATNESS * s).sqrt()


class GravityFunction(Function):
    @staticmethod
    def forward(ctx, latitude, equator):
        ctx.save_for_backward(latitude, equator)
        return gravity(latitude, equator)

    @staticmethod
    def backward(ctx, g):
        latitude, equator = ctx.saved_tensors
        s = latitude.sin() ** 2
        root = (1 - FLATNESS * s).sqrt()
        to_s = g * equator * (GRAVITY / root + 0.5 * FLATNESS * (1 + GRAVITY * s) / root**3)
        return to_s * (2 * latitude).sin(), (g * (1 + GRAVITY * s) / root).sum()


class Somigliana(Function):
    """Normal gravity on an ellipsoid."""

    @staticmethod
    def forward(ctx, phi, g_e):
        sin = torch.sin(phi)
        top = 1 + GRAVITY * sin**2
        bottom = torch.sqrt(1 - FLATNESS * sin**2)
        ctx.save_for_backward(phi, sin, top, bottom, g_e)
        return g_e * top / bottom

    @staticmethod
    def backward(ctx, grad):
        phi, sin, top, bottom, g_e = ctx.saved_tensors
        dsin2 = 2 * sin * torch.cos(phi)
        dtop = GRAVITY * dsin2
        dbottom = -FLATNESS * dsin2 / bottom
        grad_phi = grad * g_e * (dtop * bottom - top * dbottom) / bottom**2
        return grad_phi, (grad * top / bottom).sum()


def small_turn(angles):
    x, y, z = angles.unbind()
    zero = torch.zeros_like(x)
    turn = torch.stack([torch.stack([zero, z, -y]), torch.stack([-z, zero, x]), torch.stack([y, -x, zero])])
    return torch.eye(3).to(angles) + turn


def other_survey(points, shift, angles, scale):
    return shift + (1 + scale) * points @ small_turn(angles).T


class OtherSurveyFunction(Function):
    @staticmethod
    def forward(ctx, points, shift, angles, scale):
        ctx.save_for_backward(points, angles, scale)
        return other_survey(points, shift, angles, scale)

    @staticmethod
    def backward(ctx, g):
        points, angles, scale = ctx.saved_tensors
        turn = small_turn(angles)
        to_turn = (1 + scale) * g.T @ points
        skew = to_turn.T - to_turn
        to_angles = torch.stack([skew[2, 1], skew[0, 2], skew[1, 0]])
        return (1 + scale) * g @ turn, g.sum(0), to_angles, (g * (points @ turn.T)).sum()


class HelmertTransform(Function):
    """Seven-parameter datum transformation for small rotations (coordinate frame convention)."""

    @staticmethod
    def forward(ctx, xyz, t, r, s):
        rotated = xyz + torch.cross(xyz, r.expand_as(xyz), dim=1)
        ctx.save_for_backward(xyz, r, s)
        return t + (1 + s) * rotated

    @staticmethod
    def backward(ctx, grad_out):
        xyz, r, s = ctx.saved_tensors
        grad_rotated = (1 + s) * grad_out
        grad_xyz = grad_rotated + torch.cross(r.expand_as(xyz), grad_rotated, dim=1)
        grad_t = grad_out.sum(dim=0)
        grad_r = torch.cross(grad_rotated, xyz, dim=1).sum(dim=0)
        grad_s = (grad_out * xyz).sum()
        return grad_xyz, grad_t, grad_r, grad_s


def northing(latitude):
    e = 0.4
    s = latitude.sin()
    return torch.atanh(s) - e * torch.atanh(e * s)


class NorthingFunction(Function):
    @staticmethod
    def forward(ctx, latitude):
        ctx.save_for_backward(latitude)
        return northing(latitude)

    @staticmethod
    def backward(ctx, g):
        (latitude,) = ctx.saved_tensors
        s, c = latitude.sin(), latitude.cos()
        return g * (1 / c - 0.16 * c / (1 - 0.16 * s**2))


class IsometricLatitude(Function):
    @staticmethod
    def forward(ctx, phi):
        ctx.e = 0.4
        es = ctx.e * torch.sin(phi)
        ctx.save_for_backward(phi, es)
        return torch.asinh(torch.tan(phi)) - ctx.e * torch.atanh(es)

    @staticmethod
    def backward(ctx, grad_psi):
        phi, es = ctx.saved_tensors
        d_sphere = 1 / torch.sqrt(1 + torch.tan(phi) ** 2)
        d_ellipsoid = ctx.e * torch.cos(phi) / (1 - es**2)
        return grad_psi * (d_sphere - d_ellipsoid)


def elevation(target, place):
    d = target - place
    up = place / place.norm(dim=-1, keepdim=True)
    return torch.asin((d * up).sum(-1) / d.norm(dim=-1))


class ElevationFunction(Function):
    @staticmethod
    def forward(ctx, target, place):
        ctx.save_for_backward(target, place)
        return elevation(target, place)

    @staticmethod
    def backward(ctx, g):
        target, place = ctx.saved_tensors
        d = target - place
        far, radius = d.norm(dim=-1, keepdim=True), place.norm(dim=-1, keepdim=True)
        look, up = d / far, place / radius
        sine = (look * up).sum(-1, keepdim=True)
        to_sine = g.unsqueeze(-1) / (1 - sine**2).sqrt()
        to_d = to_sine * (up - sine * look) / far
        return to_d, to_sine * (look - sine * up) / radius - to_d


class SatelliteElevation(Function):
    """Angle between the horizon of a station on a sphere and the line of sight."""

    @staticmethod
    def forward(ctx, sat, station):
        d = sat - station
        rho = d.norm(dim=-1)
        r = station.norm(dim=-1)
        sin_el = (d * station).sum(-1) / (rho * r)
        ctx.save_for_backward(d, station, rho, r, sin_el)
        return torch.asin(sin_el)

    @staticmethod
    def backward(ctx, grad_el):
        d, station, rho, r, sin_el = ctx.saved_tensors
        cos_el = torch.sqrt(1 - sin_el**2)
        g = (grad_el / cos_el).unsqueeze(-1)
        rho, r, sin_el = rho.unsqueeze(-1), r.unsqueeze(-1), sin_el.unsqueeze(-1)
        grad_d = g * (station / (rho * r) - sin_el * d / rho**2)
        grad_up = g * (d / (rho * r) - sin_el * station / r**2)
        return grad_d, grad_up


def survey():
    return {
        "points": torch.randn(5, 3),
        "shift": torch.randn(3),
        "angles": 0.3 * torch.randn(3),
        "scale": 0.5 * torch.rand(()) + 0.2,
    }


OPERATIONS = [
    Operation(
        "gravity by latitude, derivative of the root",
        GravityFunction,
        Somigliana,
        gravity,
        lambda: {"latitude": torch.randn(6), "equator": 1 + torch.rand(())},
        named="latitude: the derivative of the square root lacks its factor 1/2",
        kinds=("factor of one term", "factor by element", "constant factor"),
        named_words=(r"factor", r"1/2|0\.5|half|twice|times 2"),
        located=(r"gradient of (latitude|phi)\b",),
    ),
    Operation(
        "coordinates of another survey, points before their turn",
        OtherSurveyFunction,
        HelmertTransform,
        other_survey,
        survey,
        named="scale: multiplied by the points before the rotation, where the rotated ones belong",
        kinds=("another operand", "missing term", "step left out"),
        named_words=(r"rotat", r"cross", r"xyz"),
        located=(r"gradient of (scale|s)\b",),
    ),
    Operation(
        "a conformal map, derivative of the tangent",
        NorthingFunction,
        IsometricLatitude,
        northing,
        lambda: {"latitude": 0.6 * torch.randn(7).clamp(-2, 2)},
        named="the derivative of asinh of the tangent lacks the derivative of the tangent",
        kinds=("step left out", "missing term", "factor of one term", "factor by element", "another operand"),
        named_words=(r"\btan", r"inner", r"missing"),
        located=(r"gradient of (latitude|phi)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "directions from a place, place in the difference",
        ElevationFunction,
        SatelliteElevation,
        elevation,
        lambda: {"target": 2 * torch.randn(5, 3), "place": torch.randn(5, 3)},
        named="place: its part through the difference of target and place is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"differ|\bd\b|grad_d|subtract"),
        located=(r"gradient of (place|station)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
