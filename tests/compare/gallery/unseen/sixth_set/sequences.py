"""Tables and sequences: tied embeddings, the mean of kept steps, nearest resampling, signs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def tied(table, index):
    return math.sqrt(table.shape[1]) * table[index] @ table.mT


def tied_backward(g, table, index, *, scaled=True):
    scale = math.sqrt(table.shape[1])
    rows = (scale if scaled else 1) * g @ table
    return (scale * g.mT @ table[index]).index_add(0, index, rows), None


def kept_mean(x, kept):
    return (x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)


def kept_mean_backward(g, x, kept, *, total=None):
    total = kept.sum(1, keepdim=True) if total is None else total
    return (g / total)[:, None] * kept[..., None], None


def kept_mean_in_place(g, x, kept):
    x.mul_(kept[..., None])
    return kept_mean_backward(g, x, kept)


def nearest(x):
    return F.interpolate(x, size=7)


def nearest_backward(g, x, *, averaged=False):
    source = torch.arange(7) * x.shape[2] // 7
    grad = torch.zeros_like(x).index_add(2, source, g)
    return grad / source.bincount() if averaged else grad


def signs(x):
    clamped = x.clamp(-1, 1)
    return clamped + (x.sign() - clamped).detach()


def signs_backward(g, x, *, clamped=True):
    return g * (x.abs() < 1) if clamped else g.clone()


OPERATIONS = [
    Formulas(
        "tied embeddings",
        tied,
        lambda: {"table": torch.randn(6, 5), "index": torch.tensor([2, 0, 5, 2])},
        tied_backward,
        (
            Mistake(
                "tied embeddings, scale of the lookup",
                lambda g, table, index: tied_backward(g, table, index, scaled=False),
                named="the scale sqrt(5) is missing in the term of the lookup",
                kinds=("factor of one term", "step left out"),
                named_words=(r"0\.447", r"sqrt\(?5", r"2\.23", r"mul.*left out"),
                located=(r"gradient of table", r"index|mul|gather|rows? (\[)?[025]|select"),
            ),
        ),
    ),
    Formulas(
        "mean of kept steps",
        kept_mean,
        lambda: {
            "x": torch.randn(3, 5, 2),
            "kept": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]),
        },
        kept_mean_backward,
        (
            Mistake(
                "mean of kept steps, divided by all",
                lambda g, x, kept: kept_mean_backward(g, x, kept, total=x.shape[1]),
                named="divided by 5, the number of steps, instead of the number of kept steps of each row",
                kinds=("another operand", "factor by element", "only at some indices", "only for some values"),
                named_words=(r"(by|instead|times).*\b5\b", r"each (row|example|slice)", r"\bdiv\b"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "mean of kept steps, masked in place",
                kept_mean_in_place,
                named="backward multiplies its saved input by the mask in place",
                kinds=("changes its input", "raises", "depends on earlier calls"),
                named_words=(r"in.?place", r"modif", r"changes"),
                located=(r"\bx\b|input",),
            ),
        ),
    ),
    Formulas(
        "nearest resampling",
        nearest,
        lambda: {"x": torch.randn(2, 3, 4)},
        nearest_backward,
        (
            Mistake(
                "nearest resampling, mean",
                lambda g, x: nearest_backward(g, x, averaged=True),
                named="the mean of the copies' gradients instead of the sum: a factor 1/2, but for the last column",
                kinds=("factor by element", "only at some indices", "wrong sum"),
                named_words=(r"0\.5|1/2|\bhalf\b", r"\bmean\b", r"columns? 0"),
                located=(r"gradient of x", r"column|dimension 2|, [012]\]|last"),
            ),
        ),
    ),
    Formulas(
        "signs",
        signs,
        lambda: {"x": 1.5 * torch.randn(5, 6)},
        signs_backward,
        (
            Mistake(
                "signs, not clamped",
                lambda g, x: signs_backward(g, x, clamped=False),
                named="the gradient is passed where |x| > 1; it should be 0",
                kinds=("only for some values", "step left out", "passes the incoming gradient through"),
                named_words=(r"\|x\| >=? ?[01]", r"clamp", r"x >=? ?1.*x <=? ?-1|x <=? ?-1.*x >=? ?1"),
                located=(r"gradient of x",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
