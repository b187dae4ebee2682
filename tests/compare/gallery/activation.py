"""Wrong element-wise functions: ReLU, exp, tanh, square and others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery.wrong_function import WrongFunction, hand_written, randn, wrong_function


def elementwise(
    name: str,
    kinds: str | set[str],
    native: Callable[..., Any],
    backward: Callable[..., Any],
    expected_words: str | tuple[str, ...] = (),
    shape: tuple[int, ...] = (6, 7),
    **options: Any,
) -> WrongFunction:
    return wrong_function(
        name, kinds, "x", hand_written(native, backward), native, randn(x=shape), expected_words, **options
    )


def signed_square(x: Tensor) -> Tensor:
    return x * x.abs()


def zero_near_zero(g: Tensor, x: Tensor) -> Tensor:
    """Set the gradient to 0 near 0, a guard that this function does not need."""
    return torch.where(x.abs() < 0.1, 0, 2 * g * x.abs())


def without_last_block(g: Tensor, x: Tensor) -> Tensor:
    """Compute ``n // 8`` blocks of 8 elements, and leave the rest at 0."""
    length = len(x) // 8 * 8
    return torch.cat([2 * g[:length] * x[:length], torch.zeros_like(x[length:])])


def sine_and_cosine(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sin(), x.cos()


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.125)


def gelu_backward(g: Tensor, x: Tensor) -> Tensor:
    """The correct backward of the exact GELU, x Φ(x)."""
    return g * (torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi))


def scale_by_t(x: Tensor, t: Tensor) -> Tensor:
    return x * t


ACTIVATION = [
    elementwise("ReLU: derivative 1 at 0", "only at zeros", F.relu, lambda g, x: g * (x >= 0)),
    elementwise("ReLU: no mask", "passes the incoming gradient through", F.relu, lambda g, x: g.clone()),
    elementwise("ReLU: the mask without the incoming gradient", "ignores the incoming gradient", F.relu,
                lambda g, x: (x > 0).to(g)),
    elementwise("ReLU: mask of the negative inputs", "another operand", F.relu, lambda g, x: g * (x < 0)),
    elementwise("leaky ReLU: slope on the wrong side", {"another operand", "only for some values"}, leaky,
                lambda g, x: torch.where(x < 0, g, g / 8), ("minus x", "where x > 0, and times 8 elsewhere")),
    elementwise("leaky ReLU: derivative 0 at 0", "only at zeros", leaky,
                lambda g, x: torch.where(x < 0, g / 8, g * (x > 0))),
    elementwise("clamp: five times the gradient at the bounds", "only at bounds", lambda x: x.clamp(-1, 1),
                lambda g, x: g * ((x.abs() < 1) + 5 * (x.abs() == 1)), "x is -1 or 1", shape=(6, 8)),
    elementwise("absolute value: x / |x|", {"only at zeros", "not finite"}, torch.abs, lambda g, x: g * x / x.abs()),
    elementwise("exp: the output without the incoming gradient", "ignores the incoming gradient", torch.exp,
                lambda g, x: x.exp()),
    elementwise("exp: backward of the identity", "passes the incoming gradient through", torch.exp,
                lambda g, x: g.clone()),
    elementwise("tanh: 1 - y instead of 1 - y²", "factor by element", torch.tanh, lambda g, x: g * (1 - x.tanh()),
                "(1 - tanh(x)); that is not the derivative"),
    elementwise("tanh: hyperbolic cosine not squared", "factor by element", torch.tanh, lambda g, x: g / x.cosh()),
    elementwise("tanh: y² - 1", "constant factor", torch.tanh, lambda g, x: g * (x.tanh() ** 2 - 1), "-1"),
    elementwise("square: x instead of 2 x", "constant factor", torch.square, lambda g, x: g * x, ("1/2", "0.5")),
    elementwise("square: 4 x instead of 2 x", "constant factor", torch.square, lambda g, x: 4 * g * x, "2"),
    elementwise("square: incoming gradient squared", "not linear in the incoming gradient", torch.square,
                lambda g, x: 2 * g * g * x),
    elementwise("cube: x² instead of 3 x²", "constant factor", lambda x: x**3, lambda g, x: g * x**2,
                ("1/3", "0.3333")),
    elementwise("cosine: sine without the minus sign", "constant factor", torch.cos, lambda g, x: g * x.sin(), "-1"),
    wrong_function(
        "GELU: tanh approximation instead of the exact form", "wrong output", "output",
        hand_written(lambda x: F.gelu(x, approximate="tanh"), gelu_backward), F.gelu, randn(x=(6, 7)),
    ),
    elementwise("x |x|: zero gradient near 0", "only for some values", signed_square, zero_near_zero, shape=(8, 9)),
    elementwise("x |x|: large inputs clamped", {"few elements", "only for some values"}, signed_square,
                lambda g, x: 2 * g * x.abs().clamp(max=2.1), shape=(8, 9), whole_numbers=False),
    elementwise("square in blocks of 8: last block left out", {"missing term", "only at some indices"}, torch.square,
                without_last_block, shape=(67,)),
    elementwise("sine and cosine: gradient of the second output left out", "missing term", sine_and_cosine,
                lambda g_sine, g_cosine, x: g_sine * x.cos()),
    wrong_function("detached from the graph", "none", "x", lambda x: x.detach().exp(), torch.exp, randn(x=(6, 7))),
    wrong_function(
        "product: gradients of the two factors exchanged", "swapped", "a",
        hand_written(torch.mul, lambda g, a, b: (g * a, g * b)), torch.mul, randn(a=(6, 7), b=(6, 7)),
        also_wrong=("b",),
    ),
    wrong_function(
        "quotient: wrong sign of the denominator's gradient", "constant factor", "b",
        hand_written(torch.div, lambda g, a, b: (g / b, g * a / b**2)), torch.div,
        lambda: {"a": torch.randn(6, 7), "b": torch.rand(6, 7) + 1}, "-1",
    ),
    wrong_function(
        "temperature: gradient of a mean", "constant factor", "t",
        hand_written(scale_by_t, lambda g, x, t: (g * t, (g * x).mean())), scale_by_t, randn(x=(5, 6), t=()),
        ("1/30", "0.0333"),
    ),
    wrong_function(
        "scale of each channel: summed without keepdim", "wrong shape", "scale",
        hand_written(torch.mul, lambda g, x, scale: (g * scale, (g * x).sum((0, 2, 3)))), torch.mul,
        randn(x=(2, 3, 4, 5), scale=(1, 3, 1, 1)),
    ),
]  # fmt: skip
