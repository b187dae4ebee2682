"""Graphs and embeddings: sums over neighbours, scores of triples, and times as a line and sines."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def line_and_sines(t, omega, phi):
    angle = t[:, None] * omega + phi
    return torch.cat([angle[:, :1], torch.sin(angle[:, 1:])], 1)


class LineAndSinesFunction(Function):
    @staticmethod
    def forward(ctx, t, omega, phi):
        angle = t[:, None] * omega + phi
        ctx.save_for_backward(t, omega, angle)
        y = torch.sin(angle)
        y[:, 0] = angle[:, 0]
        return y

    @staticmethod
    def backward(ctx, g):
        t, omega, angle = ctx.saved_tensors
        to_angle = torch.cat([g[:, :1], (g * torch.cos(angle))[:, 1:]], 1)
        return to_angle @ omega, to_angle.mT @ t, to_angle.sum(0)


class Time2Vec(Function):
    """Time2Vec: component 0 is linear, the others are periodic; tau is (N,), w and b are (K,)."""

    @staticmethod
    def forward(ctx, tau, w, b):
        v = torch.outer(tau, w) + b
        ctx.save_for_backward(tau, w, v)
        linear, periodic = v[:, 0:1], torch.sin(v[:, 1:])
        return torch.cat((linear, periodic), dim=-1)

    @staticmethod
    def backward(ctx, grad_output):
        tau, w, v = ctx.saved_tensors
        grad_v = grad_output * torch.cos(v)
        grad_tau = grad_v.mv(w)
        grad_w = grad_v.t().mv(tau)
        grad_b = grad_v.sum(dim=0)
        return grad_tau, grad_w, grad_b


def triples() -> dict[str, torch.Tensor]:
    """Draw embeddings of 5 entities and 2 relations, and 6 triples of them."""
    return {
        "entities": torch.randn(5, 3),
        "relations": torch.randn(2, 3),
        "head": torch.tensor([0, 1, 1, 2, 0, 4]),
        "kind": torch.tensor([0, 0, 1, 1, 0, 1]),
        "tail": torch.tensor([1, 3, 4, 3, 2, 3]),
    }


def scores_of_triples(entities, relations, head, kind, tail):
    return (entities[head] * relations[kind] * entities[tail]).sum(-1)


class ScoresOfTriplesFunction(Function):
    @staticmethod
    def forward(ctx, entities, relations, head, kind, tail):
        ctx.save_for_backward(entities, relations, head, kind, tail)
        return (entities[head] * relations[kind] * entities[tail]).sum(-1)

    @staticmethod
    def backward(ctx, g):
        entities, relations, head, kind, tail = ctx.saved_tensors
        h, r, t = entities[head], relations[kind], entities[tail]
        each = g[:, None]
        to_entities = torch.zeros_like(entities).index_add_(0, head, each * r * t).index_add_(0, tail, each * r * h)
        return to_entities, torch.zeros_like(relations).index_add_(0, kind, each * h * t), None, None, None


class DistMultScore(Function):
    """DistMult score <h, r, t> of a batch of triples."""

    @staticmethod
    def forward(ctx, ent_emb, rel_emb, h_idx, r_idx, t_idx):
        h, r, t = ent_emb[h_idx], rel_emb[r_idx], ent_emb[t_idx]
        ctx.save_for_backward(h, r, t, h_idx, r_idx, t_idx)
        ctx.sizes = (ent_emb.shape[0], rel_emb.shape[0])
        return torch.sum(h * r * t, dim=-1)

    @staticmethod
    def backward(ctx, grad_score):
        h, r, t, h_idx, r_idx, t_idx = ctx.saved_tensors
        num_ent, num_rel = ctx.sizes
        grad_score = grad_score.unsqueeze(-1)
        grad_ent = torch.zeros(num_ent, h.shape[-1], dtype=h.dtype, device=h.device)
        grad_rel = torch.zeros(num_rel, r.shape[-1], dtype=r.dtype, device=r.device)
        grad_ent[h_idx] += grad_score * r * t
        grad_ent[t_idx] += grad_score * h * r
        grad_rel[r_idx] += grad_score * h * t
        return grad_ent, grad_rel, None, None, None


def edges() -> dict[str, torch.Tensor]:
    """Draw features of 5 nodes, a weight, and 7 directed edges."""
    return {
        "x": torch.randn(5, 3),
        "eps": 0.5 * torch.randn(()),
        "w": torch.randn(3, 4),
        "source": torch.tensor([0, 1, 1, 2, 3, 4, 4]),
        "target": torch.tensor([1, 0, 2, 4, 2, 0, 3]),
    }


def sums_of_neighbours(x, eps, w, source, target):
    return torch.relu(((1 + eps) * x).index_add(0, target, x[source]) @ w)


class SumsOfNeighboursFunction(Function):
    @staticmethod
    def forward(ctx, x, eps, w, source, target):
        sums = ((1 + eps) * x).index_add(0, target, x[source])
        y = torch.relu(sums @ w)
        ctx.save_for_backward(x, eps, w, source, target, sums, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, eps, w, source, target, sums, y = ctx.saved_tensors
        to_product = g * (y > 0)
        to_sums = to_product @ w.mT
        to_x = ((1 + eps) * to_sums).index_add(0, source, to_sums[target])
        return to_x, (to_sums * x).sum(), sums.mT @ to_product, None, None


class GINConv(Function):
    """relu(((1 + eps) * x_i + sum of the neighbours x_j) W) on edge lists src -> dst."""

    @staticmethod
    def forward(ctx, x, eps, weight, src, dst):
        agg = torch.zeros_like(x)
        agg.index_add_(0, dst, x[src])
        h = (1 + eps) * x + agg
        out = torch.mm(h, weight)
        mask = out > 0
        ctx.save_for_backward(x, eps, weight, src, dst, h, mask)
        return out * mask

    @staticmethod
    def backward(ctx, grad_out):
        x, eps, weight, src, dst, h, mask = ctx.saved_tensors
        grad_lin = grad_out * mask
        grad_weight = torch.mm(h.t(), grad_lin)
        grad_h = torch.mm(grad_lin, weight.t())
        grad_eps = torch.sum(grad_h * x)

        grad_agg = torch.zeros_like(x)
        grad_agg.index_add_(0, dst, grad_h[src])
        grad_x = (1 + eps) * grad_h + grad_agg
        return grad_x, grad_eps, grad_weight, None, None


OPERATIONS = [
    Operation(
        "times as a line and sines, cosine for the line too",
        LineAndSinesFunction,
        Time2Vec,
        line_and_sines,
        lambda: {"t": 2 * torch.rand(5), "omega": torch.randn(4), "phi": torch.randn(4)},
        named="component 0 is linear, and its derivative is 1; backward multiplies all components by the cosine",
        kinds=("only at some indices", "another operand", "step left out", "factor by element", "wrong sum"),
        named_words=(r"index 0|\[:, 0|first|column 0|component|\b0\b.*dimension|element 0", r"\bcos\b", r"\bsin\b"),
        located=(r"gradient of (t|omega|phi|tau|w|b)\b",),
    ),
    Operation(
        "scores of triples, entities that occur again",
        ScoresOfTriplesFunction,
        DistMultScore,
        scores_of_triples,
        triples,
        named="grad[index] += adds only once for an index that occurs several times: the other triples are lost",
        kinds=("missing term", "only at some indices", "few elements", "step left out"),
        named_words=(r"index_add|accumulate|index_put", r"repeat|several times|occur|duplicate|more than once|twice"),
        located=(r"gradient of (entities|relations|ent_emb|rel_emb)\b",),
    ),
    Operation(
        "sums of neighbours, edges in forward's direction",
        SumsOfNeighboursFunction,
        GINConv,
        sums_of_neighbours,
        edges,
        named="x: backward adds along the edges as forward does; it should exchange source and target",
        kinds=("not transposed", "swapped", "another operand", "permuted"),
        named_words=(
            r"transpose",
            r"\b(source|src)\b.*\b(target|dst)\b|\b(target|dst)\b.*\b(source|src)\b",
            r"exchanged",
        ),
        located=(r"gradient of x\b",),
        options={"kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
