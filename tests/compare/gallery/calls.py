"""Wrong Functions whose mistake one call with all gradients does not show, and wrong conjugates."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from tests.compare.gallery.wrong_function import WrongFunction, hand_written, randn, wrong_function


class LinearOfTheWrongIndex(Function):
    """Linear layer that asks ``needs_input_grad`` of x before it computes the gradient of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        return (g @ w, g.t() @ x) if ctx.needs_input_grad[0] else (None, None)


class SineSavedOnTheClass(Function):
    """Sine that keeps its input on the class, where the next forward replaces it."""

    x: Tensor

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        SineSavedOnTheClass.x = x
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * SineSavedOnTheClass.x.cos()


CALLS: list[WrongFunction] = [
    wrong_function(
        "square: gradient clipped at 100", "not linear in the incoming gradient", "x",
        hand_written(torch.square, lambda g, x: (2 * g * x).clamp(-100, 100)), torch.square, randn(x=(4, 3)),
        "2**20",
    ),
    wrong_function(
        "sine: input in place of the incoming gradient", "not linear in the incoming gradient", "x",
        hand_written(torch.sin, lambda g, x: x * x.cos()), torch.sin, randn(x=(5, 4)), "does not change",
    ),
    wrong_function(
        "linear: weight frozen with the input", "depends on which inputs require a gradient", "w",
        LinearOfTheWrongIndex.apply, F.linear, randn(x=(5, 3), w=(4, 3)), "is None where only w requires a gradient",
    ),
    wrong_function(
        "sine: saved on the class", "depends on earlier calls", "x", SineSavedOnTheClass.apply, torch.sin,
        randn(x=(4, 3)), "another forward comes before backward",
    ),
    wrong_function(
        "square of a complex number: conjugate missing", "conjugated", "z",
        hand_written(torch.square, lambda g, z: 2 * g * z), torch.square,
        lambda: {"z": torch.randn(4, 3, dtype=torch.complex128)}, "z conjugated",
    ),
]  # fmt: skip
