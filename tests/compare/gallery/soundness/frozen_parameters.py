"""Functions whose forward, or what it saves, is right only if every input wants a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from compare.case import Case
from tests.compare.gallery.soundness.wrong_gradient import WrongGradient, wrong
from tests.compare.gallery.wrong_function import randn


class ScaledProduct(Function):
    """Product after a number as the first argument; each index of needs_input_grad is one too large."""

    @staticmethod
    def forward(ctx: Any, factor: float, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.factor = factor
        return factor * x * w + b

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            None,
            ctx.factor * g * w if needs[2] else None,
            ctx.factor * g * x if needs[3] else None,
            g if needs[3] else None,
        )


class SavesForOther(Function):
    """Product that saves x only if x itself wants a gradient, though it is w that needs it."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, w = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[0] else torch.zeros_like(x), w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g * w, g * x


class RoundsFrozenWeight(Function):
    """Product whose weight is rounded to bfloat16 if it wants no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        w = w if ctx.needs_input_grad[1] else w.bfloat16().to(w.dtype)
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g * w, g * x


class MarkedOutput(Function):
    """Product and sum; the sum is marked as not differentiable if the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, w)
        total = x + w
        if not ctx.needs_input_grad[1]:
            ctx.mark_non_differentiable(total)
        return x * w, total

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g * w + h, g * x + h


class RefusesFrozen(Function):
    """Bilinear form that expects both factors to want a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        if not all(ctx.needs_input_grad):
            raise ValueError("expected tensors that require gradients")
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w.T, x.T @ g


class UnpacksWanted(Function):
    """Product whose backward expects as many saved tensors as there are if both inputs want a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(*(t for t, needed in zip((w, x), ctx.needs_input_grad, strict=True) if needed))
        return x * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        w, x = ctx.saved_tensors
        return g * w, g * x


class FrozenScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.linspace(0.5, 2, 3)), nn.Parameter(torch.linspace(-1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class WrongFrozenScale(FrozenScale):
    """Layer that takes a frozen weight for a frozen layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.weight.requires_grad else y - self.bias + self.bias.detach()


def frozen_scale() -> WrongGradient:
    case = Case.from_modules(
        "module: frozen weight freezes the bias", WrongFrozenScale(), FrozenScale(), lambda: torch.randn(4, 3)
    )
    return WrongGradient(lambda: case, "bias")


def matmul_detached(x: Tensor, w: Tensor) -> Tensor:
    return x @ w if x.requires_grad else (x @ w).detach()


WEIGHTED = randn(x=(3, 2), w=(3, 2))

FROZEN_PARAMETERS = [
    wrong("scaled product: indices are off by one", "", lambda x, w, b: ScaledProduct.apply(0.5, x, w, b),
          lambda x, w, b: 0.5 * x * w + b, randn(x=(4,), w=(4,), b=(4,))),
    wrong("product: saves x only if x wants a gradient", "w", SavesForOther.apply, torch.mul, WEIGHTED),
    wrong("product: a frozen weight is rounded", "", RoundsFrozenWeight.apply, torch.mul, WEIGHTED),
    wrong("product and sum: sum is not differentiable if the weight is frozen", "x", MarkedOutput.apply,
          lambda x, w: (x * w, x + w), WEIGHTED),
    wrong("matrix product: refuses frozen inputs", "", RefusesFrozen.apply, torch.mm, randn(x=(2, 3), w=(3, 2))),
    wrong("product: unpacks what was not saved", "", UnpacksWanted.apply, torch.mul, randn(x=(2, 2, 2), w=(2, 2, 2))),
    wrong("matrix product: detached if x is data", "w", matmul_detached, torch.matmul, randn(x=(2, 3), w=(3, 4))),
    frozen_scale(),
]  # fmt: skip
