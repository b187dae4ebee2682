"""Functions with two outputs: a convolution that returns its state, a rotation."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

KEPT = 3


def with_state(state, x, weight):
    """Convolve x after the kept steps; return the result and the last steps."""
    steps = torch.cat([state, x], 2)
    return (steps.unfold(2, KEPT + 1, 1) * weight[:, None]).sum(3), steps[:, :, -KEPT:]


class ConvolutionWithState(Function):
    clamped = False
    kept_twice = True

    @staticmethod
    def forward(ctx, state, x, weight):
        ctx.save_for_backward(state, x, weight)
        return with_state(state, x, weight)

    @classmethod
    def backward(cls, ctx, g, g_state):
        state, x, weight = ctx.saved_tensors
        steps = torch.cat([state, x], 2)
        grad = torch.zeros_like(steps)
        for k in range(KEPT + 1):
            grad[:, :, k : k + g.shape[2]] += weight[:, k, None] * g
        new = x.shape[2]
        if cls.kept_twice:
            grad[:, :, new:KEPT] += g_state[:, :, : KEPT - new]
        first = max(0, new - KEPT) if cls.clamped else new - KEPT
        grad[:, :, KEPT:] += g_state[:, :, -first : new - first]
        grad_weight = torch.stack([(g * steps[:, :, k : k + g.shape[2]]).sum((0, 2)) for k in range(KEPT + 1)], 1)
        return grad[:, :, :KEPT], grad[:, :, KEPT:], grad_weight


class ConvolutionWithStateClamped(ConvolutionWithState):
    clamped = True


class ConvolutionWithStateKeptOnce(ConvolutionWithState):
    kept_twice = False


def rotated(x, y, angle):
    return x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()


class Rotation(Function):
    materialized = True

    @classmethod
    def forward(cls, ctx, x, y, angle):
        ctx.set_materialize_grads(cls.materialized)
        ctx.save_for_backward(x, y, angle)
        return rotated(x, y, angle)

    @staticmethod
    def backward(ctx, g, h):
        x, y, angle = ctx.saved_tensors
        u, v = rotated(x, y, angle)
        return *rotated(g, h, -angle), (h * u - g * v).sum(0)


class RotationNotMaterialized(Rotation):
    materialized = False


def convolution_inputs():
    return {"state": torch.randn(2, 3, KEPT), "x": torch.randn(2, 3, 2), "weight": torch.randn(3, KEPT + 1)}


OPERATIONS = [
    Operation(
        "convolution with a state, place in the state",
        ConvolutionWithState,
        ConvolutionWithStateClamped,
        with_state,
        convolution_inputs,
        named="fewer new steps than the state keeps: they get the gradient of the state one place too early",
        kinds=("shifted", "permuted", "another operand", "missing term", "not transposed"),
        named_words=(
            r"shift|off by one|rotat",
            r"\bplaces?\b|\bpositions?\b",
            r"\bind(ex|ices)\b.*(instead|order|rotat|one too|other)|(other|wrong|instead).*\bind(ex|ices)\b",
        ),
        located=(r"gradient of x",),
    ),
    Operation(
        "convolution with a state, kept steps",
        ConvolutionWithState,
        ConvolutionWithStateKeptOnce,
        with_state,
        convolution_inputs,
        named="the step of the old state that is still in the new one gets no gradient from there",
        kinds=("missing term",),
        named_words=(r"missing", r"no effect", r"constant"),
        located=(r"gradient of state",),
    ),
    Operation(
        "rotation, gradient of one output",
        Rotation,
        RotationNotMaterialized,
        rotated,
        lambda: {"x": torch.randn(5, 3), "y": torch.randn(5, 3), "angle": torch.randn(3)},
        named="set_materialize_grads(False): backward gets None for an output that is not used, and raises",
        kinds=("raises", "none"),
        named_words=(r"NoneType|\bNone\b", r"(one|single|first|second) output|output \d+ alone|only output"),
        located=(r"backward|gradient|output",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
RIGHT = RIGHT[1:]  # the first two have the same right Function
