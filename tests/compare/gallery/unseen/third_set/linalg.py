"""Linear algebra: inverse, Kronecker product."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def inverse_backward(g, a):
    inverse = torch.linalg.inv(a)
    return -inverse.mT @ g @ inverse.mT


def kronecker_backward(g, a, b):
    g = g.view(a.shape[0], b.shape[0], a.shape[1], b.shape[1])
    return torch.einsum("ikjl,kl->ij", g, b), torch.einsum("ikjl,ij->kl", g, a)


def kronecker_exchanged(g, a, b):
    """The indices of a and b are exchanged where g is split."""
    exchanged = g.view(b.shape[0], a.shape[0], b.shape[1], a.shape[1])
    return torch.einsum("kilj,kl->ij", exchanged, b), kronecker_backward(g, a, b)[1]


def inverse_untransposed(g, a):
    inverse = torch.linalg.inv(a)
    return -inverse @ g @ inverse


OPERATIONS = [
    Formulas(
        "inverse",
        torch.linalg.inv,
        lambda: torch.randn(3, 3) + 3 * torch.eye(3),
        inverse_backward,
        (
            Mistake(
                "inverse, not transposed",
                inverse_untransposed,
                named="-A^-1 g A^-1 instead of -A^-T g A^-T: the inverse is not transposed",
                kinds=("transposed", "not transposed"),
                named_words=(r"transpos",),
                located=(r"gradient of (a|input 0)",),
            ),
            Mistake(
                "inverse, sign",
                lambda g, a: -inverse_backward(g, a),
                named="the sign is wrong",
                kinds=("constant factor",),
                named_words=(r"-1 times", r"sign"),
                located=(r"gradient of (a|input 0)",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "Kronecker product",
        torch.kron,
        lambda: {"a": torch.randn(2, 3), "b": torch.randn(3, 2)},
        kronecker_backward,
        (
            Mistake(
                "Kronecker product, other split",
                kronecker_exchanged,
                named="the incoming gradient is split into blocks of the shape of a instead of that of b",
                kinds=("permuted", "transposed", "another operand"),
                named_words=(r"(block|split|permut|other (places|elements)|exchang|order|transpos|reshap|view)",),
                located=(r"gradient of a",),
            ),
            Mistake(
                "Kronecker product, without a",
                lambda g, a, b: (kronecker_backward(g, a, b)[0], kronecker_backward(g, torch.ones_like(a), b)[1]),
                named="the gradient of b lacks the factor a",
                kinds=("missing term",),
                named_words=(r"factor a is missing", r"a = 1", r"\ba\b.*missing"),
                located=(r"gradient of b",),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
