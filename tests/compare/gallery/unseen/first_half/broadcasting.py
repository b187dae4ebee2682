"""Broadcasting: where, an offset per channel, division."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class Where(Function):
    """a where condition is not 0, else b."""

    @staticmethod
    def forward(ctx, condition, a, b):
        ctx.save_for_backward(condition != 0)
        return torch.where(condition != 0, a, b)

    @staticmethod
    def backward(ctx, g):
        (mask,) = ctx.saved_tensors
        return None, torch.where(mask, g, 0), torch.where(mask, 0, g)


class WhereWrong(Where):
    @staticmethod
    def backward(ctx, g):
        (mask,) = ctx.saved_tensors
        return None, torch.where(mask, 0, g), torch.where(mask, g, 0)


class Offset(Function):
    """x + offset, for x (N, C, L) and offset (C)."""

    @staticmethod
    def forward(ctx, x, offset):
        return x + offset[:, None]

    @staticmethod
    def backward(ctx, g):
        return g.clone(), g.sum((0, 2))


class OffsetWrong(Offset):
    @staticmethod
    def backward(ctx, g):
        return g.clone(), g.sum(0)


class Divide(Function):
    """x / divisor, for x (N, L) and divisor (L)."""

    @staticmethod
    def forward(ctx, x, divisor):
        y = x / divisor
        ctx.save_for_backward(y, divisor)
        return y

    @staticmethod
    def backward(ctx, g):
        y, divisor = ctx.saved_tensors
        return g / divisor, -(g * y / divisor).sum(0)


class DivideWrong(Divide):
    @staticmethod
    def backward(ctx, g):
        y, divisor = ctx.saved_tensors
        return g / divisor, -(g * y).sum(0)


OPERATIONS = [
    Operation(
        "where",
        Where,
        WhereWrong,
        lambda condition, a, b: torch.where(condition != 0, a, b),
        lambda: {"condition": torch.randint(2, (4, 5)), "a": torch.randn(4, 5), "b": torch.randn(4, 5)},
        named="the gradients of a and b are exchanged",
        kinds=("swapped",),
        named_words=(
            r"swapped|exchanged|interchanged",
            r"gradients? of (another|the other) input",
            r"gradient of [ab]\b",
        ),
        located=(r"\ba\b", r"\bb\b"),
    ),
    Operation(
        "offset of channels",
        Offset,
        OffsetWrong,
        lambda x, offset: x + offset[:, None],
        lambda: {"x": torch.randn(3, 4, 5), "offset": torch.randn(4)},
        named="not summed over dimension 2, over which offset is broadcast: shape (4, 5) instead of (4)",
        kinds=("wrong shape", "raises", "not summed over the batch"),
        named_words=(r"shape", r"not summed|without .*sum|sum .*missing", r"broadcast", r"expand"),
        located=(r"gradient of offset|offset", r"4, ?5|dimension 2|dim 2"),
    ),
    Operation(
        "division by columns",
        Divide,
        DivideWrong,
        lambda x, divisor: x / divisor,
        lambda: {"x": torch.randn(4, 5), "divisor": torch.rand(5) + 0.5},
        named="the gradient of divisor is -g x / divisor instead of -g x / divisor²: a factor divisor",
        kinds=("constant factor",),
        named_words=(
            r"(times|factor|divided by|multiplied by|·|/) .*divisor",
            r"divisor.*(factor|times|power|square)",
            r"factor.*(each|every|per) (element|column)",
            r"(each|every) (element|column).*factor",
        ),
        located=(r"gradient of divisor",),
        options={"whole_numbers": False},
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
