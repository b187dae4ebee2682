"""One element of one gradient of a right function made wrong by 1e-4 of itself, which ``gradcheck`` lets pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function, gradcheck
from torch.func import functional_call

import manualgrad
from compare.case import Case
from compare.native import native_twin, to_native
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from tests.compare.gallery_wrong import randn


class Fault(Function):
    """The identity, but for one element of the gradient on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: tuple[int, ...], relative: float) -> Tensor:
        ctx.index, ctx.relative = index, relative
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        g = g.clone(memory_format=torch.contiguous_format)
        g[ctx.index] *= 1 + ctx.relative
        return g, None, None


def planted(case: Case, quantity: str, index: tuple[int, ...], relative: float = 1e-4) -> Case:
    """``case``, but ours' gradient of the input ``quantity`` is ``1 + relative`` times what it was at ``index``."""
    names = list(case.inputs())
    place = names.index(quantity)

    def ours(*tensors: Tensor) -> Any:
        changed = Fault.apply(tensors[place], index, relative)
        return case.ours(*tensors[:place], changed, *tensors[place + 1 :])

    return replace(case, name=f"{case.name}, {quantity} at {index}", ours=ours)


@dataclass(frozen=True)
class Planted:
    """A fault, and where it is."""

    case: Case
    quantity: str
    index: tuple[int, ...]


def gradcheck_lets_pass(case: Case, quantity: str) -> bool:
    """Whether ``torch.autograd.gradcheck``, with its own tolerances, finds nothing wrong in that gradient."""
    inputs = {name: t.double() if t.is_floating_point() else t for name, t in case.inputs().items()}
    inputs[quantity].requires_grad_()
    return gradcheck(case.ours, tuple(inputs.values()), raise_exception=False)


# ------------------------------------------------------------------------------- where the faults are planted


def with_a_peak(name: str, index: tuple[int, ...], **shapes: tuple[int, ...]) -> Callable[[], dict[str, Tensor]]:
    """Normal numbers; that of ``name`` at ``index`` is large, so that ReLU lets it through and pooling picks it."""

    def make_inputs() -> dict[str, Tensor]:
        inputs = randn(**shapes)()
        inputs[name][index] = 9
        return inputs

    return make_inputs


def half_relu(z: Tensor) -> Tensor:
    return torch.maximum(z, z.new_zeros(()))


def conv2d(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(input, weight.flip(2, 3), bias)


def flatten(input: Tensor) -> Tensor:
    return input.permute(0, 2, 3, 1).flatten(1)


def stage(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.max_pool2d(half_relu(conv2d(input, weight, bias)), 2)


def network(
    channels: tuple[int, ...] = (2, 3), hidden: tuple[int, ...] = (5,), batch: int = 3, **options: Any
) -> Case:
    """DocumentCNN, small; its parameters are inputs beside the images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = manualgrad.DocumentCNN(1, (14, 13), channels, 3, hidden, 4, **options).double()
    twin = native_twin(model)

    def ours(*tensors: Tensor) -> Tensor:
        return functional_call(model, dict(zip(model.state_dict(), tensors[1:], strict=True)), tensors[0])

    def native(*tensors: Tensor) -> Tensor:
        weights = to_native(dict(zip(model.state_dict(), tensors[1:], strict=True)), model)
        return functional_call(twin, weights, tensors[0])

    def make_inputs() -> dict[str, Tensor]:
        inputs = {"input": torch.randn(batch, 1, 14, 13)}
        for name, parameter in model.state_dict().items():
            # Large biases: ReLU lets all through, so that each gradient has something in the place of its fault.
            inputs[name] = parameter + 3 if name.endswith("bias") else parameter.clone()
        return inputs

    return Case(f"DocumentCNN {channels} {hidden}", ours, native, make_inputs, kinks=True)


IMAGES = {"input": (2, 2, 6, 7), "weight": (3, 2, 3, 2), "bias": (3,)}
LABELS = torch.tensor([1, 3, 0])


def planted_faults() -> list[Planted]:
    """One in each gradient of each operation, of the fused one, and of the network."""
    convolution = Case("conv2d", manualgrad.conv2d, conv2d, randn(**IMAGES))
    # Of the fused one a whole channel is alive, whatever the random numbers: its bias is large.
    fused = Case("fused", conv2d_relu_max_pool2d, stage, with_a_peak("bias", (1,), **IMAGES), kinks=True)
    dense = Case("dense", manualgrad.dense, F.linear, randn(input=(4, 5), weight=(3, 5), bias=(3,)))
    cost = manualgrad.softmax_cross_entropy
    logits = {"input": (3, 4)}
    places = [
        (convolution, {"input": (1, 0, 3, 4), "weight": (2, 1, 0, 1), "bias": (1,)}),
        (fused, {"input": (1, 0, 3, 4), "weight": (1, 1, 0, 1), "bias": (1,)}),
        (dense, {"input": (3, 2), "weight": (1, 4), "bias": (2,)}),
        (
            Case("max_pool2d", manualgrad.max_pool2d, partial(F.max_pool2d, kernel_size=2),
                 with_a_peak("input", (1, 1, 3, 2), input=(2, 2, 4, 6))),
            {"input": (1, 1, 3, 2)},
        ),
        (Case("flatten", manualgrad.flatten, flatten, randn(input=(2, 3, 2, 4))), {"input": (1, 2, 0, 3)}),
        (
            Case("relu", manualgrad.relu, half_relu, with_a_peak("input", (1, 2), input=(3, 4))),
            {"input": (1, 2)},
        ),
        (Case("softmax", manualgrad.softmax, partial(torch.softmax, dim=-1), randn(**logits)), {"input": (2, 1)}),
        (
            Case("softmax_cross_entropy", lambda z: cost(z, LABELS), lambda z: F.cross_entropy(z, LABELS),
                 lambda: {"input": torch.randn(3, 4)}),
            {"input": (0, 3)},
        ),
        (
            network(),
            {"conv0.weight": (1, 0, 2, 1), "conv1.weight": (0, 1, 1, 2), "conv1.bias": (2,), "dense2.weight": (1, 4),
             "dense2.bias": (3,), "dense3.weight": (2, 4), "dense3.bias": (0,)},
        ),
    ]  # fmt: skip
    return [Planted(planted(case, name, at), name, at) for case, where in places for name, at in where.items()]
