"""Indexing: an embedding with a padding index, means of segments, means of sequences with lengths."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

SEGMENTS = 3


def padded_embedding(ids, weight):
    return F.embedding(ids, weight, padding_idx=0)


def padded_embedding_backward(g, ids, weight, *, padding=True, added=True):
    g = g.flatten(0, 1)
    if added:
        grad = torch.zeros_like(weight).index_add(0, ids.flatten(), g)
    else:
        grad = torch.zeros_like(weight).index_copy(0, ids.flatten(), g)
    if padding:
        grad[0] = 0
    return None, grad


def segment_means(x, segment):
    total = torch.zeros(SEGMENTS, x.shape[1], dtype=x.dtype).index_add(0, segment, x)
    return total / torch.bincount(segment, minlength=SEGMENTS).clamp(min=1)[:, None]


def segment_means_backward(g, x, segment, *, divided=True, shift=0):
    counts = torch.bincount(segment, minlength=SEGMENTS).clamp(min=1)
    rows = (g / counts[:, None] if divided else g)[(segment + shift) % SEGMENTS]
    return rows, None


def sequence_means(x, lengths):
    """Mean of the first lengths[n] steps of x[n] (T, D)."""
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    return (x * mask[:, :, None]).sum(1) / lengths[:, None]


def sequence_means_backward(g, x, lengths, *, masked=True, own_length=True):
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    g = g / (lengths[:, None] if own_length else x.shape[1])
    return g[:, None] * mask[:, :, None] if masked else g[:, None].expand_as(x), None


OPERATIONS = [
    Formulas(
        "padded embedding",
        padded_embedding,
        lambda: {"ids": torch.tensor([[0, 1, 2, 2], [4, 1, 0, 0], [3, 3, 2, 5]]), "weight": torch.randn(6, 3)},
        padded_embedding_backward,
        (
            Mistake(
                "padded embedding, padding counts",
                lambda g, ids, w: padded_embedding_backward(g, ids, w, padding=False),
                named="row 0, the padding, gets a gradient and should get none",
                kinds=("only at some indices", "step left out"),
                named_words=(r"row (is )?0", r"padding"),
                located=(r"gradient of weight", r"row|padding"),
            ),
            Mistake(
                "padded embedding, overwritten",
                lambda g, ids, w: padded_embedding_backward(g, ids, w, added=False),
                named="of several uses of a row only the last one counts: assigned, not added",
                kinds=("missing term",),
                named_words=(r"assign", r"overw", r"contributions.*missing", r"accumulat"),
                located=(r"gradient of weight", r"output|contribution"),
            ),
        ),
    ),
    Formulas(
        "means of segments",
        segment_means,
        lambda: {"x": torch.randn(7, 2), "segment": torch.tensor([0, 1, 1, 2, 2, 2, 2])},
        segment_means_backward,
        (
            Mistake(
                "means of segments, not divided",
                lambda g, x, s: segment_means_backward(g, x, s, divided=False),
                named="not divided by the number of rows of the segment",
                kinds=("missing term", "factor by element", "constant factor"),
                named_words=(r"\bdiv", r"count", r"factors? .*(1, 2|2, 2, 4|segment)"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "means of segments, other segment",
                lambda g, x, s: segment_means_backward(g, x, s, shift=1),
                named="each row gets the gradient of the next segment",
                kinds=("permuted", "shifted", "another operand"),
                named_words=(
                    r"(next|other|another|wrong) (segment|index|row)",
                    r"(shift|rotat|permut|order)",
                    r"other elements of the incoming gradient",
                    r"off by one",
                ),
                located=(r"gradient of x", r"row|index|indices|segment|dimension 0"),
            ),
        ),
    ),
    Formulas(
        "means of sequences",
        sequence_means,
        lambda: {"x": torch.randn(4, 5, 2), "lengths": torch.tensor([2, 5, 3, 4])},
        sequence_means_backward,
        (
            Mistake(
                "means of sequences, unmasked",
                lambda g, x, n: sequence_means_backward(g, x, n, masked=False),
                named="steps after the length get a gradient: the mask is ignored",
                kinds=("step left out", "only for some values"),
                named_words=(r"mask", r"row.*(>=?|<|is not).*lengths", r"lengths"),
                located=(r"gradient of x", r"lengths|mask"),
            ),
            Mistake(
                "means of sequences, same length",
                lambda g, x, n: sequence_means_backward(g, x, n, own_length=False),
                named="divided by T instead of the length of the sequence",
                kinds=("constant factor", "factor by element", "another operand"),
                named_words=(r"lengths", r"examples? have different factors", r"\bdiv"),
                located=(r"gradient of x", r"example|lengths|dimension 0|div"),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
