"""Activations: tanh, SiLU, ELU."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

ALPHA = 2.0


class Tanh(Function):
    """tanh(x)."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, g):
        _, y = ctx.saved_tensors
        return g * (1 - y * y)


class TanhWrong(Tanh):
    @staticmethod
    def backward(ctx, g):
        x, _ = ctx.saved_tensors
        return g * (1 - x * x)


class SiLU(Function):
    """x * sigmoid(x)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def derivative(x):
        s = x.sigmoid()
        return s * (1 + x * (1 - s))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * SiLU.derivative(x)


class SiLUWrong(SiLU):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * SiLU.derivative(x.clamp(-1, 1))


class ELU(Function):
    """x where x > 0, else alpha (exp(x) - 1)."""

    @staticmethod
    def forward(ctx, x):
        y = torch.where(x > 0, x, ALPHA * x.clamp(max=0).expm1())
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return torch.where(x > 0, g, g * (y + ALPHA))


class ELUWrong(ELU):
    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return torch.where(x > 0, g, g * (y + 1))


OPERATIONS = [
    Operation(
        "tanh",
        Tanh,
        TanhWrong,
        torch.tanh,
        lambda: torch.randn(4, 5),
        named="1 - x² instead of 1 - y²: the argument for the result of tanh",
        kinds=(),
        named_words=(
            r"(input|\bx|argument|before)\b.*(instead|in place|for|not|where).*(output|\by\b|result|after|tanh)",
            r"pre-?activation",
            r"(derivative|factor|slope|coefficient|ratio)s?\b.*(each|every|per) element",
            r"(each|every) element.*(factor|derivative|slope|coefficient|ratio)",
            r"(derivative|factor|slope|ratio).*(depend|function|of) .*(x|input)",
        ),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "SiLU",
        SiLU,
        SiLUWrong,
        lambda x: x * x.sigmoid(),
        lambda: 2 * torch.randn(5, 6),
        named="wrong where |x| > 1: the derivative is that of x clamped to -1 and 1",
        kinds=(),
        named_words=(
            r"\|(x|input( 0)?)\| ?(>|≥)",
            r"(x|input( 0)?) (is )?(outside|beyond|above|below)",
            r"(x|input( 0)?) ?> ?(0\.9|1)\b.*or",
            r"clamp|saturat",
            r"absolute value .*(>|above|greater|larger|exceed)",
            r"(large|outside|beyond) .*(x|input)",
        ),
        located=(r"gradient of (x|input 0)", r">|≥|outside|beyond|above|exceed|large"),
    ),
    Operation(
        "ELU",
        ELU,
        ELUWrong,
        lambda x: torch.where(x > 0, x, ALPHA * torch.where(x > 0, 0, x).expm1()),
        lambda: torch.randn(4, 6),
        named="where x < 0, the derivative is y + 1 instead of y + alpha",
        kinds=("missing term",),
        named_words=(
            r"(\bx|input( 0)?|output) ?(<|≤|<=) ?(-|−)?0",
            r"(\bx|input( 0)?|output)\b.* (is )?(negative|below|less)",
            r"negative (x|input|element|output)",
        ),
        located=(r"gradient of (x|input 0)", r"<|≤|negative|below|less"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
