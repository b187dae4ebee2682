"""Reductions: norm of order 3, entropy, logsumexp."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class Norm3(Function):
    """Third root of the sum of |x|³ in each row."""

    @staticmethod
    def forward(ctx, x):
        y = x.abs().pow(3).sum(1).pow(1 / 3)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return (g / y**2)[:, None] * x * x.abs()


class Norm3Wrong(Norm3):
    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return (g / y**2)[:, None] * x * x


class Entropy(Function):
    """-sum of p log p in each row."""

    @staticmethod
    def forward(ctx, p):
        ctx.save_for_backward(p)
        return -(p * p.log()).sum(1)

    @staticmethod
    def backward(ctx, g):
        (p,) = ctx.saved_tensors
        return -g[:, None] * (p.log() + 1)


class EntropyWrong(Entropy):
    @staticmethod
    def backward(ctx, g):
        (p,) = ctx.saved_tensors
        return -g[:, None] * p.log()


class LogSumExp(Function):
    """Logarithm of the sum of exp(x) in each row."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.logsumexp(1)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g[:, None] * x.softmax(1)


class LogSumExpWrong(LogSumExp):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g[:, None] * x.softmax(0)


OPERATIONS = [
    Operation(
        "norm of order 3",
        Norm3,
        Norm3Wrong,
        lambda x: x.abs().pow(3).sum(1).pow(1 / 3),
        lambda: torch.randn(5, 4),
        named="the sign of x is lost: where x < 0, the gradient is minus the expected one",
        kinds=(),
        named_words=(
            r"(\bx|input( 0)?) ?(<|≤|<=) ?(-|−)?0",
            r"(\bx|input( 0)?)\b.* (is )?(negative|below|less)",
            r"negative (x|input|element)",
            r"sign of (x|the input|input)",
            r"absolute value",
        ),
        located=(r"gradient of (x|input 0)", r"<|≤|negative|below|less|sign"),
        options={"whole_numbers": False},
    ),
    Operation(
        "entropy",
        Entropy,
        EntropyWrong,
        lambda p: -(p * p.log()).sum(1),
        lambda: {"p": torch.rand(4, 5) + 0.1},
        named="the derivative of the logarithm is missing: the term -g",
        kinds=("missing term",),
        named_words=(
            r"missing (term|part)",
            r"(term|part)s? .*(is|are) missing",
            r"(constant|same|one) (number|value|term).*(each|every|per) row",
            r"differs? .*by .*(\bg\b|incoming gradient)",
        ),
        located=(r"gradient of p\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "logsumexp of rows",
        LogSumExp,
        LogSumExpWrong,
        lambda x: x.logsumexp(1),
        lambda: torch.randn(4, 5),
        named="softmax over dimension 0 instead of 1",
        kinds=("not summed over the batch",),
        named_words=(
            r"dimension 0",
            r"(columns?|dim 0)\b.*(instead|in place|not).*(rows?|dim 1)",
            r"(over|along|across) .*(wrong|other|another) dim",
            r"(across|between|other|another) (examples|rows)",
            r"transpos",
        ),
        located=(r"gradient of (x|input 0)",),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
