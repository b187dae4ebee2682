"""Recurrent cells: a GRU cell, a sequence with a forget gate."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def gru(a, b, h):
    """GRU cell for the gates' parts a of the input and b of the state (N, 3 D), and the state h (N, D)."""
    ar, az, an = a.chunk(3, 1)
    br, bz, bn = b.chunk(3, 1)
    r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
    return (1 - z) * torch.tanh(an + r * bn) + z * h


def gru_backward(g, a, b, h, *, gated=True, direct=True):
    ar, az, an = a.chunk(3, 1)
    br, bz, bn = b.chunk(3, 1)
    r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
    n = torch.tanh(an + r * bn)
    grad_n = g * (1 - z) * (1 - n * n)
    grad_r, grad_z = grad_n * bn * r * (1 - r), g * (h * direct - n) * z * (1 - z)
    grad_b = torch.cat([grad_r, grad_z, grad_n * r if gated else grad_n], 1)
    return torch.cat([grad_r, grad_z, grad_n], 1), grad_b, g * z


def forgetful(x, u):
    """h[t] = f[t] h[t-1] + (1 - f[t]) tanh(x[t]) with f = sigmoid(u), for x and u (N, T, D)."""
    f, c = torch.sigmoid(u), torch.tanh(x)
    h, steps = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = f[:, t] * h + (1 - f[:, t]) * c[:, t]
        steps.append(h)
    return torch.stack(steps, 1)


def forgetful_backward(g, x, u, *, previous=True, carried=True):
    f, c, h = torch.sigmoid(u), torch.tanh(x), forgetful(x, u)
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    carry, grads = torch.zeros_like(g[:, 0]), []
    for t in reversed(range(x.shape[1])):
        total = g[:, t] + carry
        grads.insert(0, total)
        carry = f[:, t] * total if carried else torch.zeros_like(total)
    grad_h = torch.stack(grads, 1)
    grad_f = grad_h * ((before if previous else h) - c)
    return grad_h * (1 - f) * (1 - c * c), grad_f * f * (1 - f)


OPERATIONS = [
    Formulas(
        "GRU cell",
        gru,
        lambda: {"a": torch.randn(3, 6), "b": torch.randn(3, 6), "h": torch.randn(3, 2)},
        gru_backward,
        (
            Mistake(
                "GRU cell, reset gate",
                lambda g, a, b, h: gru_backward(g, a, b, h, gated=False),
                named="the third part of b's gradient lacks the factor r",
                kinds=("missing term", "only at some indices"),
                named_words=(
                    r"factor.*(sigmoid|r\b).*missing",
                    r"(derivative|argument).*mul.*left out",
                    r"through .*mul.*missing",
                ),
                located=(r"gradient of b",),
            ),
            Mistake(
                "GRU cell, state left out of the gate",
                lambda g, a, b, h: gru_backward(g, a, b, h, direct=False),
                named="the gradient of the update gate lacks the part z h",
                kinds=("missing term",),
                named_words=(r"(mul|z \* h).*missing", r"missing.*(mul|z \* h|\bh\b)"),
                located=(r"gradient of a", r"\bb\b"),
            ),
        ),
    ),
    Formulas(
        "forget gate",
        forgetful,
        lambda: {"x": torch.randn(2, 4, 3), "u": torch.randn(2, 4, 3)},
        forgetful_backward,
        (
            Mistake(
                "forget gate, this step's state",
                lambda g, x, u: forgetful_backward(g, x, u, previous=False),
                named="the gradient of u uses h[t] instead of h[t - 1]",
                kinds=("another operand",),
                named_words=(r"(next|previous) step", r"the result of .* is used instead of", r"h\[t"),
                located=(r"gradient of u", r"line|h\[t|step"),
            ),
            Mistake(
                "forget gate, not carried back",
                lambda g, x, u: forgetful_backward(g, x, u, carried=False),
                named="the gradient is not carried back to earlier steps",
                kinds=("missing term",),
                named_words=(
                    r"(carr|earlier|later|previous|step)",
                    r"through .*(h|mul).*missing",
                    r"output's row is not the input's row",
                ),
                located=(r"gradient of x", r"\bu\b"),
            ),
        ),
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
