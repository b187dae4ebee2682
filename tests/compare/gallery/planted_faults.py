"""Correct functions with one element of one gradient multiplied by 1.0001, an error that ``gradcheck`` accepts."""

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
from compare.native_network import native_twin, to_native
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from tests.compare.gallery.wrong_function import randn


class Fault(Function):
    """The identity; its backward multiplies one element of the gradient by ``1 + relative``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: tuple[int, ...], relative: float) -> Tensor:
        ctx.index, ctx.relative = index, relative
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        g = g.clone(memory_format=torch.contiguous_format)
        g[ctx.index] *= 1 + ctx.relative
        return g, None, None


def with_fault(case: Case, quantity: str, index: tuple[int, ...], relative: float = 1e-4) -> Case:
    """Return ``case`` with the gradient of the input ``quantity`` multiplied by ``1 + relative`` at ``index``."""
    names = list(case.inputs())
    position = names.index(quantity)

    def ours(*tensors: Tensor) -> Any:
        changed = Fault.apply(tensors[position], index, relative)
        return case.ours(*tensors[:position], changed, *tensors[position + 1 :])

    return replace(case, name=f"{case.name}, {quantity} at {index}", ours=ours)


@dataclass(frozen=True)
class PlantedFault:
    """A case with one wrong element: ``index`` of the gradient of the input ``quantity``."""

    case: Case
    quantity: str
    index: tuple[int, ...]


def gradcheck_accepts(case: Case, quantity: str) -> bool:
    """Return True if ``torch.autograd.gradcheck``, with its default tolerances, accepts that gradient."""
    inputs = {name: t.double() if t.is_floating_point() else t for name, t in case.inputs().items()}
    inputs[quantity].requires_grad_()
    return gradcheck(case.ours, tuple(inputs.values()), raise_exception=False)


# ------------------------------------------------------------------------------- where the faults are planted


def with_large_element(
    name: str, index: tuple[int, ...], **shapes: tuple[int, ...]
) -> Callable[[], dict[str, Tensor]]:
    """Draw normal numbers; one element is 9, so that it is positive before ReLU and the maximum of its window."""

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


def fused_layer(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.max_pool2d(half_relu(conv2d(input, weight, bias)), 2)


def network(
    channels: tuple[int, ...] = (2, 3), hidden: tuple[int, ...] = (5,), batch: int = 3, **options: Any
) -> Case:
    """Make a case of a small DocumentCNN, with its parameters as inputs."""
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
            # Large biases keep every ReLU active, so that each gradient is nonzero at the index of its fault.
            inputs[name] = parameter + 3 if name.endswith("bias") else parameter.clone()
        return inputs

    return Case(f"DocumentCNN {channels} {hidden}", ours, native, make_inputs, kinks=True)


IMAGES = {"input": (2, 2, 6, 7), "weight": (3, 2, 3, 2), "bias": (3,)}
LABELS = torch.tensor([1, 3, 0])


def planted_faults() -> list[PlantedFault]:
    """Return one fault for each gradient of every operation, of the fused layer and of the network."""
    convolution = Case("conv2d", manualgrad.conv2d, conv2d, randn(**IMAGES))
    # The large bias keeps one channel of the fused layer active, whatever the random numbers.
    fused = Case("fused", conv2d_relu_max_pool2d, fused_layer, with_large_element("bias", (1,), **IMAGES), kinks=True)
    dense = Case("dense", manualgrad.dense, F.linear, randn(input=(4, 5), weight=(3, 5), bias=(3,)))
    cross_entropy = manualgrad.softmax_cross_entropy
    logits = {"input": (3, 4)}
    faults = [
        (convolution, {"input": (1, 0, 3, 4), "weight": (2, 1, 0, 1), "bias": (1,)}),
        (fused, {"input": (1, 0, 3, 4), "weight": (1, 1, 0, 1), "bias": (1,)}),
        (dense, {"input": (3, 2), "weight": (1, 4), "bias": (2,)}),
        (
            Case("max_pool2d", manualgrad.max_pool2d, partial(F.max_pool2d, kernel_size=2),
                 with_large_element("input", (1, 1, 3, 2), input=(2, 2, 4, 6))),
            {"input": (1, 1, 3, 2)},
        ),
        (Case("flatten", manualgrad.flatten, flatten, randn(input=(2, 3, 2, 4))), {"input": (1, 2, 0, 3)}),
        (
            Case("relu", manualgrad.relu, half_relu, with_large_element("input", (1, 2), input=(3, 4))),
            {"input": (1, 2)},
        ),
        (Case("softmax", manualgrad.softmax, partial(torch.softmax, dim=-1), randn(**logits)), {"input": (2, 1)}),
        (
            Case("softmax_cross_entropy", lambda z: cross_entropy(z, LABELS), lambda z: F.cross_entropy(z, LABELS),
                 lambda: {"input": torch.randn(3, 4)}),
            {"input": (0, 3)},
        ),
        (
            network(),
            {"conv0.weight": (1, 0, 2, 1), "conv1.weight": (0, 1, 1, 2), "conv1.bias": (2,), "dense2.weight": (1, 4),
             "dense2.bias": (3,), "dense3.weight": (2, 4), "dense3.bias": (0,)},
        ),
    ]  # fmt: skip
    return [
        PlantedFault(with_fault(case, name, index), name, index)
        for case, indices in faults
        for name, index in indices.items()
    ]
