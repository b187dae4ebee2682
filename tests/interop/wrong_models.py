"""Small models, and a conversion of them with one wrong gradient."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.autograd import Function

import manualgrad as mg


class Scaled(Function):
    """The identity, with a gradient that is ``factor`` times the right one."""

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.factor, None


def make_wrong(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Make ``from_torch`` scale the gradient of one parameter, the last layer's bias, by ``factor``."""
    from_torch = mg.from_torch

    def wrong(module: nn.Module, **options: object) -> object:
        converted, report = from_torch(module, **options)
        last = converted[-1]
        last.forward = lambda input: mg.dense(input, last.weight, Scaled.apply(last.bias, factor))
        return converted, report

    monkeypatch.setattr(mg, "from_torch", wrong)
