"""Pixels: bilinear resizing, averages of windows that overlap, quantization with a zero point."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

SCALE, ZERO, LOWEST, HIGHEST = 0.3, 2, -4, 3


def resize(x):
    return F.interpolate(x[None], size=(7, 5), mode="bilinear", align_corners=False)[0]


def weights(size, new_size, *, clamped=True):
    """Weights of linear interpolation, (new_size, size)."""
    place = (torch.arange(new_size, dtype=torch.float64) + 0.5) * size / new_size - 0.5
    place = place.clamp(min=0) if clamped else place
    low = place.floor().long().clamp(0, size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = (place - low)[:, None]
    return F.one_hot(low, size) * (1 - share) + F.one_hot(high, size) * share


def resize_backward(g, x, *, clamped=True, dtype=None):
    rows, columns = (weights(x.shape[d], g.shape[d], clamped=clamped) for d in (1, 2))
    rows, columns = (w.to(dtype or g.dtype).to(g.dtype) for w in (rows, columns))
    return rows.mT @ g @ columns


def averages(x):
    return F.adaptive_avg_pool1d(x, 3)


def averages_backward(g, x, *, accumulated=True):
    size, count = x.shape[-1], g.shape[-1]
    grad = torch.zeros_like(x)
    for i in range(count):
        first, last = i * size // count, -(-(i + 1) * size // count)
        share = g[..., i : i + 1] / (last - first)
        grad[..., first:last] = (grad[..., first:last] if accumulated else 0) + share
    return grad


def is_inside(x, zero):
    level = (x / SCALE + zero).round()
    return (level >= LOWEST) & (level <= HIGHEST)


def quantize(x):
    value = ((x / SCALE + ZERO).round().clamp(LOWEST, HIGHEST) - ZERO) * SCALE
    straight = torch.where(is_inside(x, ZERO), x, x.detach())
    return straight + (value - straight).detach()


def quantize_backward(g, x, *, zero=ZERO):
    return g * is_inside(x, zero)


OPERATIONS = [
    Formulas(
        "bilinear resizing",
        resize,
        lambda: {"x": torch.randn(2, 4, 3)},
        resize_backward,
        (
            Mistake(
                "bilinear resizing, no clamp at the border",
                lambda g, x: resize_backward(g, x, clamped=False),
                named="places before the first pixel are extrapolated: wrong in the first two rows and columns",
                kinds=("only at borders", "only at some indices"),
                named_words=(r"border", r"\bfirst\b", r"rows? (\[)?0", r"edge"),
                located=(r"gradient of x", r"first|rows? (\[)?0|column|\[\d, [01], \d\]|border"),
            ),
            Mistake(
                "bilinear resizing, weights in half precision",
                lambda g, x: resize_backward(g, x, dtype=torch.float16),
                named="the weights are rounded to float16",
                kinds=("only in one dtype",),
                named_words=(r"float16", r"\bhalf\b", r"precision|exact"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "averages of overlapping windows",
        averages,
        lambda: {"x": torch.randn(2, 3, 7)},
        averages_backward,
        (
            Mistake(
                "averages of overlapping windows, overwritten",
                lambda g, x: averages_backward(g, x, accumulated=False),
                named="elements 2 and 4, which are in two windows, get the gradient of the last window only",
                kinds=("missing term", "only at some indices"),
                named_words=(r"missing", r"no effect", r"\b2\b.*\b4\b"),
                located=(r"gradient of x", r", [24]\]|\b2\b.*\b4\b"),
            ),
        ),
    ),
    Formulas(
        "quantization with a zero point",
        quantize,
        lambda: {"x": torch.randn(5, 8)},
        quantize_backward,
        (
            Mistake(
                "quantization with a zero point, mask without it",
                lambda g, x: quantize_backward(g, x, zero=0),
                named="the mask of the clamp lacks the zero point: wrong for x in (0.45, 1.05) and (-1.95, -1.35)",
                kinds=("only for some values", "another operand", "step left out"),
                named_words=(
                    r"\bx [<>]=?",
                    r"< x",
                    r"add.*left out",
                    r"zero.?point",
                    r"between",
                    r"\bwhere\b.*left out",
                    r"output (is|=)",
                ),
                located=(r"gradient of x", r"0\.[4-7]|1\.[01]|add|output|-0\.6"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
