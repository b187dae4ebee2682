"""Resampling and padding: linear upsampling, repeated borders, averages at borders."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

BEFORE, AFTER = 2, 1


def upsample(x):
    return F.interpolate(x, scale_factor=2, mode="linear", align_corners=False)


def upsample_backward(g, x, *, clamped=True):
    """Outputs 2 j and 2 j + 1 are x[j] * 3/4 plus x[j - 1] or x[j + 1] * 1/4; borders count fully."""
    first, second = g[..., ::2], g[..., 1::2]
    grad = 0.75 * (first + second)
    grad[..., :-1] += 0.25 * first[..., 1:]
    grad[..., 1:] += 0.25 * second[..., :-1]
    if clamped:
        grad[..., 0] += 0.25 * first[..., 0]
        grad[..., -1] += 0.25 * second[..., -1]
    return grad


def nearest_backward(g, x):
    return g[..., ::2] + g[..., 1::2]


def repeated(x):
    return F.pad(x, (BEFORE, AFTER), mode="replicate")


def repeated_backward(g, x):
    grad = g[..., BEFORE:-AFTER].clone()
    grad[..., 0] += g[..., :BEFORE].sum(-1)
    grad[..., -1] += g[..., -AFTER:].sum(-1)
    return grad


def circular_backward(g, x):
    grad = g[..., BEFORE:-AFTER].clone()
    grad[..., -BEFORE:] += g[..., :BEFORE]
    grad[..., :AFTER] += g[..., -AFTER:]
    return grad


def averages(x):
    """Averages of windows of three columns; at borders over those that exist."""
    return F.avg_pool1d(x, 3, 1, 1, count_include_pad=False)


def averages_backward(g, x, *, counted=True):
    counts = torch.full_like(g, 3)
    if counted:
        counts[..., 0] = counts[..., -1] = 2
    g = F.pad(g / counts, (1, 1))
    return g[..., :-2] + g[..., 1:-1] + g[..., 2:]


OPERATIONS = [
    Formulas(
        "linear upsampling",
        upsample,
        lambda: torch.randn(2, 3, 5),
        upsample_backward,
        (
            Mistake(
                "linear upsampling, nearest",
                nearest_backward,
                named="the gradient of upsampling by repetition instead of by linear interpolation",
                kinds=("another operand", "wrong sum"),
                named_words=(
                    r"nearest|interpolat|repe",
                    r"(entries|weights?|coefficients?|derivative).*(wrong|missing|other|1 instead)",
                ),
                located=(r"gradient of (x|input 0)", r"column|interpolat|output"),
            ),
            Mistake(
                "linear upsampling, borders",
                lambda g, x: upsample_backward(g, x, clamped=False),
                named="the weight 1/4 that borders give back to the first and last column is missing",
                kinds=("only at borders", "missing term", "few elements"),
                named_words=(r"first.*last|border|edge", r"column is (0|0 or 4)", r"contribution.*missing"),
                located=(r"gradient of (x|input 0)", r"column|border|first"),
            ),
        ),
    ),
    Formulas(
        "repeated borders",
        repeated,
        lambda: torch.randn(2, 2, 5),
        repeated_backward,
        (
            Mistake(
                "repeated borders, cropped",
                lambda g, x: g[..., BEFORE:-AFTER].clone(),
                named="what the borders repeat gets no gradient: g is cropped",
                kinds=("missing term", "only at borders"),
                named_words=(
                    r"(contributions? of|columns?).*(0, 1, 7|0, 1).*missing",
                    r"crop|border|padding",
                    r"missing.*column",
                ),
                located=(r"gradient of (x|input 0)", r"column|border|first|output"),
            ),
            Mistake(
                "repeated borders, circular",
                circular_backward,
                named="the borders' gradient goes to the opposite end, as for circular padding",
                kinds=("permuted", "another operand"),
                named_words=(r"circular|wrap|opposite|other end", r"(other|wrong|moved).*(place|column)"),
                located=(r"gradient of (x|input 0)", r"column|border|circular"),
            ),
        ),
    ),
    Formulas(
        "averages at borders",
        averages,
        lambda: torch.randn(2, 2, 6),
        averages_backward,
        (
            Mistake(
                "averages at borders, divided by 3",
                lambda g, x: averages_backward(g, x, counted=False),
                named="borders are divided by 3 instead of 2",
                kinds=("factor of one term", "constant factor", "only at borders", "another operand"),
                named_words=(
                    r"(0\.6667|0\.666667|2/3)",
                    r"border|first.*last|columns? (is )?0",
                    r"count_include_pad|True instead of False",
                ),
                located=(r"gradient of (x|input 0)", r"column|border|count_include_pad|True instead of False"),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
