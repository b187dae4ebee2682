"""Shapes: boxes by their centres, distances from a box, rays that meet a sphere, reflections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def corners(boxes):
    centre, size = boxes.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


class CornersFunction(Function):
    @staticmethod
    def forward(ctx, boxes):
        return corners(boxes)

    @staticmethod
    def backward(ctx, g):
        low, high = g.split(2, -1)
        return torch.cat([low + high, (high - low) / 2], -1)


class CxcywhToXyxy(Function):
    @staticmethod
    def forward(ctx, boxes):
        half = boxes[..., 2:] * 0.5
        out = boxes[..., :2].repeat(*[1] * (boxes.dim() - 1), 2)
        out[..., :2] -= half
        out[..., 2:] += half
        return out

    @staticmethod
    def backward(ctx, grad_out):
        grad_center = grad_out[..., :2]
        grad_center += grad_out[..., 2:]
        grad_size = (grad_out[..., 2:] - grad_out[..., :2]) * 0.5
        return torch.cat((grad_center, grad_size), dim=-1)


def distance_from_box(points, half):
    q = points.abs() - half
    return q.clamp(min=0).square().sum(-1).add(1e-4).sqrt() + q.max(-1).values.clamp(max=0)


class DistanceFromBoxFunction(Function):
    @staticmethod
    def forward(ctx, points, half):
        ctx.save_for_backward(points, half)
        return distance_from_box(points, half)

    @staticmethod
    def backward(ctx, g):
        points, half = ctx.saved_tensors
        q = points.abs() - half
        outside = q.clamp(min=0)
        largest, axis = q.max(-1, keepdim=True)
        grad = outside / outside.square().sum(-1, keepdim=True).add(1e-4).sqrt()
        grad = g[:, None] * (grad + F.one_hot(axis.squeeze(-1), 3) * (largest < 0))
        return grad * points.sign(), -grad.sum(0)


class BoxSDF(Function):
    """Signed distance of points (N, 3) from a box about the origin with half extents (3,)."""

    @staticmethod
    def forward(ctx, p, half_extents):
        q = p.abs() - half_extents
        outer = q.clamp_min(0)
        dist = (outer.pow(2).sum(dim=-1) + 1e-4).sqrt()
        ctx.save_for_backward(p, q, outer, dist)
        return dist + q.amax(dim=-1).clamp_max(0)

    @staticmethod
    def backward(ctx, grad_output):
        p, q, outer, dist = ctx.saved_tensors
        interior = (q < 0).all(dim=-1, keepdim=True)
        normal = torch.where(interior, torch.ones_like(q), outer / dist.unsqueeze(-1))
        grad_q = grad_output.unsqueeze(-1) * normal
        return grad_q * torch.sign(p), -grad_q.sum(dim=0)


def depth_of_sphere(origin, direction, radius):
    b = (origin * direction).sum(-1)
    c = (origin * origin).sum(-1) - radius * radius
    return -b - (b * b - c).sqrt()


class DepthOfSphereFunction(Function):
    @staticmethod
    def forward(ctx, origin, direction, radius):
        ctx.save_for_backward(origin, direction, radius)
        return depth_of_sphere(origin, direction, radius)

    @staticmethod
    def backward(ctx, g):
        origin, direction, radius = ctx.saved_tensors
        b = (origin * direction).sum(-1)
        root = (b * b - (origin * origin).sum(-1) + radius * radius).sqrt()
        to_b, to_c = -g * (1 + b / root), g / (2 * root)
        grad_origin = to_b[:, None] * direction + 2 * to_c[:, None] * origin
        return grad_origin, to_b[:, None] * origin, (-2 * to_c * radius).sum()


class RaySphere(Function):
    """Depth of the first hit of rays (N, 3), (N, 3) with a sphere about the origin; every ray hits."""

    @staticmethod
    def forward(ctx, o, d, r):
        od = torch.einsum("nk,nk->n", o, d)
        disc = od.square() - torch.einsum("nk,nk->n", o, o) + r.square()
        root = torch.sqrt(disc)
        ctx.save_for_backward(o, d, r, root)
        return -od - root

    @staticmethod
    def backward(ctx, grad_t):
        o, d, r, root = ctx.saved_tensors
        g_disc = -grad_t / (2 * root)
        g_od = -grad_t
        grad_o = g_od[:, None] * d - 2 * g_disc[:, None] * o
        grad_d = g_od[:, None] * o
        grad_r = (2 * g_disc * r).sum()
        return grad_o, grad_d, grad_r


def reflection(x, v):
    return x - 2 * (x @ v)[:, None] * v / (v @ v)


class ReflectionFunction(Function):
    @staticmethod
    def forward(ctx, x, v):
        ctx.save_for_backward(x, v)
        return reflection(x, v)

    @staticmethod
    def backward(ctx, g):
        x, v = ctx.saved_tensors
        square, xv, gv = v @ v, x @ v, g @ v
        grad_v = -2 / square * (xv @ g + gv @ x - 2 * (xv @ gv) / square * v)
        return g - 2 * gv[:, None] * v / square, grad_v


class HouseholderReflect(Function):
    """x (I - 2 v v^T / (v^T v)) for rows x; v need not have unit length."""

    @staticmethod
    def forward(ctx, x, v):
        beta = 2.0 / torch.dot(v, v)
        xv = torch.mv(x, v)
        ctx.save_for_backward(x, v, xv, beta)
        return x - beta * torch.outer(xv, v)

    @staticmethod
    def backward(ctx, grad_y):
        x, v, xv, beta = ctx.saved_tensors
        gv = torch.mv(grad_y, v)
        grad_x = grad_y - beta * torch.outer(gv, v)
        grad_v = -beta * (torch.mv(grad_y.t(), xv) + torch.mv(x.t(), gv))
        return grad_x, grad_v


def rays():
    direction = F.normalize(torch.tensor([0.0, 0.0, 1.0]) + 0.1 * torch.randn(4, 3), dim=-1)
    origin = torch.tensor([0.0, 0.0, -3.0]) + 0.3 * torch.randn(4, 3)
    return {"origin": origin, "direction": direction, "radius": 2 + 0.2 * torch.rand(())}


OPERATIONS = [
    Operation(
        "corners of boxes, gradient changed in place",
        CornersFunction,
        CxcywhToXyxy,
        corners,
        lambda: {"boxes": torch.rand(3, 4)},
        named="the incoming gradient is added to in place, and the size's gradient is made of the sum",
        kinds=("changes the incoming gradient", "another operand"),
        named_words=(r"in.place|changes the incoming|modif|overwrit", r"grad_center"),
        located=(r"boxes|grad_out|incoming gradient",),
    ),
    Operation(
        "distance from a box, axes of inner points",
        DistanceFromBoxFunction,
        BoxSDF,
        distance_from_box,
        lambda: {"points": 0.8 * torch.randn(8, 3), "half": 0.8 + 0.4 * torch.rand(3)},
        named="inside, all three coordinates get the gradient that belongs to the one of the nearest face",
        kinds=("only for some values", "step left out", "another operand"),
        named_words=(r"\bamax\b|\bmax", r"ones_like|interior", r"largest"),
        located=(r"gradient of (points|p)\b",),
        options={"whole_numbers": False, "kinks": True},
    ),
    Operation(
        "rays that meet a sphere, root of the product",
        DepthOfSphereFunction,
        RaySphere,
        depth_of_sphere,
        rays,
        named="the product of origin and direction gets no gradient through the square root",
        kinds=("missing term",),
        named_words=(r"\bg_od\b|\bod\b", r"missing term|term .*missing|part .*missing", r"\bdisc\b"),
        located=(r"gradient of (direction|d)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "reflection, length of its vector",
            HouseholderReflect.apply,
            reflection,
            lambda: {"x": torch.randn(4, 3), "v": torch.randn(3)},
            whole_numbers=False,
        ),
        named="the derivative of the squared length below the line is left out",
        kinds=("missing term",),
        named_words=(r"\bbeta\b", r"missing term|term .*missing|part .*missing", r"as if it were a constant"),
        located=(r"gradient of v\b",),
    ),
]
RIGHT += [
    Case(
        "reflection",
        ReflectionFunction.apply,
        reflection,
        lambda: {"x": torch.randn(4, 3), "v": torch.randn(3)},
        whole_numbers=False,
    ),
]
