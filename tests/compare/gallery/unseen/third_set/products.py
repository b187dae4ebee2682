"""Distances and einsums: cosines of all pairs, a bilinear form, a one-dimensional interpolation of a table."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def cosines(a, b):
    return (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).mT


def cosines_backward(g, a, b, *, projected=True, own_norm=True):
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    y = cosines(a, b)
    grad_a = (g @ (b / norm_b) - projected * (g * y).sum(1, keepdim=True) * a / norm_a) / norm_a
    grad_b = g.mT @ (a / norm_a) - (g * y).sum(0)[:, None] * b / norm_b
    return grad_a, grad_b / norm_b if own_norm else grad_b


def bilinear(x, w, z):
    return torch.einsum("ni,kij,nj->nk", x, w, z)


def bilinear_backward(g, x, w, z):
    return (
        torch.einsum("nk,kij,nj->ni", g, w, z),
        torch.einsum("nk,ni,nj->kij", g, x, z),
        torch.einsum("nk,kij,ni->nj", g, w, x),
    )


def lookup(table, position):
    """Values of the table (L, D), linear between its rows, at the positions (N)."""
    left = position.detach().floor().clamp(0, len(table) - 2).long()
    weight = (position - left)[:, None]
    return (1 - weight) * table[left] + weight * table[left + 1]


def lookup_backward(g, table, position, *, exchanged=False, difference=True):
    left = position.floor().clamp(0, len(table) - 2).long()
    weight = (position - left)[:, None]
    low, high = (weight, 1 - weight) if exchanged else (1 - weight, weight)
    grad = torch.zeros_like(table).index_add(0, left, g * low).index_add(0, left + 1, g * high)
    slope = table[left + 1] - table[left] if difference else table[left + 1]
    return grad, (g * slope).sum(1)


OPERATIONS = [
    Formulas(
        "cosines of all pairs",
        cosines,
        lambda: {"a": torch.randn(3, 4), "b": torch.randn(5, 4)},
        cosines_backward,
        (
            Mistake(
                "cosines of all pairs, not projected",
                lambda g, a, b: cosines_backward(g, a, b, projected=False),
                named="the derivative of the norm of a is missing",
                kinds=("missing term",),
                named_words=(r"norm.*(missing|constant)", r"missing.*norm", r"missing term is c · a"),
                located=(r"gradient of a", r"norm|c · a"),
            ),
            Mistake(
                "cosines of all pairs, not divided",
                lambda g, a, b: cosines_backward(g, a, b, own_norm=False),
                named="the gradient of b is not divided by the norm of b",
                kinds=("missing term", "factor by element", "constant factor"),
                named_words=(r"norm", r"\bdiv", r"(rows|examples|row) .*factor|factor.* (row|example)"),
                located=(r"gradient of b", r"norm|row|example"),
            ),
        ),
    ),
    Formulas(
        "bilinear form",
        bilinear,
        lambda: {"x": torch.randn(4, 3), "w": torch.randn(2, 3, 3), "z": torch.randn(4, 3)},
        bilinear_backward,
        (
            Mistake(
                "bilinear form, transposed weight",
                lambda g, x, w, z: (torch.einsum("nk,kji,nj->ni", g, w, z), *bilinear_backward(g, x, w, z)[1:]),
                named="the gradient of x uses the transpose of w",
                kinds=("transposed", "not transposed"),
                named_words=(r"transpos",),
                located=(r"gradient of x", r"\bw\b"),
            ),
            Mistake(
                "bilinear form, incoming gradient summed",
                lambda g, x, w, z: (
                    *bilinear_backward(g, x, w, z)[:2],
                    torch.einsum("nk,kij,ni->nj", g.sum(1, keepdim=True).expand_as(g), w, x),
                ),
                named="the gradient of z uses the sum of g over k with each w[k]",
                kinds=("wrong sum",),
                named_words=(r"sum", r"incoming gradient.*(sum|columns)"),
                located=(r"gradient of z", r"column|incoming gradient"),
            ),
        ),
    ),
    Formulas(
        "table lookup",
        lookup,
        lambda: {"table": torch.randn(5, 3), "position": 4 * torch.rand(6)},
        lookup_backward,
        (
            Mistake(
                "table lookup, weights exchanged",
                lambda g, t, p: lookup_backward(g, t, p, exchanged=True),
                named="the weights of the left and the right neighbour are exchanged in the table's gradient",
                kinds=("another operand", "swapped"),
                named_words=(r"exchang|swap", r"1 - .* is used instead", r"is used instead of"),
                located=(r"gradient of table", r"line|weight|sub|mul"),
            ),
            Mistake(
                "table lookup, slope",
                lambda g, t, p: lookup_backward(g, t, p, difference=False),
                named="the gradient of position lacks the part through 1 - weight, minus the left neighbour",
                kinds=("missing term",),
                named_words=(r"(1 - weight|sub|first|mul).*missing", r"missing.*(1 - weight|sub)"),
                located=(r"gradient of position", r"sub|weight|mul|line"),
            ),
        ),
        options={"whole_numbers": False},
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
