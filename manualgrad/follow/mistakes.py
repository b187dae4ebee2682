"""Four usual mistakes in a backward: right and wrong results on a digit, and the Function that has the mistake.

``compare`` judges the Functions (compare/usual_mistakes.py), and the page shows the pictures beside its words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad import backprop, functional
from manualgrad.backprop import ConvLayer
from manualgrad.follow.quantities import spread
from manualgrad.models import DocumentCNN
from manualgrad.ops.conv2d import conv2d_grad_input, conv2d_grad_weight_per_example
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry
from manualgrad.ops.layout import from_nchw, from_oihw, to_nchw
from manualgrad.ops.relu import relu_backward, relu_forward
from manualgrad.ops.softmax_cross_entropy import cross_entropy_backward

# ------------------------------------------------------------------------------ the wrong formulas, and Functions


class WrongFunction(Function):
    """A right forward with the backward that it is given: ``backward(g, *inputs)`` returns one gradient per input."""

    @staticmethod
    def forward(
        ctx: Any, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.wrong_backward = backward
        return forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.wrong_backward(g, *ctx.saved_tensors)


def conv2d_without_flip(input: Tensor, weight: Tensor) -> Tensor:
    """``conv2d`` whose gradient of the input takes the kernel as if forward had not rotated it."""

    def backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        geometry = make_conv2d_geometry(x, w, None, 1, 0, 1, 1, True)
        grad_x = to_nchw(conv2d_grad_input(from_nchw(g), from_oihw(w).flip(0, 1), geometry))
        grad_w = conv2d_grad_weight_per_example(from_nchw(g), from_nchw(x), geometry).sum(0)
        return grad_x, grad_w.permute(3, 2, 0, 1)

    return wrong_apply(functional.conv2d, backward, input, weight)


def spread_to_all_ties(g: Tensor, x: Tensor) -> Tensor:
    """P⁻¹ that sends each number of ``g``, (..., H/2, W/2), to every place of x, (..., H, W), with the maximum."""

    def enlarge(small: Tensor) -> Tensor:
        return small.repeat_interleave(2, -2).repeat_interleave(2, -1)

    (height, width), grad_x = g.shape[-2:], torch.zeros_like(x)
    inner = x[..., : 2 * height, : 2 * width]  # an odd row or column is in no window
    maximum = inner.reshape(*x.shape[:-2], height, 2, width, 2).amax((-3, -1))
    grad_x[..., : 2 * height, : 2 * width] = torch.where(inner == enlarge(maximum), enlarge(g), 0)
    return grad_x


def max_pool2d_to_all_ties(input: Tensor) -> Tensor:
    """``max_pool2d`` whose backward is :func:`spread_to_all_ties`."""
    return wrong_apply(functional.max_pool2d, lambda g, x: (spread_to_all_ties(g, x),), input)


def relu_without_half(input: Tensor) -> Tensor:
    """``relu`` whose derivative at 0 is 0."""
    return wrong_apply(functional.relu, lambda g, z: (torch.where(z > 0, g, 0),), input)


def cross_entropy_without_mean(input: Tensor, target: Tensor) -> Tensor:
    """``softmax_cross_entropy`` whose gradient is that of the sum over the batch, in place of the mean."""

    def backward(g: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        return (cross_entropy_backward(g, z, torch.eye(z.shape[1]).to(z)[target]),)

    return wrong_apply(lambda z: functional.softmax_cross_entropy(z, target), backward, input)


def wrong_apply(
    forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]], *inputs: Tensor
) -> Tensor:
    """Call ``forward`` with ``backward`` in place of its own."""
    result: Tensor = WrongFunction.apply(forward, backward, *inputs)
    return result


# --------------------------------------------------------------------------------------- their effect on a digit


@dataclass(frozen=True)
class Effect:
    """Right and wrong values of some quantities, for one digit or one batch.

    Attributes:
        right: tensors by name, shapes as in ``quantities.py``.
        wrong: the same names.
        facts: further numbers that the page's sentences quote.
    """

    right: dict[str, Tensor]
    wrong: dict[str, Tensor]
    facts: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def effect_of_missing_flip(model: DocumentCNN, image: Tensor, label: int, eta: float) -> Effect:
    """(2) without the flip, in layer 1: δ¹ ∂C/∂x¹, and Δw⁰, to which the mistake is carried."""
    updates = backprop.per_example(model, image, torch.tensor([label]), eta)
    first, second = _conv_layers(updates.layers)
    grads = [
        conv2d_grad_input(updates.deltas[1], w, second.geometry.convolution) for w in (second.w, second.w.flip(0, 1))
    ]
    deltas = [relu_backward(spread(dx, first), first.z, model.subgradient) for dx in grads]
    steps = [_grad_weight(delta, first) for delta in deltas]
    pairs = zip(grads, steps, strict=True)
    right, wrong = ({"dx1": dx[0], "dw0": dw} for dx, dw in pairs)
    return Effect(right, wrong, {"angle": _angle(right["dw0"], wrong["dw0"])})


@torch.no_grad()
def effect_of_all_ties(model: DocumentCNN, image: Tensor, label: int, eta: float) -> Effect:
    """P⁻¹ to every tied place, in layer 0: δ⁰ and Δw⁰."""
    updates = backprop.per_example(model, image, torch.tensor([label]), eta)
    first, second = _conv_layers(updates.layers)
    dx = to_nchw(conv2d_grad_input(updates.deltas[1], second.w, second.geometry.convolution))
    to_all = from_nchw(spread_to_all_ties(dx, to_nchw(relu_forward(first.z))))
    delta = relu_backward(to_all, first.z, model.subgradient)
    right = {"delta0": updates.deltas[0][0], "dw0": _grad_weight(updates.deltas[0], first)}
    wrong = {"delta0": delta[0], "dw0": _grad_weight(delta, first)}
    return Effect(right, wrong, {"places": float((right["delta0"] != wrong["delta0"]).sum())})


@torch.no_grad()
def effect_of_missing_half(model: DocumentCNN, image: Tensor, label: int, eta: float) -> Effect:
    """(10) with 0 in place of ½, in all layers: δ⁰ and Δb⁰."""
    effects, steps = [], []
    for subgradient in (model.subgradient, 0.0):
        before, model.subgradient = model.subgradient, subgradient
        try:
            updates = backprop.per_example(model, image, torch.tensor([label]), eta)
            effects.append({"delta0": updates.deltas[0][0], "db0": updates.biases[0][0]})
            steps.append(updates.weights[0])
            z = updates.layers[0].z
        finally:
            model.subgradient = before
    right, wrong = effects
    facts = {
        "zeros": 100 * (z == 0).double().mean().item(),
        "change": 100 * ((wrong["db0"] - right["db0"]).norm() / right["db0"].norm()).item(),
        "weight change": (steps[1] - steps[0]).abs().max().item(),
    }
    return Effect(right, wrong, facts)


@torch.no_grad()
def effect_of_missing_mean(model: DocumentCNN, images: Tensor, labels: Tensor, eta: float) -> Effect:
    """(13) without 1/B, for a whole batch: Δw⁰."""
    step = from_oihw(backprop.backpropagate(model, images, labels, eta).weights[0])
    examples = from_oihw(backprop.per_example(model, images, labels, eta).weights[0].sum(0))
    return Effect({"dw0": step}, {"dw0": examples}, {"factor": float(len(images))})


def _conv_layers(layers: list[backprop.Layer]) -> list[ConvLayer]:
    return [layer for layer in layers if isinstance(layer, ConvLayer)]


def _grad_weight(delta: Tensor, layer: ConvLayer) -> Tensor:
    return conv2d_grad_weight_per_example(delta, layer.x, layer.geometry.convolution)[0]


def _angle(a: Tensor, b: Tensor) -> float:
    """Angle between two steps, in degrees."""
    cosine = torch.cosine_similarity(a.flatten(), b.flatten(), 0).clamp(-1, 1)
    return torch.rad2deg(torch.arccos(cosine)).item()
