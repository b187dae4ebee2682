"""Mistakes in what a Function keeps, draws, writes or rounds, beside its formula."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

BAGS = torch.tensor([[0, 2, 3], [4, 2, 0], [1, 1, 3]])
CLASSES = torch.tensor([2, 0, 4, 1])
SEED, KEPT_SHARE = 7, 0.75
FIRST_STEP = 1000
FREQUENCY = torch.tensor([0.5, 0.11, 0.03], dtype=torch.float64)


class Bags(Function):
    fresh = True

    @staticmethod
    def forward(ctx, table):
        ctx.grad_table = torch.zeros_like(table)
        return table[BAGS].sum(1)

    @classmethod
    def backward(cls, ctx, g):
        grad = torch.zeros_like(ctx.grad_table) if cls.fresh else ctx.grad_table
        return grad.index_add_(0, BAGS.flatten(), g.repeat_interleave(BAGS.shape[1], 0))


class BagsInBuffer(Bags):
    fresh = False


class LogisticGate(Function):
    layout_of_x = False

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @classmethod
    def backward(cls, ctx, g):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        rows = (g * (s + x * s * (1 - s))).contiguous()
        if not cls.layout_of_x:
            return rows
        grad = torch.empty_like(x)  # has the strides of x
        grad.as_strided((x.numel(),), (1,)).copy_(rows.flatten())  # as a kernel writes, row after row
        return grad


class LogisticGateInMemoryOrder(LogisticGate):
    layout_of_x = True


def keep_mask(x, generator):
    return (torch.rand(x.shape, generator=generator) < KEPT_SHARE).to(x.dtype) / KEPT_SHARE


def with_dropped(x):
    return x * keep_mask(x, torch.Generator().manual_seed(SEED))


class Dropped(Function):
    seeded_again = True

    @staticmethod
    def forward(ctx, x):
        ctx.generator = torch.Generator().manual_seed(SEED)
        return x * keep_mask(x, ctx.generator)

    @classmethod
    def backward(cls, ctx, g):
        if cls.seeded_again:
            ctx.generator.manual_seed(SEED)
        return g * keep_mask(g, ctx.generator)


class DroppedWithNextNumbers(Dropped):
    seeded_again = False


def rotated(x, step, sign=1):
    angle = sign * (FIRST_STEP + step.double())[:, None] * FREQUENCY
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class LatePositions(Function):
    @staticmethod
    def forward(ctx, x):
        return rotated(x, torch.arange(x.shape[1]))

    @staticmethod
    def backward(ctx, g):
        return rotated(g, torch.arange(g.shape[1]), -1)


class LatePositionsInDtypeOfX(LatePositions):
    @staticmethod
    def backward(ctx, g):
        step = FIRST_STEP + torch.arange(g.shape[1], dtype=g.dtype)
        return rotated(g, step.double() - FIRST_STEP, -1)


class CrossEntropy(Function):
    in_place = False

    @classmethod
    def forward(cls, ctx, logits):
        loss = torch.nn.functional.cross_entropy(logits, CLASSES, reduction="none")
        grad = logits if cls.in_place else torch.empty_like(logits)
        grad.copy_(logits.softmax(1) - torch.nn.functional.one_hot(CLASSES, logits.shape[1]))
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx, g):
        return g[:, None] * ctx.saved_tensors[0]


class CrossEntropyInPlace(CrossEntropy):
    in_place = True


OPERATIONS = [
    Operation(
        "sums of bags, gradient in a buffer",
        Bags,
        BagsInBuffer,
        lambda table: table[BAGS].sum(1),
        lambda: {"table": torch.randn(5, 4)},
        named="forward makes the buffer to which backward adds: a second backward adds to the first one's gradient",
        kinds=("not repeatable", "depends on earlier calls", "constant factor"),
        named_words=(r"\bsecond\b", r"\bagain\b|repeat|twice", r"earlier (call|backward)"),
        located=(r"gradient of table|backward",),
    ),
    Operation(
        "logistic gate, layout of x",
        LogisticGate,
        LogisticGateInMemoryOrder,
        lambda x: x * x.sigmoid(),
        lambda: {"x": torch.randn(5, 4)},
        named="empty_like(x) has the strides of x, and backward fills it row after row: wrong for a transposed x",
        kinds=("only in one layout",),
        named_words=(r"transposed|layout|strides|contiguous|memory order",),
        located=(r"gradient of x",),
    ),
    Operation(
        "dropped elements, next random numbers",
        Dropped,
        DroppedWithNextNumbers,
        with_dropped,
        lambda: {"x": torch.randn(4, 6)},
        named="backward draws the mask again, from the random numbers that follow those of forward",
        kinds=("not repeatable", "another operand", "depends on earlier calls"),
        named_words=(
            r"\brandom",
            r"\bsecond\b|\bagain\b|repeat|returns different",
            r"\bmask",
            r"(rand|lt|keep_mask).*(instead|another|other)",
        ),
        located=(r"gradient of x|backward",),
    ),
    Operation(
        "rotations of late positions, steps in bfloat16",
        LatePositions,
        LatePositionsInDtypeOfX,
        lambda x: rotated(x, torch.arange(x.shape[1])),
        lambda: {"x": torch.randn(2, 5, 6)},
        named="backward counts the steps in the dtype of x: in bfloat16 the steps 1001 to 1003 are 1000 or 1004",
        kinds=("only in one dtype",),
        named_words=(r"bfloat16", r"precision|\bexact|round"),
        located=(r"gradient of x", r"bfloat16"),
    ),
    Operation(
        "cross-entropy, gradient in the place of the logits",
        CrossEntropy,
        CrossEntropyInPlace,
        lambda logits: torch.nn.functional.cross_entropy(logits, CLASSES, reduction="none"),
        lambda: {"logits": torch.randn(4, 5)},
        named="forward writes the gradient into its argument, the logits",
        kinds=("changes its input",),
        named_words=(r"modif|in.?place|\bchang|overwr",),
        located=(r"\blogits\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
