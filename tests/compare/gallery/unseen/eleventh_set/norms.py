"""Normalizations: by the largest magnitude, by the RMS of groups, gated and followed by a linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def over_largest(x):
    return x / x.abs().amax(1, keepdim=True)


def over_largest_backward(g, x, *, signed=True):
    largest = x.abs().amax(1, keepdim=True)
    share = (x.abs() == largest).to(x.dtype)
    share = share / share.sum(1, keepdim=True)
    grad_largest = -(g * x).sum(1, keepdim=True) / largest**2
    return g / largest + share * grad_largest * (x.sign() if signed else 1)


def rms(x):
    return (x * x).mean(-1, keepdim=True).sqrt()


def of_groups(x, gain):
    return x / rms(x) * gain


def of_groups_backward(g, x, gain, *, gain_in_mean=True):
    y = x / rms(x)
    scaled = g * gain
    in_mean = scaled if gain_in_mean else g
    return (scaled - y * (in_mean * y).mean(-1, keepdim=True)) / rms(x), (g * y).sum(0)


def gated(x, gate, weight):
    return x / rms(x) * F.silu(gate) @ weight.mT


def gated_backward(g, x, gate, weight, *, gate_recomputed=True):
    y = x / rms(x)
    s = gate.sigmoid()
    grad = g @ weight
    scaled = grad * gate * s
    grad_x = (scaled - y * (scaled * y).mean(-1, keepdim=True)) / rms(x)
    grad_gate = grad * y * s * (1 + gate * (1 - s))
    return grad_x, grad_gate, g.mT @ (y * gate * s if gate_recomputed else y)


OPERATIONS = [
    Formulas(
        "rows over their largest magnitude",
        over_largest,
        lambda: {"x": torch.randn(4, 6)},
        over_largest_backward,
        (
            Mistake(
                "rows over their largest magnitude, sign",
                lambda g, x: over_largest_backward(g, x, signed=False),
                named="the derivative of |x| is taken as 1 for the divisor: wrong at a negative largest element",
                kinds=(
                    "factor of one term",
                    "step left out",
                    "only for some values",
                    "only at some indices",
                    "missing term",
                ),
                named_words=(r"\babs\b", r"\bsign\b", r"magnitude", r"\bx < 0"),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "RMS of groups with a gain",
        of_groups,
        lambda: {"x": torch.randn(3, 2, 5), "gain": 0.5 + torch.rand(2, 5)},
        of_groups_backward,
        (
            Mistake(
                "RMS of groups with a gain, gain left out of the mean",
                lambda g, x, gain: of_groups_backward(g, x, gain, gain_in_mean=False),
                named="the term with the mean uses the incoming gradient before it is multiplied by the gain",
                kinds=("step left out", "another operand", "factor of one term", "missing term"),
                named_words=(
                    r"\bgain\b",
                    r"\bmul\b.*(left out|missing)|(left out|missing|without).*\bmul\b",
                    r"incoming gradient.*(instead|in (the )?place)|(instead|in (the )?place).*incoming gradient",
                ),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "gated norm and a linear layer",
        gated,
        lambda: {"x": torch.randn(5, 4), "gate": torch.randn(5, 4), "weight": torch.randn(3, 4)},
        gated_backward,
        (
            Mistake(
                "gated norm and a linear layer, recomputed without the gate",
                lambda g, *inputs: gated_backward(g, *inputs, gate_recomputed=False),
                named="the gradient of weight uses the normalized x before the gate as the input of the linear layer",
                kinds=("step left out", "another operand"),
                named_words=(r"\bsilu\b", r"\bgate\b", r"\bmul\b.*(left out|missing)|(left out|without).*\bmul\b"),
                located=(r"gradient of weight",),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
