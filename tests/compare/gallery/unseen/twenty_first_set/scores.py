"""Scores: relevance of documents, cost of a transport, several quantiles of a row."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

BLUR, ROUNDS = 0.5, 6
LEVELS = (0.1, 0.15, 0.5, 0.7, 0.75)


def relevance(counts, weights, k, b):
    lengths = counts.sum(1, keepdim=True)
    damping = k * (1 - b + b * lengths / lengths.mean())
    return (weights * counts * (k + 1) / (counts + damping)).sum(1)


class RelevanceFunction(Function):
    @staticmethod
    def forward(ctx, counts, weights, k, b):
        ctx.save_for_backward(counts, weights, k, b)
        return relevance(counts, weights, k, b)

    @staticmethod
    def backward(ctx, g):
        counts, weights, k, b = ctx.saved_tensors
        lengths = counts.sum(1, keepdim=True)
        mean = lengths.mean()
        relative = lengths / mean
        factor = 1 - b + b * relative
        divisor = counts + k * factor
        g = g[:, None]
        to_saturated = g * weights * (k + 1) / divisor
        to_damping = -(to_saturated * counts / divisor).sum(1, keepdim=True)
        to_relative = to_damping * k * b
        to_lengths = to_relative / mean - (to_relative * lengths).sum() / mean**2 / len(lengths)
        grad_counts = to_saturated - to_saturated * counts / divisor + to_lengths
        grad_k = (g * weights * counts / divisor).sum() + (to_damping * factor).sum()
        grad_b = (to_damping * k * (relative - 1)).sum()
        return grad_counts, (g * counts * (k + 1) / divisor).sum(0), grad_k, grad_b


class BM25Score(Function):
    """Okapi BM25 with expected term counts (documents in rows), trainable idf, k1 and b."""

    @staticmethod
    def forward(ctx, tf, idf, k1, b):
        doc_len = tf.sum(dim=1, keepdim=True)
        rel_len = doc_len / doc_len.mean()
        length_norm = 1 - b + b * rel_len
        denom = tf + k1 * length_norm
        ctx.save_for_backward(tf, idf, k1, b, rel_len, length_norm, denom)
        return (idf * tf * (k1 + 1) / denom).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_score):
        tf, idf, k1, b, rel_len, length_norm, denom = ctx.saved_tensors
        grad_tf = grad_idf = grad_k1 = grad_b = None
        g = grad_score.unsqueeze(1)
        grad_norm = torch.zeros_like(length_norm)
        if ctx.needs_input_grad[0]:
            grad_sat = g * idf * (k1 + 1)
            grad_norm = -k1 * (grad_sat * tf / denom**2).sum(dim=1, keepdim=True)
            grad_rel = b * grad_norm
            avg_len = tf.sum(dim=1).mean()
            grad_len = (grad_rel - (grad_rel * rel_len).mean()) / avg_len
            grad_tf = grad_sat * (denom - tf) / denom**2 + grad_len
        if ctx.needs_input_grad[1]:
            grad_idf = (g * tf * (k1 + 1) / denom).sum(dim=0)
        if ctx.needs_input_grad[2]:
            direct = g * idf * tf / denom
            grad_k1 = (direct - direct * (k1 + 1) / denom * length_norm).sum()
        if ctx.needs_input_grad[3]:
            grad_b = (grad_norm * (rel_len - 1)).sum()
        return grad_tf, grad_idf, grad_k1, grad_b


def transport_cost(cost):
    rows, columns = cost.shape
    kernel = -cost / BLUR
    v = torch.zeros_like(cost[0])
    for _ in range(ROUNDS):
        u = -torch.logsumexp(kernel + v, 1, keepdim=True) - torch.log(cost.new_tensor(rows))
        v = -torch.logsumexp(kernel + u, 0) - torch.log(cost.new_tensor(columns))
    return (torch.exp(kernel + u + v) * cost).sum()


class TransportCostFunction(Function):
    @staticmethod
    def forward(ctx, cost):
        ctx.save_for_backward(cost)
        return transport_cost(cost)

    @staticmethod
    def backward(ctx, g):
        (cost,) = ctx.saved_tensors
        rows, columns = cost.shape
        kernel, v, steps = -cost / BLUR, torch.zeros_like(cost[0]), []
        for _ in range(ROUNDS):
            by_row = torch.softmax(kernel + v, 1)
            u = -torch.logsumexp(kernel + v, 1, keepdim=True) - torch.log(cost.new_tensor(rows))
            by_column = torch.softmax(kernel + u, 0)
            v = -torch.logsumexp(kernel + u, 0) - torch.log(cost.new_tensor(columns))
            steps.append((by_row, by_column))
        plan = torch.exp(kernel + u + v)
        to_kernel = g * plan * cost
        to_u, to_v = to_kernel.sum(1, keepdim=True), to_kernel.sum(0)
        for by_row, by_column in reversed(steps):
            through_v = -by_column * to_v
            through_u = -by_row * (to_u + through_v.sum(1, keepdim=True))
            to_kernel = to_kernel + through_v + through_u
            to_u, to_v = torch.zeros_like(to_u), through_u.sum(0)
        return g * plan - to_kernel / BLUR


class SinkhornDistance(Function):
    """Transport cost <P, C> between uniform histograms, where P comes from Sinkhorn's iterations."""

    @staticmethod
    def forward(ctx, C):
        n, m = C.shape
        M = -C / BLUR
        log_a = -torch.log(C.new_tensor(float(n)))
        log_b = -torch.log(C.new_tensor(float(m)))
        g = C.new_zeros(m)
        for _ in range(ROUNDS):
            f = log_a - torch.logsumexp(M + g[None, :], dim=1)
            g = log_b - torch.logsumexp(M + f[:, None], dim=0)
        P = torch.exp(M + f[:, None] + g[None, :])
        ctx.save_for_backward(P)
        return torch.sum(P * C)

    @staticmethod
    def backward(ctx, grad_cost):
        (P,) = ctx.saved_tensors
        return grad_cost * P


