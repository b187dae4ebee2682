"""Weights between nodes and positions: normalized adjacency, attention of neighbours, gates, turned channels."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

LINKS = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]).bool()
SLOPE, KEPT = 0.2, 2


def convolved_graph(x, adjacency, weight):
    links = adjacency + torch.eye(len(adjacency), dtype=adjacency.dtype)
    scale = links.sum(1).rsqrt()
    return scale[:, None] * links * scale @ x @ weight


class ConvolvedGraphFunction(Function):
    @staticmethod
    def forward(ctx, x, adjacency, weight):
        ctx.save_for_backward(x, adjacency, weight)
        return convolved_graph(x, adjacency, weight)

    @staticmethod
    def backward(ctx, g):
        x, adjacency, weight = ctx.saved_tensors
        links = adjacency + torch.eye(len(adjacency), dtype=adjacency.dtype)
        scale = links.sum(1).rsqrt()
        normalized = scale[:, None] * links * scale
        to_normalized = g @ (x @ weight).T
        share = to_normalized * links
        to_scale = (share * scale).sum(1) + (share * scale[:, None]).sum(0)
        to_links = to_normalized * scale[:, None] * scale - (to_scale * scale**3 / 2)[:, None]
        return normalized.T @ g @ weight.T, to_links, (normalized @ x).T @ g


class GCNConv(Function):
    @staticmethod
    def forward(ctx, x, adj, weight):
        a_hat = adj + torch.eye(adj.size(0), dtype=adj.dtype)
        deg_inv_sqrt = a_hat.sum(dim=1).pow(-0.5)
        norm = deg_inv_sqrt.unsqueeze(1) * a_hat * deg_inv_sqrt.unsqueeze(0)
        support = x @ weight
        ctx.save_for_backward(x, weight, support, norm, deg_inv_sqrt)
        return norm @ support

    @staticmethod
    def backward(ctx, grad_out):
        x, weight, support, norm, dis = ctx.saved_tensors
        grad_support = norm.t() @ grad_out
        grad_norm = grad_out @ support.t()
        grad_adj = grad_norm * dis.unsqueeze(1) * dis.unsqueeze(0)
        grad_deg = -0.5 * dis.square() * (grad_norm * norm).sum(dim=1)
        grad_adj = grad_adj + grad_deg.unsqueeze(1)
        return grad_support @ weight.t(), grad_adj, x.t() @ grad_support


def neighbours(h, left, right):
    scores = (h @ left)[:, None] + (h @ right)[None]
    scores = torch.where(scores > 0, scores, SLOPE * scores)
    return scores.masked_fill(~LINKS, -torch.inf).softmax(1) @ h


class NeighboursFunction(Function):
    @staticmethod
    def forward(ctx, h, left, right):
        ctx.save_for_backward(h, left, right)
        return neighbours(h, left, right)

    @staticmethod
    def backward(ctx, g):
        h, left, right = ctx.saved_tensors
        scores = (h @ left)[:, None] + (h @ right)[None]
        bent = torch.where(scores > 0, scores, SLOPE * scores)
        weights = bent.masked_fill(~LINKS, -torch.inf).softmax(1)
        to_weights = g @ h.T
        to_scores = weights * (to_weights - (weights * to_weights).sum(1, keepdim=True))
        to_scores = torch.where(scores > 0, to_scores, SLOPE * to_scores)
        rows, columns = to_scores.sum(1), to_scores.sum(0)
        grad_h = weights.T @ g + torch.outer(rows, left) + torch.outer(columns, right)
        return grad_h, h.T @ rows, h.T @ columns


class GraphAttention(Function):
    @staticmethod
    def forward(ctx, h, a_src, a_dst):
        e = (h @ a_src).unsqueeze(1) + (h @ a_dst).unsqueeze(0)
        e = torch.where(e > 0, e, SLOPE * e)
        e = e.masked_fill(~LINKS, float("-inf"))
        alpha = torch.softmax(e, dim=1)
        ctx.save_for_backward(h, a_src, a_dst, alpha)
        return alpha @ h

    @staticmethod
    def backward(ctx, grad_out):
        h, a_src, a_dst, alpha = ctx.saved_tensors
        grad_alpha = grad_out @ h.t()
        grad_e = alpha * (grad_alpha - (grad_alpha * alpha).sum(dim=1, keepdim=True))
        grad_e = torch.where(alpha > 0, grad_e, SLOPE * grad_e)
        grad_src, grad_dst = grad_e.sum(dim=1), grad_e.sum(dim=0)
        grad_h = alpha.t() @ grad_out
        grad_h += grad_src.unsqueeze(1) * a_src + grad_dst.unsqueeze(1) * a_dst
        return grad_h, grad_src @ h, grad_dst @ h


def gates(logits):
    values, places = logits.topk(KEPT, 1)
    return torch.zeros_like(logits).scatter(1, places, values.softmax(1))


class TopKGate(Function):
    @staticmethod
    def forward(ctx, logits):
        probs = torch.softmax(logits, dim=-1)
        top, idx = probs.topk(KEPT, dim=-1)
        ctx.save_for_backward(top, idx)
        ctx.shape = logits.shape
        out = torch.zeros_like(logits)
        return out.scatter_(-1, idx, top / top.sum(dim=-1, keepdim=True))

    @staticmethod
    def backward(ctx, grad_gates):
        top, idx = ctx.saved_tensors
        grad_top = grad_gates.gather(-1, idx)
        grad_top = top * (grad_top - (grad_top * top).sum(dim=-1, keepdim=True))
        return grad_gates.new_zeros(ctx.shape).scatter_(-1, idx, grad_top)


def turned_channels(x):
    angles = torch.outer(torch.arange(len(x), dtype=x.dtype), x.new_tensor([1.0, 0.25]))
    a, b, rest = x[:, :2], x[:, 2:4], x[:, 4:]
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos(), rest], 1)


class PartialRotary(Function):
    @staticmethod
    def forward(ctx, x):
        pos = torch.arange(x.shape[0], dtype=x.dtype).unsqueeze(1)
        freq = 0.25 ** torch.arange(2, dtype=x.dtype)
        cos, sin = torch.cos(pos * freq), torch.sin(pos * freq)
        ctx.save_for_backward(cos, sin)
        x1, x2 = x[:, 0:2], x[:, 2:4]
        return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, x[:, 4:]), dim=1)

    @staticmethod
    def backward(ctx, grad_output):
        cos, sin = ctx.saved_tensors
        grad_x = grad_output.clone()
        g1, g2 = grad_output[:, 0:4:2], grad_output[:, 1:4:2]
        grad_x[:, 0:4:2] = g1 * cos + g2 * sin
        grad_x[:, 1:4:2] = g2 * cos - g1 * sin
        return grad_x


OPERATIONS = [
    Operation(
        "convolution of a graph, degree of the column",
        ConvolvedGraphFunction,
        GCNConv,
        convolved_graph,
        lambda: {"x": torch.randn(4, 3), "adjacency": torch.rand(4, 4), "weight": torch.randn(3, 2)},
        named="adjacency: the degree counts only as the row's scale; its part as the column's is missing",
        kinds=("missing term", "wrong half"),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of adjacency",),
    ),
    Operation(
        "attention of neighbours, sign of the score",
        NeighboursFunction,
        GraphAttention,
        neighbours,
        lambda: {"h": torch.randn(4, 3), "left": torch.randn(3), "right": torch.randn(3)},
        named="the slope depends on the weight's sign instead of the score's, so it is always 1",
        kinds=("step left out", "another operand", "only for some values"),
        named_words=(r"where", r"leaky|slope|\b0\.2\b"),
        located=(r"gradient of left", r"gradient of right"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "gates of the two largest, weights without the others",
            TopKGate.apply,
            gates,
            lambda: (torch.randn(5, 4),),
            whole_numbers=False,
        ),
        named="the probabilities among all logits are taken for those among the two that are kept",
        kinds=("another operand", "step left out", "missing term"),
        named_words=(r"softmax", r"probabilit|normaliz|\bdiv\b"),
        located=(r"gradient of (logits|input 0)",),
    ),
    WrongFunction(
        Case("turned channels, partners", PartialRotary.apply, turned_channels, lambda: (torch.randn(4, 6),)),
        named="backward turns neighbouring channels together, forward channel i and i + 2",
        kinds=("another operand", "permuted", "step left out"),
        named_words=(r"channel|neighbour|partner", r"permut|place|pair", r"slice|index"),
        located=(r"gradient of (x|input 0)",),
    ),
]
