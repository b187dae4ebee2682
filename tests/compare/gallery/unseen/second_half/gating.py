"""Gates: softmax with temperatures, highway, a gate per channel."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


class TemperedSoftmax(Function):
    """softmax of x / temperature in each row, for x (N, E) and temperature (N)."""

    @staticmethod
    def forward(ctx, x, temperature):
        p = (x / temperature[:, None]).softmax(1)
        ctx.save_for_backward(x, temperature, p)
        return p

    @staticmethod
    def grad_logits(ctx, g):
        _, _, p = ctx.saved_tensors
        return p * (g - (g * p).sum(1, keepdim=True))

    @staticmethod
    def backward(ctx, g):
        x, temperature, _ = ctx.saved_tensors
        grad = TemperedSoftmax.grad_logits(ctx, g) / temperature[:, None]
        return grad, -(grad * x).sum(1) / temperature


class TemperedSoftmaxWrong(TemperedSoftmax):
    @staticmethod
    def backward(ctx, g):
        x, temperature, _ = ctx.saved_tensors
        grad = TemperedSoftmax.grad_logits(ctx, g)
        return grad, -(grad * x).sum(1) / temperature**2


class Highway(Function):
    """t h + (1 - t) x with the gate t = sigmoid(z)."""

    @staticmethod
    def forward(ctx, x, h, z):
        t = z.sigmoid()
        ctx.save_for_backward(x, h, t)
        return t * h + (1 - t) * x

    @staticmethod
    def backward(ctx, g):
        x, h, t = ctx.saved_tensors
        return g * (1 - t), g * t, g * (h - x) * t * (1 - t)


class HighwayWrong(Highway):
    @staticmethod
    def backward(ctx, g):
        _, h, t = ctx.saved_tensors
        return g * (1 - t), g * t, g * h * t * (1 - t)


class ChannelGate(Function):
    """x * sigmoid(w) for x (N, C, L) and w (C)."""

    @staticmethod
    def forward(ctx, x, w):
        gate = w.sigmoid()
        ctx.save_for_backward(x, gate)
        return x * gate[:, None]

    @staticmethod
    def grads(ctx, g, channels):
        x, gate = ctx.saved_tensors
        grad = g.clone()
        for c in channels:
            grad[:, c] *= gate[c]
        return grad, (g * x).sum((0, 2)) * gate * (1 - gate)

    @staticmethod
    def backward(ctx, g):
        return ChannelGate.grads(ctx, g, range(g.shape[1]))


class ChannelGateWrong(ChannelGate):
    @staticmethod
    def backward(ctx, g):
        return ChannelGate.grads(ctx, g, range(1, g.shape[1]))


OPERATIONS = [
    Operation(
        "softmax with temperatures",
        TemperedSoftmax,
        TemperedSoftmaxWrong,
        lambda x, temperature: (x / temperature[:, None]).softmax(1),
        lambda: {"x": torch.randn(4, 5), "temperature": torch.rand(4) + 0.5},
        named="the gradient of x is not divided by the temperature of its row",
        kinds=("constant factor",),
        named_words=(
            r"temperature",
            r"(factor|number|times).*(each|every|per|its own) row",
            r"row.*(factor|times|scale)",
        ),
        located=(r"gradient of x", r"row|temperature"),
        options={"whole_numbers": False},
    ),
    Operation(
        "highway",
        Highway,
        HighwayWrong,
        lambda x, h, z: z.sigmoid() * h + (1 - z.sigmoid()) * x,
        lambda: {"x": torch.randn(4, 5), "h": torch.randn(4, 5), "z": torch.randn(4, 5)},
        named="z is used twice, and the gradient through 1 - t is missing: the term with x",
        kinds=("missing term",),
        named_words=(
            r"missing (term|part)",
            r"(term|part)s? .*(is|are) missing",
            r"(second|one|other|another|first) use",
            r"use[sd]? .*(twice|more than once)",
            r"(with|of|by|through|·) x\b",
        ),
        located=(r"gradient of z\b",),
    ),
    Operation(
        "gate of channels",
        ChannelGate,
        ChannelGateWrong,
        lambda x, w: x * w.sigmoid()[:, None],
        lambda: {"x": torch.randn(3, 4, 5), "w": torch.randn(4)},
        named="channel 0 is not multiplied by its gate",
        kinds=("constant factor",),
        named_words=(
            r"channel 0",
            r"(index|slice|row|column) 0 (of|in|along) dim\w* 1",
            r"\[:, ?0",
            r"dimension 1.*\b0\b",
            r"first (channel|row|slice|index)",
            r"j = 0",
        ),
        located=(r"gradient of x", r"channel 0|\b0\b.*dim\w* 1|\[:, ?0|dim\w* 1.*\b0\b|first|j = 0"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
