"""Surfaces: colours inside of a triangle, outlines that are smooth, features of places in tables of many sizes."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

SIZES = (3, 5)
ROWS = 4


def twice_area(a, b, c):
    return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])


def coloured_points(corners, points, colours):
    a, b, c = corners.unbind(1)
    areas = torch.stack([twice_area(b, c, points), twice_area(c, a, points), twice_area(a, b, points)], 1)
    return ((areas / twice_area(a, b, c)[:, None])[:, :, None] * colours).sum(1)


class ColouredPointsFunction(Function):
    @staticmethod
    def forward(ctx, corners, points, colours):
        ctx.save_for_backward(corners, points, colours)
        return coloured_points(corners, points, colours)

    @staticmethod
    def backward(ctx, g):
        corners, points, colours = ctx.saved_tensors
        edges = corners.roll(-1, 1) - corners
        across = torch.stack([-edges[..., 1], edges[..., 0]], -1).roll(-1, 1)  # gradient of each part over the point
        total = twice_area(*corners.unbind(1))[:, None]
        parts = (across * (points[:, None] - corners.roll(-1, 1))).sum(-1)
        shares = parts / total
        to_shares = (g[:, None] * colours).sum(-1)
        grad_point = (to_shares[..., None] * across).sum(1) / total
        # a corner moves the point's place in the triangle the other way, as much as it has a share in it
        return -shares[..., None] * grad_point[:, None], grad_point, shares[..., None] * g[:, None]


def _signed_area_grad(a, b, c):
    """Gradients of the (doubled) signed area of the triangle a, b, c with respect to its corners."""
    da = torch.stack([b[:, 1] - c[:, 1], c[:, 0] - b[:, 0]], dim=1)
    db = torch.stack([c[:, 1] - a[:, 1], c[:, 0] - a[:, 0]], dim=1)
    dc = torch.stack([a[:, 1] - b[:, 1], b[:, 0] - a[:, 0]], dim=1)
    return da, db, dc


class BarycentricInterpolation(Function):
    @staticmethod
    def forward(ctx, tri, p, attr):
        v0, v1, v2 = tri[:, 0], tri[:, 1], tri[:, 2]
        area = twice_area(v0, v1, v2)
        w0 = twice_area(v1, v2, p) / area
        w1 = twice_area(v2, v0, p) / area
        w2 = twice_area(v0, v1, p) / area
        w = torch.stack([w0, w1, w2], dim=1)
        ctx.save_for_backward(tri, p, attr, w, area)
        return torch.einsum("nk,nkc->nc", w, attr)

    @staticmethod
    def backward(ctx, grad_out):
        tri, p, attr, w, area = ctx.saved_tensors
        v0, v1, v2 = tri[:, 0], tri[:, 1], tri[:, 2]
        grad_attr = w.unsqueeze(2) * grad_out.unsqueeze(1)
        grad_w = torch.einsum("nc,nkc->nk", grad_out, attr) / area.unsqueeze(1)
        grad_area = -(grad_w * w).sum(dim=1)
        grad_tri, grad_p = torch.zeros_like(tri), torch.zeros_like(p)
        for k, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
            di, dj, dp = _signed_area_grad(tri[:, i], tri[:, j], p)
            scale = grad_w[:, k].unsqueeze(1)
            grad_tri[:, i] += scale * di
            grad_tri[:, j] += scale * dj
            grad_p += scale * dp
        for k, d in enumerate(_signed_area_grad(v0, v1, v2)):
            grad_tri[:, k] += grad_area.unsqueeze(1) * d
        return grad_tri, grad_p, grad_attr


def outline(distance, sigma):
    inside = torch.sigmoid(distance * distance.abs() / sigma)
    return 1 - (1 - inside).prod(1)


class OutlineFunction(Function):
    @staticmethod
    def forward(ctx, distance, sigma):
        ctx.save_for_backward(distance, sigma)
        return outline(distance, sigma)

    @staticmethod
    def backward(ctx, g):
        distance, sigma = ctx.saved_tensors
        inside = torch.sigmoid(distance * distance.abs() / sigma)
        to_z = g[:, None] * (1 - inside).prod(1, keepdim=True) * inside
        return to_z * 2 * distance.abs() / sigma, -(to_z * distance * distance.abs()).sum() / sigma**2


class SoftSilhouette(Function):
    """Probability that a pixel is covered by at least one triangle, from signed distances (soft rasterizer)."""

    @staticmethod
    def forward(ctx, dist, sigma):
        z = torch.sign(dist) * dist.square() / sigma
        prob = torch.sigmoid(z)
        empty = torch.prod(1 - prob, dim=1)
        ctx.save_for_backward(dist, sigma, z, prob, empty)
        return 1 - empty

    @staticmethod
    def backward(ctx, grad_alpha):
        dist, sigma, z, prob, empty = ctx.saved_tensors
        # d alpha / d prob_k is empty / (1 - prob_k), times prob_k (1 - prob_k) for the sigmoid
        grad_z = (grad_alpha * empty).unsqueeze(1) * prob
        grad_dist = grad_z * 2 * dist / sigma
        grad_sigma = -(grad_z * z / sigma).sum()
        return grad_dist, grad_sigma


def table_features(position, tables):
    features = []
    for size, table in zip(SIZES, tables, strict=True):
        scaled = position * size
        cell = scaled.floor()
        share = (scaled - cell)[:, None]
        first, second = (cell.long() * 7) % ROWS, ((cell.long() + 1) * 7) % ROWS
        features.append((1 - share) * table[first] + share * table[second])
    return torch.cat(features, 1)


class TableFeaturesFunction(Function):
    @staticmethod
    def forward(ctx, position, tables):
        ctx.save_for_backward(position, tables)
        return table_features(position, tables)

    @staticmethod
    def backward(ctx, g):
        position, tables = ctx.saved_tensors
        grad_position, grad_tables = torch.zeros_like(position), []
        for size, table, part in zip(SIZES, tables, g.chunk(len(SIZES), 1), strict=True):
            scaled = position * size
            cell = scaled.floor().long()
            share = (scaled - cell)[:, None]
            first, second = cell * 7 % ROWS, (cell + 1) * 7 % ROWS
            grad_table = torch.zeros_like(table).index_add(0, first, (1 - share) * part)
            grad_tables.append(grad_table.index_add(0, second, share * part))
            grad_position = grad_position + size * (part * (table[second] - table[first])).sum(1)
        return grad_position, torch.stack(grad_tables)


def hash_cell(cell):
    return cell.mul(7).remainder(ROWS)


class HashGridEncoding(Function):
    """Multiresolution hash encoding (Mueller et al. 2022) in one dimension."""

    @staticmethod
    def forward(ctx, x, tables):
        out, kept = [], []
        for level, res in enumerate(SIZES):
            pos = x * res
            lo = torch.floor(pos)
            w = (pos - lo).unsqueeze(-1)
            i0, i1 = hash_cell(lo.long()), hash_cell(lo.long() + 1)
            out.append(torch.lerp(tables[level, i0], tables[level, i1], w))
            kept += [i0, i1, w]
        ctx.save_for_backward(tables, *kept)
        return torch.cat(out, dim=-1)

    @staticmethod
    def backward(ctx, grad_feat):
        tables, *kept = ctx.saved_tensors
        width = tables.size(-1)
        grad_tables = torch.zeros_like(tables)
        grad_x = grad_feat.new_zeros(grad_feat.size(0))
        for level in range(len(SIZES)):
            i0, i1, w = kept[3 * level : 3 * level + 3]
            g = grad_feat[:, level * width : (level + 1) * width]
            grad_tables[level].index_add_(0, i0, (1 - w) * g)
            grad_tables[level].index_add_(0, i1, w * g)
            grad_x = grad_x + (g * (tables[level, i1] - tables[level, i0])).sum(dim=-1)
        return grad_x, grad_tables


def triangles():
    corners = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]) + 0.5 * torch.rand(5, 3, 2)
    return {"corners": corners, "points": torch.rand(5, 2), "colours": torch.rand(5, 3, 3)}


OPERATIONS = [
    Operation(
        "colours inside of a triangle, sign of a component",
        ColouredPointsFunction,
        BarycentricInterpolation,
        coloured_points,
        triangles,
        named="corners: a component of the area's gradient over its second corner has the wrong sign",
        kinds=("another operand", "factor of one term", "only at some indices", "factor by element", "missing term"),
        named_words=(r"\bdb\b|_signed_area_grad", r"sign|c\[:, 0\]|a\[:, 0\]"),
        located=(r"gradient of (corners|tri)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "smooth outline, distances outside",
        OutlineFunction,
        SoftSilhouette,
        outline,
        lambda: {"distance": torch.randn(5, 4), "sigma": 0.5 + torch.rand(())},
        named="distance: the derivative of sign(d) d^2 is 2 |d|; it is 2 d, so its sign is wrong outside",
        kinds=("only for some values", "another operand", "factor by element", "step left out"),
        named_words=(r"\babs\b|\|d", r"sign", r"< 0|negative"),
        located=(r"gradient of dist",),
        options={"whole_numbers": False},
    ),
    Operation(
        "features from tables, size of the grid",
        TableFeaturesFunction,
        HashGridEncoding,
        table_features,
        lambda: {"position": torch.rand(6), "tables": torch.randn(2, ROWS, 2)},
        named="position: it is multiplied by the size of each grid, and that factor is missing",
        kinds=("factor of one term", "step left out", "missing term", "another operand", "factor by element"),
        named_words=(r"\bres\b|SIZES|\bsize\b", r"\b3\b.*\b5\b", r"scale"),
        located=(r"gradient of (position|x)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