def positions(row_length):
    """Index below each level, and the level's distance from it."""
    exact = [level * (row_length - 1) for level in LEVELS]
    return [int(each) for each in exact], [each - int(each) for each in exact]


def quantiles(x):
    ordered = x.sort(1).values
    below, share = positions(x.shape[1])
    return torch.stack(
        [torch.lerp(ordered[:, n], ordered[:, n + 1], s) for n, s in zip(below, share, strict=True)], 1
    )


class Quantiles(Function):
    """Quantiles of each row with linear interpolation, all levels at once."""

    @staticmethod
    def forward(ctx, x):
        ordered, order = torch.sort(x, dim=1)
        below, share = positions(x.size(1))
        lo = torch.tensor(below, device=x.device)
        frac = torch.tensor(share, dtype=x.dtype, device=x.device)
        ctx.save_for_backward(order, lo, frac)
        return ordered[:, lo] * (1 - frac) + ordered[:, lo + 1] * frac

    @staticmethod
    def backward(ctx, grad_q):
        order, lo, frac = ctx.saved_tensors
        grad_sorted = grad_q.new_zeros(order.shape)
        grad_sorted[:, lo] += grad_q * (1 - frac)
        grad_sorted[:, lo + 1] += grad_q * frac
        return torch.zeros_like(grad_sorted).scatter_(1, order, grad_sorted)


OPERATIONS = [
    Operation(
        "relevance of documents, counts without gradient",
        RelevanceFunction,
        BM25Score,
        relevance,
        lambda: {
            "counts": 0.2 + 2 * torch.rand(4, 5),
            "weights": torch.randn(5),
            "k": 1 + torch.rand(()),
            "b": 0.3 + 0.5 * torch.rand(()),
        },
        named="b: its gradient uses one that is computed only if the counts require a gradient, and is zero else",
        kinds=("depends on which inputs require a gradient",),
        named_words=(r"needs_input_grad|requires? (a )?grad",),
        located=(r"gradient of b\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "cost of a transport, plan as a constant",
        TransportCostFunction,
        SinkhornDistance,
        transport_cost,
        lambda: {"cost": 2 * torch.rand(4, 3)},
        named="the plan depends on the cost, and the gradient has only the term with the plan as a constant",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"(plan|\bP\b).*constant|constant.*(plan|\bP\b)"),
        located=(r"gradient of (cost|C)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "several quantiles of a row, levels between the same elements",
            Quantiles.apply,
            quantiles,
            lambda: {"x": torch.randn(3, 6)},
            whole_numbers=False,
        ),
        named="levels that lie between the same two elements have the same index, and += keeps only one of them",
        kinds=("only at some indices", "missing term", "wrong sum"),
        named_words=(r"repeated|duplicate|same ind|more than once", r"index_add|accumulate"),
        located=(r"gradient of x\b",),
    ),
]
