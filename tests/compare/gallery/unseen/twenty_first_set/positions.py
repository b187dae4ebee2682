"""Positions: rotations that also shrink, a table read between its rows, biases by the distance of two places."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

BASE, GROWTH = 100.0, 0.4


def angles_and_scales(x):
    length, half = x.size(-2), x.size(-1) // 2
    place = torch.arange(length, dtype=x.dtype, device=x.device)[:, None]
    feature = torch.arange(half, dtype=x.dtype, device=x.device) / half
    scale = ((feature + GROWTH) / (1 + GROWTH)) ** (place / length)
    return place / BASE**feature, scale


def rotated_and_scaled(x):
    angles, scale = angles_and_scales(x)
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([(a * cos - b * sin) * scale, (b * cos + a * sin) * scale], -1)


class RotatedAndScaledFunction(Function):
    @staticmethod
    def forward(ctx, x):
        return rotated_and_scaled(x)

    @staticmethod
    def backward(ctx, g):
        angles, scale = angles_and_scales(g)
        a, b = (g * torch.cat([scale, scale], -1)).chunk(2, -1)
        return torch.cat([a * angles.cos() + b * angles.sin(), b * angles.cos() - a * angles.sin()], -1)


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


class XPos(Function):
    """Rotary embedding with the exponential decay of xPos."""

    @staticmethod
    def forward(ctx, x):
        freqs, scale = angles_and_scales(x)
        freqs = torch.cat((freqs, freqs), dim=-1)
        scale = torch.cat((scale, scale), dim=-1)
        cos, sin = freqs.cos(), freqs.sin()
        ctx.save_for_backward(cos, sin, scale)
        return (x * cos + rotate_half(x) * sin) * scale

    @staticmethod
    def backward(ctx, grad):
        # the transformation is undone by the opposite rotation
        cos, sin, scale = ctx.saved_tensors
        grad = grad / scale
        return grad * cos - rotate_half(grad) * sin


def read_between(table, positions):
    place = positions.clamp(0, table.size(0) - 1)
    low = place.floor().long().clamp(max=table.size(0) - 2)
    part = (place - low)[:, None]
    return (1 - part) * table[low] + part * table[low + 1]


class ReadBetweenFunction(Function):
    @staticmethod
    def forward(ctx, table, positions):
        ctx.save_for_backward(table, positions)
        return read_between(table, positions)

    @staticmethod
    def backward(ctx, g):
        table, positions = ctx.saved_tensors
        place = positions.clamp(0, table.size(0) - 1)
        low = place.floor().long().clamp(max=table.size(0) - 2)
        part = (place - low)[:, None]
        to_table = torch.zeros_like(table).index_add(0, low, (1 - part) * g).index_add(0, low + 1, part * g)
        slope = (g * (table[low + 1] - table[low])).sum(1)
        return to_table, torch.where(place == positions, slope, torch.zeros_like(slope))


class InterpolatedPositions(Function):
    """Learned position embeddings at fractional positions, linear between two rows of the table."""

    @staticmethod
    def forward(ctx, table, positions):
        last = table.shape[0] - 1
        inside = (positions >= 0) & (positions <= last)
        pos = positions.clamp(0, last)
        lo = pos.floor().long().clamp(max=last - 1)
        hi = lo + 1
        w = (pos - lo).unsqueeze(-1)
        ctx.save_for_backward(table, lo, hi, w, inside)
        return table[lo] * (1 - w) + table[hi] * w

    @staticmethod
    def backward(ctx, grad_out):
        table, lo, hi, w, inside = ctx.saved_tensors
        grad_table = torch.zeros_like(table)
        grad_table[lo] += grad_out * (1 - w)
        grad_table[hi] += grad_out * w
        grad_pos = ((table[hi] - table[lo]) * grad_out).sum(dim=-1) * inside
        return grad_table, grad_pos


def biases_by_distance(scores, slopes):
    n = scores.size(-1)
    i = torch.arange(n, device=scores.device)
    distance = (i[:, None] - i[None, :]).to(scores.dtype)
    biased = scores - slopes[:, None, None] * distance.clamp(min=0)
    return biased.masked_fill(distance < 0, float("-inf")).softmax(-1)


class LearnedALiBi(Function):
    """Causal softmax over (heads, n, n) with a learned slope per head."""

    @staticmethod
    def forward(ctx, scores, slopes):
        n = scores.shape[-1]
        pos = torch.arange(n, device=scores.device)
        dist = (pos.view(-1, 1) - pos.view(1, -1)).to(scores.dtype)
        logits = scores - slopes.view(-1, 1, 1) * dist
        logits = logits.masked_fill(dist < 0, float("-inf"))
        probs = logits.softmax(dim=-1)
        ctx.save_for_backward(probs, dist)
        return probs

    @staticmethod
    def backward(ctx, grad_probs):
        probs, dist = ctx.saved_tensors
        weighted = grad_probs * probs
        grad_scores = weighted - probs * weighted.sum(dim=-1, keepdim=True)
        grad_slopes = -(weighted * dist).sum(dim=(-2, -1))
        return grad_scores, grad_slopes


OPERATIONS = [
    Operation(
        "rotations that also shrink, inverse for transpose",
        RotatedAndScaledFunction,
        XPos,
        rotated_and_scaled,
        lambda: {"x": torch.randn(2, 5, 6)},
        named="the gradient is divided by the scale, as in the inverse, not multiplied by it",
        kinds=("factor by element", "another operand"),
        named_words=(r"\bscale\b", r"multipl|divi|\* scale"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "a table read between its rows, rows read twice",
        ReadBetweenFunction,
        InterpolatedPositions,
        read_between,
        lambda: {"table": torch.randn(5, 3), "positions": torch.rand(8) * 5 - 0.5},
        named="table: an indexed += keeps one of several gradients of a row, not their sum",
        kinds=("missing term", "only at some indices", "another operand"),
        named_words=(
            r"index_add|scatter_add|accumulat|index_put",
            r"repeated|several|duplicate|overwr|more than once",
        ),
        located=(r"gradient of table\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "biases by the distance, slopes before the sum is taken off",
            LearnedALiBi.apply,
            biases_by_distance,
            lambda: {"scores": torch.randn(3, 5, 5), "slopes": torch.rand(3)},
        ),
        named="slopes: their gradient is taken from the product with probs, not from the gradient of the logits",
        kinds=("another operand", "missing term", "step left out"),
        named_words=(r"grad_scores", r"missing|left out|lacks"),
        located=(r"gradient of slopes\b",),
    ),
]
