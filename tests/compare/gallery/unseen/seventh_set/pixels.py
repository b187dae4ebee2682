"""Pixels: colours of a ray, channels in another order, total variation, rounding to powers of 2."""

from __future__ import annotations

import math

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

GROUPS = 2


def light(alpha):
    """Share of the light that reaches each sample of a ray."""
    return torch.cat([torch.ones_like(alpha[:, :1]), (1 - alpha[:, :-1]).cumprod(1)], 1)


def composite(alpha, color):
    return ((light(alpha) * alpha)[..., None] * color).sum(1)


def composite_backward(g, alpha, color, *, through_light=True):
    reaching = light(alpha)
    grad_weight = (g[:, None] * color).sum(2)
    share = reaching * alpha * grad_weight
    behind = share.flip(1).cumsum(1).flip(1) - share
    grad_alpha = reaching * grad_weight
    grad_alpha = grad_alpha - behind / (1 - alpha) if through_light else grad_alpha
    return grad_alpha, (reaching * alpha)[..., None] * g[:, None]


def exchange_channels(x, groups):
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def exchange_groups(x):
    return exchange_channels(x, GROUPS)


def variation(x):
    return x.diff(dim=1).abs().sum((1, 2)) + x.diff(dim=2).abs().sum((1, 2))


def variation_backward(g, x, *, sign=torch.sign):
    grad = torch.zeros_like(x)
    rows, columns = (g[:, None, None] * sign(x.diff(dim=d)) for d in (1, 2))
    grad[:, 1:] += rows
    grad[:, :-1] -= rows
    grad[:, :, 1:] += columns
    grad[:, :, :-1] -= columns
    return grad


def power_of_2(x):
    exponent = x.log2()
    return torch.exp2(exponent + (exponent.round() - exponent).detach())


OPERATIONS = [
    Formulas(
        "colours of a ray",
        composite,
        lambda: {"alpha": 0.1 + 0.8 * torch.rand(4, 5), "color": torch.rand(4, 5, 3)},
        composite_backward,
        (
            Mistake(
                "colours of a ray, light as a constant",
                lambda g, alpha, color: composite_backward(g, alpha, color, through_light=False),
                named="the light that reaches later samples is treated as a constant",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"cumprod"),
                located=(r"gradient of alpha", r"cumprod|cat|mul|argument"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "channels in another order",
        exchange_groups,
        lambda: {"x": torch.randn(2, 6, 3)},
        lambda g, x: exchange_channels(g, x.shape[1] // GROUPS),
        (
            Mistake(
                "channels in another order, forward again",
                lambda g, x: exchange_groups(g),
                named="backward applies forward's order of the channels again instead of its inverse",
                kinds=("not transposed", "permuted"),
                named_words=(
                    r"permut",
                    r"\border\b",
                    r"other places",
                    r"transpos",
                    r"derivative of forward",
                    r"inverse",
                ),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "total variation",
        variation,
        lambda: {"x": torch.randint(0, 4, (2, 5, 4)).float()},
        variation_backward,
        (
            Mistake(
                "total variation, equal neighbours",
                lambda g, x: variation_backward(g, x, sign=lambda d: 2.0 * (d >= 0) - 1),
                named="the derivative of |d| at d = 0, for equal neighbours, is 1; native has 0",
                kinds=("only at ties", "only at zeros", "only for some values", "only at bounds"),
                named_words=(r"\btie", r"equal", r"\bzero", r"\b0\b"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "power of 2",
        power_of_2,
        lambda: {"x": 0.2 + 3 * torch.rand(5, 6)},
        lambda g, x: g * power_of_2(x) / x,
        (
            Mistake(
                "power of 2, derivative of log2",
                lambda g, x: math.log(2) * g * power_of_2(x) / x,
                named="the derivative of log2 lacks the division by ln 2: 0.693 times the expected gradient",
                kinds=("constant factor", "step left out"),
                named_words=(r"0\.69", r"ln\(?2|log\(?2|ln 2"),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
