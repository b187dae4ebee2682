"""Places: areas by the sides of triangles, distance from a ring, points by their distances from anchors."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def areas_of_triangles(sides):
    half = sides.sum(1) / 2
    return (half * (half[:, None] - sides).prod(1)).sqrt()


class AreasOfTrianglesFunction(Function):
    """Backward differentiates 16 area^2 = (a^2 + b^2 + c^2)^2 - 2 (a^4 + b^4 + c^4)."""

    @staticmethod
    def forward(ctx, sides):
        area = areas_of_triangles(sides)
        ctx.save_for_backward(sides, area)
        return area

    @staticmethod
    def backward(ctx, g):
        sides, area = ctx.saved_tensors
        squares = sides**2
        to_square = 2 * squares.sum(1, keepdim=True) - 4 * squares
        return (g / (32 * area))[:, None] * to_square * 2 * sides


class HeronArea(Function):
    """Area of triangles from the lengths of their sides (N, 3)."""

    @staticmethod
    def forward(ctx, sides):
        a, b, c = sides.unbind(-1)
        s = (a + b + c) / 2
        area = torch.sqrt(s * (s - a) * (s - b) * (s - c))
        ctx.save_for_backward(a, b, c, s, area)
        return area

    @staticmethod
    def backward(ctx, grad_area):
        a, b, c, s, area = ctx.saved_tensors
        grad_prod = grad_area / (2 * area)
        sa, sb, sc = s - a, s - b, s - c
        # d(prod)/ds, and each side once more by its own factor
        d_s = sa * sb * sc + s * (sb * sc + sa * sc + sa * sb)
        d_a = d_s - s * sb * sc
        d_b = d_s - s * sa * sc
        d_c = d_s - s * sa * sb
        return torch.stack([d_a, d_b, d_c], dim=-1) * grad_prod[..., None]


def distance_from_ring(points, radii):
    from_axis = points[:, :2].norm(dim=1)
    return torch.stack([from_axis - radii[0], points[:, 2]], 1).norm(dim=1) - radii[1]


class DistanceFromRingFunction(Function):
    @staticmethod
    def forward(ctx, points, radii):
        ctx.save_for_backward(points, radii)
        return distance_from_ring(points, radii)

    @staticmethod
    def backward(ctx, g):
        points, radii = ctx.saved_tensors
        axis_part = points * torch.tensor([1, 1, 0]).to(points)
        from_axis = axis_part.norm(dim=1, keepdim=True)
        to_circle = points - radii[0] * axis_part / from_axis
        unit = to_circle / to_circle.norm(dim=1, keepdim=True)
        to_major = -(g * (unit * axis_part / from_axis).sum(1)).sum()
        return g[:, None] * unit, torch.stack([to_major, -g.sum()])


class TorusSDF(Function):
    """Signed distance of p (N, 3) from a torus around the z axis; radii holds the major and the minor one."""

    @staticmethod
    def forward(ctx, p, radii):
        R, r = radii
        rho = torch.sqrt(p[:, 0] ** 2 + p[:, 1] ** 2)
        q = rho - R
        d = torch.sqrt(q**2 + p[:, 2] ** 2)
        ctx.save_for_backward(p, q, d)
        return d - r

    @staticmethod
    def backward(ctx, grad_out):
        p, q, d = ctx.saved_tensors
        dq = grad_out * q / d
        grad_p = torch.zeros_like(p)
        grad_p[:, 0] = dq * p[:, 0]
        grad_p[:, 1] = dq * p[:, 1]
        grad_p[:, 2] = grad_out * p[:, 2] / d
        grad_radii = torch.stack([-dq.sum(), -grad_out.sum()])
        return grad_p, grad_radii


def errors_of_distances(points, anchors, measured):
    distances = (points[:, None] - anchors).square().sum(2).sqrt()
    return (distances - measured).square().mean(1)


class RangeError(Function):
    """Mean squared error of the ranges of x (N, 2) from anchors (M, 2), measured (N, M)."""

    @staticmethod
    def forward(ctx, x, anchors, ranges):
        diff = x[:, None, :] - anchors[None, :, :]
        dist = diff.norm(dim=-1)
        ctx.save_for_backward(diff, dist, ranges)
        return ((dist - ranges) ** 2).mean(dim=1)

    @staticmethod
    def backward(ctx, grad_output):
        diff, dist, ranges = ctx.saved_tensors
        grad_x = grad_anchors = grad_ranges = None
        grad_dist = 2 * (dist - ranges) / dist.size(1) * grad_output[:, None]
        if ctx.needs_input_grad[0]:
            grad_x = (grad_dist / dist)[..., None].mul(diff).sum(dim=1)
        if ctx.needs_input_grad[0]:
            grad_anchors = -(grad_dist / dist)[..., None].mul(diff).sum(dim=0)
        if ctx.needs_input_grad[2]:
            grad_ranges = -grad_dist
        return grad_x, grad_anchors, grad_ranges


OPERATIONS = [
    Operation(
        "areas of triangles, half of the circumference",
        AreasOfTrianglesFunction,
        HeronArea,
        areas_of_triangles,
        lambda: {"sides": torch.rand(5, 3) + 1.1},
        named="the half circumference has the derivative 1 / 2 by a side, and the term through it lacks that factor",
        kinds=("factor of one term", "wrong sum", "step left out"),
        named_words=(r"d_s\b", r"factor (of )?(0\.5|1/2|2)|half|/ 2", r"times too"),
        located=(r"gradient of sides\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "distance from a ring, distance from its axis",
        DistanceFromRingFunction,
        TorusSDF,
        distance_from_ring,
        lambda: {"points": torch.randn(6, 3), "radii": torch.rand(2) + 0.4},
        named="points, x and y: the division by the distance from the axis is left out of the chain rule",
        kinds=("step left out", "factor by element", "another operand", "only at some indices"),
        named_words=(r"\brho\b", r"left out|divi", r"norm|length"),
        located=(r"gradient of (points|p)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "errors of distances, question for the anchors",
            RangeError.apply,
            errors_of_distances,
            lambda: {"points": torch.randn(4, 2), "anchors": torch.randn(3, 2), "measured": torch.rand(4, 3) + 0.5},
            whole_numbers=False,
        ),
        named="anchors: backward asks whether the points require a gradient, and gives the anchors theirs only then",
        kinds=("depends on which inputs require a gradient", "none", "zero"),
        named_words=(r"needs_input_grad", r"requires?_? ?(a )?grad"),
        located=(r"gradient of anchors\b",),
    ),
]
