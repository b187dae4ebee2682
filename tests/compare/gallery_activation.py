"""Wrong element-wise functions: ReLU, exp, tanh, square and others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compare.gallery_wrong import Wrong, hand_written, randn, wrong


def elementwise(
    name: str,
    kinds: str | set[str],
    native: Callable[..., Any],
    backward: Callable[..., Any],
    words: str | tuple[str, ...] = (),
    shape: tuple[int, ...] = (6, 7),
    **options: Any,
) -> Wrong:
    return wrong(name, kinds, "x", hand_written(native, backward), native, randn(x=shape), words, **options)


def signed_square(x: Tensor) -> Tensor:
    return x * x.abs()


def in_a_dead_zone(g: Tensor, x: Tensor) -> Tensor:
    """A guard against small numbers that nothing here asks for."""
    return torch.where(x.abs() < 0.1, 0, 2 * g * x.abs())


def without_the_tail(g: Tensor, x: Tensor) -> Tensor:
    """``n // 8`` blocks of 8, and nothing for the rest."""
    done = len(x) // 8 * 8
    return torch.cat([2 * g[:done] * x[:done], torch.zeros_like(x[done:])])


def sine_and_cosine(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sin(), x.cos()


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.125)


def gelu_backward(g: Tensor, x: Tensor) -> Tensor:
    """Right for GELU itself, x Φ(x)."""
    return g * (torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi))


def scaled(x: Tensor, t: Tensor) -> Tensor:
    return x * t


ACTIVATION = [
    elementwise("ReLU: derivative 1 at 0", "only at zeros", F.relu, lambda g, x: g * (x >= 0)),
    elementwise("ReLU: no mask", "passes the incoming gradient through", F.relu, lambda g, x: g.clone()),
    elementwise("ReLU: the mask alone", "ignores the incoming gradient", F.relu, lambda g, x: (x > 0).to(g)),
    elementwise("ReLU: the mask of what is negative", "unknown", F.relu, lambda g, x: g * (x < 0)),
    elementwise("leaky ReLU: slope on the wrong side", "unknown", leaky, lambda g, x: torch.where(x < 0, g, g / 8)),
    elementwise("leaky ReLU: derivative 0 at 0", "only at zeros", leaky,
                lambda g, x: torch.where(x < 0, g / 8, g * (x > 0))),
    elementwise("absolute value: x / |x|", {"only at zeros", "not finite"}, torch.abs, lambda g, x: g * x / x.abs()),
    elementwise("exp: its own value alone", "ignores the incoming gradient", torch.exp, lambda g, x: x.exp()),
    elementwise("exp: as if it were the identity", "passes the incoming gradient through", torch.exp,
                lambda g, x: g.clone()),
    elementwise("tanh: 1 - y, so y where y² belongs", {"unknown", "missing term"}, torch.tanh,
                lambda g, x: g * (1 - x.tanh())),
    elementwise("tanh: hyperbolic cosine not squared", "unknown", torch.tanh, lambda g, x: g / x.cosh()),
    elementwise("tanh: y² - 1", "constant factor", torch.tanh, lambda g, x: g * (x.tanh() ** 2 - 1), "-1"),
    elementwise("square: x", "constant factor", torch.square, lambda g, x: g * x, ("1/2", "0.5")),
    elementwise("square: 4 x", "constant factor", torch.square, lambda g, x: 4 * g * x, "2"),
    elementwise("square: gradient squared too", "unknown", torch.square, lambda g, x: 2 * g * g * x),
    elementwise("cube: x²", "constant factor", lambda x: x**3, lambda g, x: g * x**2, ("1/3", "0.3333")),
    elementwise("cosine: sine without its sign", "constant factor", torch.cos, lambda g, x: g * x.sin(), "-1"),
    wrong(
        "GELU: the other of its two forms", "wrong output", "output",
        hand_written(lambda x: F.gelu(x, approximate="tanh"), gelu_backward), F.gelu, randn(x=(6, 7)),
    ),
    elementwise("x |x|: a guard around 0", {"few elements", "zero"}, signed_square, in_a_dead_zone, shape=(8, 9)),
    elementwise("x |x|: large numbers cut off", "few elements", signed_square,
                lambda g, x: 2 * g * x.abs().clamp(max=2), shape=(8, 9), whole_numbers=False),
    elementwise("square in blocks of 8: no last block", "few elements", torch.square, without_the_tail, shape=(67,)),
    elementwise("sine and cosine: one output's gradient", "missing term", sine_and_cosine,
                lambda g_sine, g_cosine, x: g_sine * x.cos()),
    wrong("cut off from the graph", "none", "x", lambda x: x.detach().exp(), torch.exp, randn(x=(6, 7))),
    wrong(
        "product: each factor's gradient for the other", "swapped", "a",
        hand_written(torch.mul, lambda g, a, b: (g * a, g * b)), torch.mul, randn(a=(6, 7), b=(6, 7)), also=("b",),
    ),
    wrong(
        "quotient: sign of the denominator's gradient", "constant factor", "b",
        hand_written(torch.div, lambda g, a, b: (g / b, g * a / b**2)), torch.div,
        lambda: {"a": torch.randn(6, 7), "b": torch.rand(6, 7) + 1}, "-1",
    ),
    wrong(
        "temperature: gradient of a mean", "constant factor", "t",
        hand_written(scaled, lambda g, x, t: (g * t, (g * x).mean())), scaled, randn(x=(5, 6), t=()),
        ("1/30", "0.0333"),
    ),
    wrong(
        "scale of each channel: dimensions not kept", "wrong shape", "scale",
        hand_written(torch.mul, lambda g, x, scale: (g * scale, (g * x).sum((0, 2, 3)))), torch.mul,
        randn(x=(2, 3, 4, 5), scale=(1, 3, 1, 1)),
    ),
]  # fmt: skip
