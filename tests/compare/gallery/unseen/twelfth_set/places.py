"""Places: uneven bins, scores moved by relative positions, trimmed means."""

from __future__ import annotations

import itertools
import math

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

BINS = 3
TRIMMED = 2


def binned(x):
    return torch.nn.functional.adaptive_avg_pool1d(x, BINS)


def bin_bounds(length, index):
    return index * length // BINS, -(-(index + 1) * length // BINS)


class BinnedFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.length = x.shape[2]
        bounds = [bin_bounds(ctx.length, index) for index in range(BINS)]
        return torch.stack([x[:, :, start:end].mean(2) for start, end in bounds], 2)

    @staticmethod
    def backward(ctx, g):
        grad = g.new_zeros(*g.shape[:2], ctx.length)
        for index in range(BINS):
            start, end = bin_bounds(ctx.length, index)
            grad[:, :, start:end] += g[:, :, index : index + 1] / (end - start)
        return grad


class AdaptivePool(Function):
    @staticmethod
    def forward(ctx, x):
        length = x.size(-1)
        out = x.new_empty(*x.shape[:-1], BINS)
        for i in range(BINS):
            lo, hi = math.floor(i * length / BINS), math.ceil((i + 1) * length / BINS)
            out[..., i] = x[..., lo:hi].mean(-1)
        ctx.length = length
        return out

    @staticmethod
    def backward(ctx, grad_out):
        edges = [i * ctx.length // BINS for i in range(BINS + 1)]
        widths = [hi - lo for lo, hi in itertools.pairwise(edges)]
        scaled = grad_out / torch.tensor(widths, dtype=grad_out.dtype)
        return scaled.repeat_interleave(torch.tensor(widths), dim=-1)


def relative_shift(scores):
    """Move row i of each head by its distance from the last row, as Transformer-XL does."""
    heads, rows, columns = scores.shape
    padded = torch.cat([scores.new_zeros(heads, rows, 1), scores], 2)
    return padded.reshape(heads, columns + 1, rows)[:, 1:].reshape(heads, rows, columns)


class RelativeShiftFunction(Function):
    @staticmethod
    def forward(ctx, scores):
        return relative_shift(scores)

    @staticmethod
    def backward(ctx, g):
        heads, rows, columns = g.shape
        lines = g.reshape(heads, columns, rows)
        padded = torch.cat([g.new_zeros(heads, 1, rows), lines], 1).reshape(heads, rows, columns + 1)
        return padded[:, :, 1:]


class RelShift(Function):
    @staticmethod
    def forward(ctx, x):
        h, t, _ = x.shape
        x_padded = torch.cat((x.new_zeros(h, t, 1), x), dim=-1)
        return x_padded.view(h, t + 1, t)[:, 1:].view(h, t, t).clone()

    @staticmethod
    def backward(ctx, grad):
        t = grad.size(1)
        grad_x = torch.zeros_like(grad)
        for i in range(t):
            shift = t - 1 - i
            grad_x[:, i, shift:] = grad[:, i, : t - shift]
        return grad_x


def trimmed_mean(x):
    return x.sort(1).values[:, TRIMMED:-TRIMMED].mean(1)


class TrimmedMeanFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return trimmed_mean(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        kept = x.argsort(1)[:, TRIMMED:-TRIMMED]
        return torch.zeros_like(x).scatter(1, kept, (g / kept.shape[1])[:, None].expand(kept.shape))


class TrimmedMean(Function):
    @staticmethod
    def forward(ctx, x):
        values, _ = torch.sort(x, dim=1)
        kept = values[:, TRIMMED : x.size(1) - TRIMMED]
        ctx.save_for_backward(x, kept[:, :1], kept[:, -1:])
        ctx.count = kept.size(1)
        return kept.sum(dim=1) / ctx.count

    @staticmethod
    def backward(ctx, grad_output):
        x, low, high = ctx.saved_tensors
        inside = (x > low) & (x < high)
        return inside.to(x.dtype) * grad_output.unsqueeze(1) / ctx.count


OPERATIONS = [
    Operation(
        "means of uneven bins, shared elements",
        BinnedFunction,
        AdaptivePool,
        binned,
        lambda: (torch.randn(2, 3, 7),),
        named="backward ends each bin where the next one begins; in forward neighbours share an element",
        kinds=("missing term", "only at some indices", "factor by element", "wrong sum", "another operand"),
        named_words=(r"missing", r"divi[ds]|window|\bbins?\b|overlap", r"indices|columns?", r"factor"),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "scores moved by relative positions, upper half",
        RelativeShiftFunction,
        RelShift,
        relative_shift,
        lambda: (torch.randn(2, 5, 5),),
        named="the elements above the diagonal, which the next row fills, get no gradient",
        kinds=("wrong half", "missing term", "only at some indices", "zero", "step left out"),
        named_words=(r"triang|diagonal|half", r"no effect|missing", r"\bind(ex|ices)\b|[<>]", r"zero"),
        located=(r"gradient of (scores|x|input 0)",),
    ),
    Operation(
        "mean without the extremes, bounds",
        TrimmedMeanFunction,
        TrimmedMean,
        trimmed_mean,
        lambda: (torch.randn(4, 9),),
        named="the smallest and the largest of the kept elements get no gradient: they equal the bounds",
        kinds=("missing term", "only for some values", "only at bounds", "few elements", "zero", "step left out"),
        named_words=(r"missing|no effect", r"bound", r"smallest|largest|extreme", r"\b0 (instead|where)|zero"),
        located=(r"gradient of (x|input 0)",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
