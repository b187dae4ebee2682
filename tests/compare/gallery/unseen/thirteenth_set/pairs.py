"""Sums over pairs: energies of atoms, means under a kernel, distances of intervals."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

SITES = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])


def energies(x):
    squares = ((x[:, None] - x[None]) ** 2).sum(2) + torch.eye(len(x), dtype=x.dtype)
    inverse = (1 - torch.eye(len(x), dtype=x.dtype)) / squares**3
    return 2 * (inverse**2 - inverse).sum(1)


class EnergiesFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return energies(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        difference, unit = x[:, None] - x[None], torch.eye(len(x), dtype=x.dtype)
        squares = (difference**2).sum(2) + unit
        inverse = (1 - unit) / squares**3
        to_squares = 2 * (g[:, None] + g[None]) * (2 * inverse - 1) * -3 * inverse / squares
        return (2 * to_squares[:, :, None] * difference).sum(1)


class LennardJones(Function):
    @staticmethod
    def forward(ctx, pos):
        n = pos.shape[0]
        i, j = torch.triu_indices(n, n, offset=1)
        r = pos[i] - pos[j]
        inv6 = r.pow(2).sum(dim=1).pow(-3)
        e = 4 * (inv6 * inv6 - inv6)
        per_atom = torch.zeros(n, dtype=pos.dtype)
        per_atom.index_add_(0, i, e / 2)
        per_atom.index_add_(0, j, e / 2)
        ctx.save_for_backward(r, inv6, i, j)
        return per_atom

    @staticmethod
    def backward(ctx, grad_energy):
        r, inv6, i, j = ctx.saved_tensors
        r2 = r.pow(2).sum(dim=1)
        force = (24 * (inv6 - 2 * inv6 * inv6) / r2).unsqueeze(1) * r
        grad_pos = r.new_zeros(grad_energy.shape[0], 3)
        grad_pos.index_add_(0, i, grad_energy[i, None] * force)
        grad_pos.index_add_(0, j, -grad_energy[j, None] * force)
        return grad_pos


def kernel_means(x, width):
    weights = torch.exp(-((x[:, None] - x[None]) ** 2).sum(2) / width**2)
    return weights @ x / weights.sum(1, keepdim=True)


class KernelMeansFunction(Function):
    @staticmethod
    def forward(ctx, x, width):
        ctx.save_for_backward(x, width)
        return kernel_means(x, width)

    @staticmethod
    def backward(ctx, g):
        x, width = ctx.saved_tensors
        difference = x[:, None] - x[None]
        squares = (difference**2).sum(2)
        weights = torch.exp(-squares / width**2)
        total = weights.sum(1, keepdim=True)
        means = weights @ x / total
        to_weights = (g @ x.T - (g * means).sum(1, keepdim=True)) / total
        to_squares = -to_weights * weights / width**2
        grad_x = weights.T @ (g / total)
        grad_x = grad_x + 2 * ((to_squares + to_squares.T)[:, :, None] * difference).sum(1)
        return grad_x, (to_weights * weights * 2 * squares).sum() / width**3


class MeanShift(Function):
    @staticmethod
    def forward(ctx, x, h):
        diff = x.unsqueeze(1) - x.unsqueeze(0)
        sq = diff.square().sum(dim=-1)
        k = torch.softmax(-sq / h.square(), dim=1)
        ctx.save_for_backward(x, h, diff, sq, k)
        return k @ x

    @staticmethod
    def backward(ctx, grad_out):
        x, h, diff, sq, k = ctx.saved_tensors
        grad_k = grad_out @ x.t()
        grad_logits = k * (grad_k - (k * grad_k).sum(dim=1, keepdim=True))
        grad_sq = -grad_logits / h.square()
        grad_h = 2 * (grad_logits * sq).sum() / h**3
        grad_x = k.t() @ grad_out
        grad_x = grad_x + 2 * (grad_sq.unsqueeze(-1) * diff).sum(dim=1)
        return grad_x, grad_h


def generalized_overlap(a, b):
    inner = (torch.minimum(a[:, 1], b[:, 1]) - torch.maximum(a[:, 0], b[:, 0])).clamp(min=0)
    union = a[:, 1] - a[:, 0] + b[:, 1] - b[:, 0] - inner
    hull = torch.maximum(a[:, 1], b[:, 1]) - torch.minimum(a[:, 0], b[:, 0])
    return inner / union + union / hull - 1


class GIoU1d(Function):
    @staticmethod
    def forward(ctx, a, b):
        lo = torch.maximum(a[:, 0], b[:, 0])
        hi = torch.minimum(a[:, 1], b[:, 1])
        inter = (hi - lo).clamp_min(0)
        union = (a[:, 1] - a[:, 0]) + (b[:, 1] - b[:, 0]) - inter
        hull = torch.maximum(a[:, 1], b[:, 1]) - torch.minimum(a[:, 0], b[:, 0])
        ctx.save_for_backward(a, b, inter, union, hull)
        return inter / union - (hull - union) / hull

    @staticmethod
    def backward(ctx, grad):
        a, b, inter, union, hull = ctx.saved_tensors
        d_union = grad * (1 / hull - inter / union**2)
        d_inter = (grad / union - d_union) * (inter > 0)
        d_hull = -grad * union / hull**2

        def one(p, q):
            d_start = -d_union - d_inter * (p[:, 0] > q[:, 0]) - d_hull * (p[:, 0] < q[:, 0])
            d_end = d_union + d_inter * (p[:, 1] < q[:, 1]) + d_hull * (p[:, 1] > q[:, 1])
            return torch.stack([d_start, d_end], dim=1)

        return one(a, b), one(b, a)


class GeneralizedIoU(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return generalized_overlap(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        overlap = torch.minimum(a[:, 1], b[:, 1]) - torch.maximum(a[:, 0], b[:, 0])
        inner = overlap.clamp(min=0)
        lengths = a[:, 1] - a[:, 0] + b[:, 1] - b[:, 0]
        union = lengths - inner
        hull = torch.maximum(a[:, 1], b[:, 1]) - torch.minimum(a[:, 0], b[:, 0])
        grad_inner = g * lengths / union**2 - g / hull
        grad_length = g / hull - g * inner / union**2
        grad_hull = -g * union / hull**2
        result = []
        for this, other in ((a, b), (b, a)):
            later = this[:, 0] > other[:, 0]
            earlier = this[:, 1] < other[:, 1]
            start = -grad_length - torch.where(later, grad_inner, grad_hull)
            end = grad_length + torch.where(earlier, grad_inner, grad_hull)
            result.append(torch.stack([start, end], 1))
        return tuple(result)


def intervals():
    start = torch.randn(8, 2)
    return {
        "a": torch.stack([start[:, 0], start[:, 0] + 0.5 + torch.rand(8)], 1),
        "b": torch.stack([start[:, 1], start[:, 1] + 0.5 + torch.rand(8)], 1),
    }


OPERATIONS = [
    Operation(
        "energies of pairs, halves of the two atoms",
        EnergiesFunction,
        LennardJones,
        energies,
        lambda: (SITES * 1.2 + torch.randn(5, 3) / 10,),
        named="each atom takes its own gradient for a pair, where half of it is the other atom's",
        kinds=("missing term", "another operand", "not transposed", "wrong half"),
        named_words=(r"missing", r"transpos", r"other|symmetr|both"),
        located=(r"gradient of (x|input 0)",),
        options={"whole_numbers": False},
    ),
    Operation(
        "means under a kernel, points as neighbours",
        KernelMeansFunction,
        MeanShift,
        kernel_means,
        lambda: {"x": torch.randn(5, 2), "width": torch.rand(()) + 1},
        named="x: the distances are differentiated with respect to their first point only",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of x",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
RIGHT += [Case("overlap of intervals with a hull", GIoU1d.apply, generalized_overlap, intervals, whole_numbers=False)]
WRONG += [
    WrongFunction(
        Case(
            "overlap of intervals with a hull, apart",
            GeneralizedIoU.apply,
            generalized_overlap,
            intervals,
            whole_numbers=False,
        ),
        named="intervals that are apart get a gradient through their overlap, which is clamped to 0 there",
        kinds=("only for some values", "only at some indices", "step left out", "missing term"),
        named_words=(r"clamp|<=?\s*0", r"one too many|extra", r"apart|overlap"),
        located=(r"gradient of a", r"gradient of b"),
    ),
]
