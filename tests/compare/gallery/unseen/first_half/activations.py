"""Activations: soft shrinkage, PReLU with a weight per channel, softsign."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class Softshrink(Function):
    """x - 1/2 above 1/2, x + 1/2 below -1/2, else 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.nn.functional.softshrink(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x.abs() > 0.5)


class SoftshrinkWrong(Softshrink):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x > 0.5)


class PReLU(Function):
    """x where x > 0, else weight * x, for x (N, C, L) and weight (C)."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.where(x > 0, x, weight[:, None] * x)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return torch.where(x > 0, g, weight[:, None] * g), (g * x.clamp(max=0)).sum((0, 2))


class PReLUWrong(PReLU):
    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return torch.where(x > 0, g, weight[:, None] * g), (g * x).sum((0, 2))


class Softsign(Function):
    """x / (1 + |x|)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x / (1 + x.abs())

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g / (1 + x.abs()) ** 2


class SoftsignWrong(Softsign):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g / (1 + x * x)


OPERATIONS = [
    Operation(
        "soft shrinkage",
        Softshrink,
        SoftshrinkWrong,
        lambda x: torch.where(x.abs() > 0.5, x - 0.5 * x.detach().sign(), 0),
        lambda: torch.randn(5, 6),
        named="0 instead of g where x < -1/2",
        kinds=("zero",),
        named_words=(
            r"(\bx|input( 0)?) ?(<|≤|<=) ?(-|−)?\d",
            r"(input( 0)?|\bx|output)\b.* (is )?(negative|below|less)",
            r"output ?(<|≤|<=) ?(-|−)?0",
            r"negative (x|input|element|output)",
        ),
        located=(r"gradient of (x|input 0)", r"<|≤|negative|below|less"),
    ),
    Operation(
        "PReLU of channels",
        PReLU,
        PReLUWrong,
        lambda x, weight: torch.where(x > 0, x, weight[:, None] * x),
        lambda: {"x": torch.randn(3, 4, 5), "weight": torch.rand(4)},
        named="the gradient of weight also sums over x > 0: the mask is ignored",
        kinds=(),
        named_words=(
            r"mask",
            r"(x|input|output)\b.* ?(>|≥|>=) ?0|(x|input|output)\b.*positive|positive (x|input|output)",
            r"(surplus|too many|additional|extra|should not) .*(entries|terms|contribution|coefficient)",
            r"(outputs?|elements?|entries|contributions?).*(that|which)? ?(native|expected).*(not|zero|no)",
        ),
        located=(r"gradient of weight",),
    ),
    Operation(
        "softsign",
        Softsign,
        SoftsignWrong,
        lambda x: x / (1 + x.abs()),
        lambda: torch.randn(4, 5),
        named="the derivative is 1 / (1 + x²) instead of 1 / (1 + |x|)²: each element has another factor, by its x",
        kinds=(),
        named_words=(
            r"(derivative|factor|slope|coefficient|ratio)s?\b.*(each|every|per) element",
            r"(each|every) element.*(factor|derivative|slope|coefficient|ratio)",
            r"(derivative|factor|slope|ratio).*(depend|function|of) .*(x|input)",
            r"derivative .*(wrong|differ)",
        ),
        located=(r"gradient of (x|input 0)",),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
