"""Points: distance from a segment, and values spread by inverse distances."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

SOFT = 0.1


def distance_from_segment(p, a, b):
    along = b - a
    t = ((p - a) * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True)
    return (p - a - t.clamp(0, 1) * along).norm(dim=-1)


class DistanceFromSegmentFunction(Function):
    @staticmethod
    def forward(ctx, p, a, b):
        along = b - a
        t = ((p - a) * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True)
        t = t.clamp(0, 1)
        offset = p - a - t * along
        distance = offset.norm(dim=-1, keepdim=True)
        ctx.save_for_backward(t, offset / distance)
        return distance[..., 0]

    @staticmethod
    def backward(ctx, g):
        t, normal = ctx.saved_tensors
        g = g[..., None] * normal
        return g, (t - 1) * g, -t * g


def dot(u, v):
    return (u * v).sum(dim=-1, keepdim=True)


class PointSegmentDistance(Function):
    """Distance from p to the segment ab. t is the place of the foot: 0 at a, 1 at b."""

    @staticmethod
    def forward(ctx, p, a, b):
        ab, ap = b - a, p - a
        t = dot(ap, ab) / dot(ab, ab)
        foot = a + torch.clamp(t, 0.0, 1.0) * ab
        diff = p - foot
        dist = diff.norm(dim=-1)
        ctx.save_for_backward(diff, dist, t)
        return dist

    @staticmethod
    def backward(ctx, grad_dist):
        diff, dist, t = ctx.saved_tensors
        grad_p = (grad_dist / dist).unsqueeze(-1) * diff
        grad_foot = -grad_p
        return grad_p, (1 - t) * grad_foot, t * grad_foot


def spread_by_inverse_distance(places, known, values):
    weights = 1 / ((places[:, None] - known[None]).square().sum(-1) + SOFT)
    return weights @ values / weights.sum(1, keepdim=True)


class SpreadByInverseDistanceFunction(Function):
    @staticmethod
    def forward(ctx, places, known, values):
        weights = 1 / ((places[:, None] - known[None]).square().sum(-1) + SOFT)
        total = weights.sum(1, keepdim=True)
        y = weights @ values / total
        ctx.save_for_backward(places, known, values, weights, total, y)
        return y

    @staticmethod
    def backward(ctx, g):
        places, known, values, weights, total, y = ctx.saved_tensors
        to_weights = (g @ values.mT - (g * y).sum(1, keepdim=True)) / total
        to_squares = -to_weights * weights.square()
        to_places = 2 * (to_squares.sum(1, keepdim=True) * places - to_squares @ known)
        to_known = 2 * (to_squares.sum(0)[:, None] * known - to_squares.mT @ places)
        return to_places, to_known, (weights / total).mT @ g


class InverseDistanceInterpolate(Function):
    """Feature propagation of PointNet++ with all known points: w_ij = 1 / (d_ij^2 + eps), normalised over j."""

    @staticmethod
    def forward(ctx, query, known, feats):
        delta = query.unsqueeze(1) - known.unsqueeze(0)
        w = 1.0 / (delta.pow(2).sum(dim=2) + SOFT)
        w_norm = w / w.sum(dim=1, keepdim=True)
        ctx.save_for_backward(delta, w, w_norm, feats)
        return torch.mm(w_norm, feats)

    @staticmethod
    def backward(ctx, grad_out):
        delta, w, w_norm, feats = ctx.saved_tensors
        grad_query = grad_known = grad_feats = None
        if ctx.needs_input_grad[2]:
            grad_feats = torch.mm(w_norm.t(), grad_out)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            grad_w = torch.mm(grad_out, feats.t()) / w.sum(dim=1, keepdim=True)
            # d(1 / (d^2 + eps)) = -w^2 * 2 * delta
            pull = -2 * (grad_w * w * w).unsqueeze(2) * delta
            grad_query = pull.sum(dim=1)
            grad_known = -pull.sum(dim=0)
        return grad_query, grad_known, grad_feats


OPERATIONS = [
    Operation(
        "distance from a segment, place not clamped",
        DistanceFromSegmentFunction,
        PointSegmentDistance,
        distance_from_segment,
        lambda: {"p": 2 * torch.randn(12, 2), "a": torch.randn(12, 2), "b": torch.randn(12, 2)},
        named="forward saves the place of the foot before the clamp, so the ends get wrong shares beyond the segment",
        kinds=("another operand", "only at some indices", "only for some values", "step left out"),
        named_words=(r"clamp|clip", r"foot|beyond|outside"),
        located=(r"gradients? of (a|b)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "values spread by inverse distances, sum of the weights kept fixed",
        SpreadByInverseDistanceFunction,
        InverseDistanceInterpolate,
        spread_by_inverse_distance,
        lambda: {"places": torch.randn(5, 3), "known": torch.randn(4, 3), "values": torch.randn(4, 2)},
        named="the sum of the weights depends on the places too: the product with the output is not subtracted",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"normali|w_norm|w\.sum", r"constant"),
        located=(r"gradients? of (places|query|known)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
