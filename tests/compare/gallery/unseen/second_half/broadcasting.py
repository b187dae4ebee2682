"""Broadcasting: a scale per channel, differences of all pairs, linear interpolation of two tensors."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class Scale(Function):
    """x * scale for x (N, C, L) and scale (C)."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale[:, None]

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        return g * scale[:, None], (g * x).sum((0, 2))


class ScaleWrong(Scale):
    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        return (g.mean() * scale[:, None]).expand(x.shape), (g * x).sum((0, 2))


class Differences(Function):
    """a[i] - b[j] for all i, j."""

    @staticmethod
    def forward(ctx, a, b):
        return a[:, None] - b

    @staticmethod
    def backward(ctx, g):
        return g.sum(1), -g.sum(0)


class DifferencesWrong(Differences):
    @staticmethod
    def backward(ctx, g):
        return g.sum(1), g.sum(0)


class Lerp(Function):
    """a + w (b - a) for a and b (N, L) and w (L)."""

    @staticmethod
    def forward(ctx, a, b, w):
        ctx.save_for_backward(a, b, w)
        return a + w * (b - a)

    @staticmethod
    def backward(ctx, g):
        a, b, w = ctx.saved_tensors
        return g * (1 - w), g * w, (g * (b - a)).sum(0)


class LerpWrong(Lerp):
    @staticmethod
    def backward(ctx, g):
        return Lerp.backward(ctx, g.clamp(-1, 1))


OPERATIONS = [
    Operation(
        "scale of channels",
        Scale,
        ScaleWrong,
        lambda x, scale: x * scale[:, None],
        lambda: {"x": torch.randn(3, 4, 5), "scale": torch.randn(4)},
        named="the mean of the incoming gradient in the place of each of its elements",
        kinds=("ignores the incoming gradient", "summed over the batch"),
        named_words=(
            r"(mean|average|sum) .*(\bg\b|incoming gradient)",
            r"(\bg\b|incoming gradient).*(mean|average|sum)",
            r"(all|every|each) (row|element|output|coefficient|entr)\w*\b.*(alike|equal|same)",
            r"(alike|equal|same) .*(for|of|in) (all|every|each)",
        ),
        located=(r"gradient of x",),
    ),
    Operation(
        "differences of all pairs",
        Differences,
        DifferencesWrong,
        lambda a, b: a[:, None] - b,
        lambda: {"a": torch.randn(4), "b": torch.randn(5)},
        named="the gradient of b has the wrong sign",
        kinds=("constant factor",),
        named_words=(r"\bsign\b", r"negative of|negated", r"(-|−|minus )(1|one)?\b.*expected", r"opposite"),
        located=(r"gradient of b\b",),
    ),
    Operation(
        "interpolation of two tensors",
        Lerp,
        LerpWrong,
        lambda a, b, w: a + w * (b - a),
        lambda: {"a": torch.randn(4, 5), "b": torch.randn(4, 5), "w": torch.rand(5)},
        named="the incoming gradient is clamped to -1 and 1",
        kinds=("not linear in the incoming gradient",),
        named_words=(
            r"(not |non-?)linear",
            r"clamp|clip",
            r"(\bg\b|incoming gradient).*(>|above|beyond|multiple|times)",
        ),
        located=(r"\ba\b", r"\bb\b", r"\bw\b"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
