"""States: a scan whose step lengths depend on the input, and nodes that take a weighted mean of their neighbours."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

SOURCE, TARGET = torch.tensor([0, 1, 2, 3, 0, 2, 4]), torch.tensor([1, 2, 0, 4, 2, 3, 0])


def selective_scan(u, delta, a, b, c):
    """Output of a diagonal state-space layer: u, delta (N, L, D), a (D, S), b, c (N, L, S)."""
    state, out = u.new_zeros(u.size(0), *a.shape), []
    for t in range(u.size(1)):
        decay = torch.exp(delta[:, t, :, None] * a)
        state = decay * state + (delta[:, t] * u[:, t])[:, :, None] * b[:, t, None, :]
        out.append((state * c[:, t, None, :]).sum(2))
    return torch.stack(out, 1)


class SelectiveScanFunction(Function):
    @staticmethod
    def forward(ctx, u, delta, a, b, c):
        ctx.save_for_backward(u, delta, a, b, c)
        return selective_scan(u, delta, a, b, c)

    @staticmethod
    def backward(ctx, g):
        u, delta, a, b, c = ctx.saved_tensors
        decay = torch.exp(delta[..., None] * a)
        states = [torch.zeros_like(decay[:, 0])]
        for t in range(u.size(1)):
            states.append(decay[:, t] * states[-1] + (delta[:, t] * u[:, t])[:, :, None] * b[:, t, None, :])
        to_u, to_delta, to_a, to_b, to_c = (torch.zeros_like(each) for each in (u, delta, a, b, c))
        to_state = torch.zeros_like(states[0])
        for t in range(u.size(1) - 1, -1, -1):
            to_c[:, t] = (g[:, t, :, None] * states[t + 1]).sum(1)
            to_state = to_state + g[:, t, :, None] * c[:, t, None, :]
            to_exponent = to_state * states[t] * decay[:, t]
            to_a += (to_exponent * delta[:, t, :, None]).sum(0)
            to_b[:, t] = (to_state * (delta[:, t] * u[:, t])[:, :, None]).sum(1)
            to_product = (to_state * b[:, t, None, :]).sum(2)
            to_u[:, t] = to_product * delta[:, t]
            to_delta[:, t] = to_product * u[:, t] + (to_exponent * a).sum(2)
            to_state = to_state * decay[:, t]
        return to_u, to_delta, to_a, to_b, to_c


class MambaScan(Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C):
        deltaA = torch.exp(torch.einsum("bld,dn->bldn", delta, A))
        deltaB_u = torch.einsum("bld,bln,bld->bldn", delta, B, u)
        x = torch.zeros_like(deltaA[:, 0])
        xs, ys = [], []
        for i in range(u.shape[1]):
            x = deltaA[:, i] * x + deltaB_u[:, i]
            xs.append(x)
            ys.append(torch.einsum("bdn,bn->bd", x, C[:, i]))
        ctx.save_for_backward(u, delta, B, C, deltaA, torch.stack(xs, dim=1))
        return torch.stack(ys, dim=1)

    @staticmethod
    def backward(ctx, dy):
        u, delta, B, C, deltaA, xs = ctx.saved_tensors
        dC = torch.einsum("bld,bldn->bln", dy, xs)
        dxs = torch.einsum("bld,bln->bldn", dy, C)
        for i in range(u.shape[1] - 2, -1, -1):
            dxs[:, i] += deltaA[:, i + 1] * dxs[:, i + 1]
        x_prev = torch.cat([torch.zeros_like(xs[:, :1]), xs[:, :-1]], dim=1)
        ddA = dxs * x_prev * deltaA
        dA = torch.einsum("bldn,bld->dn", ddA, delta)
        dB = torch.einsum("bldn,bld,bld->bln", dxs, delta, u)
        du = torch.einsum("bldn,bln,bld->bld", dxs, B, delta)
        ddelta = torch.einsum("bldn,bln,bld->bld", dxs, B, u)
        return du, ddelta, dA, dB, dC


def weighted_neighbours(x, weight):
    total = torch.zeros_like(x).index_add(0, TARGET, weight[:, None] * x[SOURCE])
    mass = torch.zeros_like(x[:, 0]).index_add(0, TARGET, weight)
    return total / mass[:, None]


class WeightedNeighboursFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return weighted_neighbours(x, weight)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        mass = torch.zeros_like(x[:, 0]).index_add(0, TARGET, weight)
        to_message = (g / mass[:, None])[TARGET]
        to_x = torch.zeros_like(x).index_add(0, SOURCE, weight[:, None] * to_message)
        mean = weighted_neighbours(x, weight)[TARGET]
        return to_x, (to_message * (x[SOURCE] - mean)).sum(1)


class WeightedMeanAggregation(Function):
    """Message passing with edge weights, normalized by the weights that arrive at a node."""

    @staticmethod
    def forward(ctx, x, edge_weight):
        deg = x.new_zeros(x.size(0)).scatter_add_(0, TARGET, edge_weight)
        norm = edge_weight / deg[TARGET]
        out = torch.zeros_like(x).index_add_(0, TARGET, norm.unsqueeze(-1) * x[SOURCE])
        ctx.save_for_backward(x, norm, deg)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        x, norm, deg = ctx.saved_tensors
        grad_x = torch.zeros_like(x).index_add_(0, SOURCE, norm.unsqueeze(-1) * grad_out[TARGET])
        grad_norm = (grad_out[TARGET] * x[SOURCE]).sum(dim=-1)
        node = torch.zeros_like(deg).index_add_(0, TARGET, grad_norm * norm)
        grad_weight = (grad_norm - node[SOURCE]) / deg[TARGET]
        return grad_x, grad_weight


OPERATIONS = [
    Operation(
        "a scan with step lengths, decay by the step length",
        SelectiveScanFunction,
        MambaScan,
        selective_scan,
        lambda: {
            "u": torch.randn(2, 4, 3),
            "delta": torch.rand(2, 4, 3),
            "a": -torch.rand(3, 2) - 0.2,
            "b": torch.randn(2, 4, 2),
            "c": torch.randn(2, 4, 2),
        },
        named="delta: the step length is in the decay too, and this term is missing",
        kinds=("missing term",),
        named_words=(r"missing|left out|lacks", r"\bddA\b"),
        located=(r"gradient of delta\b",),
    ),
    Operation(
        "weighted mean of neighbours, sum at the wrong end of the edge",
        WeightedNeighboursFunction,
        WeightedMeanAggregation,
        weighted_neighbours,
        lambda: {"x": torch.randn(5, 3), "weight": torch.rand(7) + 0.5},
        named="weight: the sum over a node's edges is read at the edge's source, not at its target",
        kinds=("another operand", "permuted", "only at some indices"),
        named_words=(
            r"node\[TARGET\]",
            r"TARGET.*(instead|not|in place of|where).*SOURCE",
            r"permut|in another order",
        ),
        located=(r"gradient of (edge_)?weight\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
