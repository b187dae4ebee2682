"""Pixels: shuffles, windows, transposed convolutions, wavelets."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def shuffle(x):
    return F.pixel_shuffle(x, 2)


def shuffle_other_order(g, x):
    """The places within a block come first in the channels, not last."""
    n, c, h, w = g.shape
    return g.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(x.shape)


def windows(x):
    """Windows of three columns of x (N, L)."""
    return x.unfold(1, 3, 1).clone()


def windows_backward(g, x, *, added=True):
    grad = torch.zeros_like(x)
    for k in range(3):
        place = slice(k, k + g.shape[1])
        grad[:, place] = grad[:, place] + g[:, :, k] if added else g[:, :, k]
    return grad


def transposed(x, w):
    return F.conv_transpose1d(x, w, stride=2)


def transposed_backward(g, x, w, *, flipped=False):
    size = w.shape[2]
    patches = g.unfold(2, size, 2)
    if flipped:
        patches = patches.flip(3)
    return F.conv1d(g, w, stride=2), torch.einsum("ncl,nolk->cok", x, patches)


def haar(x):
    """Sums and differences of neighbours."""
    a, b = x[:, ::2], x[:, 1::2]
    return torch.cat([a + b, a - b], 1) * 0.5**0.5


def haar_backward(g, x, *, interleaved=True):
    a, b = g.chunk(2, 1)
    pair = (a + b, a - b)
    return (torch.stack(pair, 2).flatten(1) if interleaved else torch.cat(pair, 1)) * 0.5**0.5


OPERATIONS = [
    Formulas(
        "pixel shuffle",
        shuffle,
        lambda: torch.randn(2, 8, 2, 3),
        lambda g, x: F.pixel_unshuffle(g, 2),
        (
            Mistake(
                "pixel shuffle, other order",
                shuffle_other_order,
                named="the channels of the gradient are in another order: place before channel",
                kinds=("permuted",),
                named_words=(r"order|permut|other places|other elements|transpos",),
                located=(r"gradient of (x|input 0)", r"channel|dimension 1"),
            ),
        ),
    ),
    Formulas(
        "windows of columns",
        windows,
        lambda: torch.randn(2, 6),
        windows_backward,
        (
            Mistake(
                "windows of columns, overwritten",
                lambda g, x: windows_backward(g, x, added=False),
                named="where windows overlap, the last one overwrites the others: assigned, not added",
                kinds=("missing term",),
                named_words=(r"assign|overw|overlap", r"contributions.*missing", r"missing.*where"),
                located=(r"gradient of (x|input 0)", r"output|column"),
            ),
        ),
    ),
    Formulas(
        "transposed convolution",
        transposed,
        lambda: {"x": torch.randn(2, 2, 4), "w": torch.randn(2, 3, 3)},
        transposed_backward,
        (
            Mistake(
                "transposed convolution, flipped",
                lambda g, x, w: transposed_backward(g, x, w, flipped=True),
                named="the gradient of w is flipped along the kernel",
                kinds=("flipped",),
                named_words=(r"flip|revers",),
                located=(r"gradient of w", r"column"),
            ),
        ),
    ),
    Formulas(
        "Haar wavelet",
        haar,
        lambda: torch.randn(3, 8),
        haar_backward,
        (
            Mistake(
                "Haar wavelet, not interleaved",
                lambda g, x: haar_backward(g, x, interleaved=False),
                named="sums and differences are one after the other instead of interleaved",
                kinds=("permuted",),
                named_words=(r"order|permut|other places|interleav",),
                located=(r"gradient of (x|input 0)", r"column"),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
