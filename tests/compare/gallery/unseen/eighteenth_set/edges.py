"""Edges of a graph: scores of both ends, places that move with the distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

SOURCE = torch.tensor([0, 1, 2, 3, 0, 2, 4, 1])
TARGET = torch.tensor([1, 2, 0, 2, 3, 4, 3, 0])
NODES = 5
SLOPE = 0.2


def shares_of_edges(scores):
    weights = scores.exp()
    return weights / weights.new_zeros(NODES).index_add(0, TARGET, weights)[TARGET]


def scored_edges(left, right, a):
    shares = shares_of_edges(F.leaky_relu(left[SOURCE] + right[TARGET], SLOPE) @ a)
    return torch.zeros_like(left).index_add(0, TARGET, shares[:, None] * left[SOURCE])


class ScoredEdgesFunction(Function):
    @staticmethod
    def forward(ctx, left, right, a):
        total = left[SOURCE] + right[TARGET]
        shares = shares_of_edges(F.leaky_relu(total, SLOPE) @ a)
        ctx.save_for_backward(left, total, shares, a)
        return torch.zeros_like(left).index_add(0, TARGET, shares[:, None] * left[SOURCE])

    @staticmethod
    def backward(ctx, g):
        left, total, shares, a = ctx.saved_tensors
        to_edge = g[TARGET]
        d = shares * (to_edge * left[SOURCE]).sum(1)
        d = d - shares * d.new_zeros(NODES).index_add(0, TARGET, d)[TARGET]
        to_total = torch.where(total > 0, d[:, None] * a, SLOPE * d[:, None] * a)
        to_left = torch.zeros_like(left).index_add(0, SOURCE, to_total + shares[:, None] * to_edge)
        to_right = torch.zeros_like(left).index_add(0, TARGET, to_total)
        return to_left, to_right, (d[:, None] * F.leaky_relu(total, SLOPE)).sum(0)


def segment_sum(values, index):
    return values.new_zeros(NODES, *values.shape[1:]).index_add_(0, index, values)


class GATv2(Function):
    """Scores a^T leaky_relu(l_source + r_target), softmax over the edges that arrive at a node."""

    @staticmethod
    def forward(ctx, x_l, x_r, att):
        e = x_l[SOURCE] + x_r[TARGET]
        score = F.leaky_relu(e, SLOPE) @ att
        num = torch.exp(score)
        alpha = num / segment_sum(num, TARGET)[TARGET]
        ctx.save_for_backward(x_l, att, e, alpha)
        return segment_sum(alpha.unsqueeze(1) * x_l[SOURCE], TARGET)

    @staticmethod
    def backward(ctx, grad_out):
        x_l, att, e, alpha = ctx.saved_tensors
        grad_msg = grad_out[TARGET]
        grad_alpha = (grad_msg * x_l[SOURCE]).sum(1)
        inner = segment_sum(alpha * grad_alpha, SOURCE)[SOURCE]
        grad_score = alpha * (grad_alpha - inner)
        grad_att = F.leaky_relu(e, SLOPE).t() @ grad_score
        grad_e = grad_score.unsqueeze(1) * att
        grad_e = torch.where(e > 0, grad_e, SLOPE * grad_e)
        grad_l = segment_sum(grad_e + alpha.unsqueeze(1) * grad_msg, SOURCE)
        return grad_l, segment_sum(grad_e, TARGET), grad_att


def moved_places(x, w):
    difference = x[TARGET] - x[SOURCE]
    push = torch.tanh(w * difference.square().sum(1, keepdim=True)) * difference
    return x.index_add(0, TARGET, push)


class MovedPlacesFunction(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return moved_places(x, w)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        difference = x[TARGET] - x[SOURCE]
        square = difference.square().sum(1, keepdim=True)
        size = torch.tanh(w * square)
        to_push = g[TARGET]
        d = (to_push * difference).sum(1, keepdim=True) * (1 - size.square())
        to_difference = to_push * size + 2 * d * w * difference
        return g.index_add(0, TARGET, to_difference).index_add(0, SOURCE, -to_difference), (d * square).sum()


class EGNNCoordinates(Function):
    """x_i + sum over neighbours of (x_i - x_j) * tanh(w * |x_i - x_j|^2)"""

    @staticmethod
    def forward(ctx, coord, w):
        rel = coord[TARGET] - coord[SOURCE]
        dist2 = (rel**2).sum(dim=1, keepdim=True)
        phi = torch.tanh(w * dist2)
        ctx.save_for_backward(rel, dist2, phi, w)
        return coord + segment_sum(phi * rel, TARGET)

    @staticmethod
    def backward(ctx, grad):
        rel, dist2, phi, w = ctx.saved_tensors
        g_edge = grad[TARGET]
        g_phi = (g_edge * rel).sum(dim=1, keepdim=True)
        g_dist2 = g_phi * (1 - phi**2) * w
        grad_w = (g_phi * (1 - phi**2) * dist2).sum()
        g_rel = g_edge * phi
        grad_coord = grad + segment_sum(g_rel + 2 * g_dist2 * rel, TARGET) - segment_sum(g_rel, SOURCE)
        return grad_coord, grad_w


OPERATIONS = [
    Operation(
        "scores of both ends, softmax over the leaving edges",
        ScoredEdgesFunction,
        GATv2,
        scored_edges,
        lambda: {"left": torch.randn(5, 3) / 2, "right": torch.randn(5, 3) / 2, "a": torch.randn(3)},
        named="the softmax is over the edges that arrive at a node; its derivative sums over those that leave one",
        kinds=("another operand", "wrong sum"),
        named_words=(r"TARGET", r"\bSOURCE\)", r"sum"),
        located=(r"gradients? of .*\b(left|right|a|x_l|x_r|att)\b",),
        options={"kinks": True},
    ),
    Operation(
        "places that move with distances, the other end",
        MovedPlacesFunction,
        EGNNCoordinates,
        moved_places,
        lambda: {"x": torch.randn(5, 3) / 2, "w": 0.5 + torch.rand(())},
        named="the part through the distance goes to the target alone, not to the source",
        kinds=("missing term", "only at some indices"),
        named_words=(r"missing", r"\bSOURCE\)", r"dist2|square"),
        located=(r"gradient of (x|coord)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
