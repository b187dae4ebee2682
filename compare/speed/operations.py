"""The operations at the sizes that the network has them, each ours and native, in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import manualgrad as mg
from compare.speed import check as speed_check
from compare.speed.clock import Step
from compare.variants import laid
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d

PHASES = ("forward", "backward")
LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Operation:
    """``ours`` and ``native`` of the same tensors; ``oracle`` is native in our convention, for the check.

    Args:
        shapes: of each input that has a gradient in the network.
        data: shapes of those that have none: the images.
        classes: the labels, if any, are below it; 0 where there are none.
        terms: of the longest sum that a result is made of.
        kinks: a maximum follows a sum inside, see ``speed_check``.
        found: the oracle's answers, kept.
    """

    name: str
    ours: Callable[..., Tensor]
    native: Callable[..., Tensor]
    oracle: Callable[..., Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    data: Mapping[str, tuple[int, ...]]
    terms: int
    classes: int = 0
    kinks: bool = False
    found: dict[bool, tuple[Tensor, ...]] = field(default_factory=dict, compare=False)

    @property
    def layouts(self) -> Sequence[str]:
        """Those that differ for the inputs' shapes."""
        images = [shape for shape in [*self.data.values(), *self.shapes.values()] if len(shape) == 4]
        return LAYOUTS if images else LAYOUTS[:1]

    def inputs(self, seed: int, whole_numbers: bool, device: str) -> tuple[list[Tensor], Tensor | None]:
        """``data`` and then ``shapes``, float32 and contiguous, and the labels."""
        generator = torch.Generator().manual_seed(seed)
        tensors = [torch.randn(shape, generator=generator) for shape in [*self.data.values(), *self.shapes.values()]]
        if whole_numbers:
            tensors = [(0.6 * t).round() for t in tensors]  # more than half are 0, so that sums often are too
        tensors = [t.to(device) for t in tensors]
        if not self.classes:
            return tensors, None
        return tensors, torch.randint(self.classes, tensors[0].shape[:1], generator=generator).to(device)

    def right(self, whole_numbers: bool, device: str) -> tuple[Tensor, ...]:
        """The oracle's answers in float64 to the question of :meth:`Contender.wrong`, worked out once."""
        if whole_numbers not in self.found:
            inputs, labels = self.inputs(int(whole_numbers), whole_numbers, device)
            self.found[whole_numbers] = answers(self.oracle, [x.double() for x in inputs], labels, len(self.data))
        return self.found[whole_numbers]


def operations(batch: int = 64, channels: Sequence[int] = (16, 32), hidden: int = 128) -> dict[str, Operation]:
    """Under their names: those of ``DocumentCNN`` for 28×28 images, 5×5 kernels and 10 classes."""
    first, second = channels
    b, features = batch, 16 * second
    image, weight = (b, 1, 28, 28), (first, 1, 5, 5)
    middle, weight_2 = (b, first, 12, 12), (second, first, 5, 5)
    parameters = {"weight": weight, "bias": (first,)}
    parameters_2 = {"input": middle, "weight": weight_2, "bias": (second,)}
    planes = {"input": (b, first, 24, 24)}

    def flat(x: Tensor) -> Tensor:
        return torch.flatten(x, 1)

    def flat_by_place(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)

    def fused(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(F.conv2d(x, w, bias)), 2)

    def half_relu(x: Tensor) -> Tensor:
        return torch.maximum(x, x.new_zeros(()))

    def flipped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w, bias: function(x, w.flip(2, 3), bias)

    def fused_half(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return F.max_pool2d(half_relu(F.conv2d(x, w, bias)), 2)

    pool = (lambda x: mg.max_pool2d(x), lambda x: F.max_pool2d(x, 2))
    dense = {"input": (b, features), "weight": (hidden, features), "bias": (hidden,)}
    softmax = (mg.softmax, lambda z: F.softmax(z, -1))
    conv = (mg.conv2d, F.conv2d, flipped(F.conv2d))
    both = (conv2d_relu_max_pool2d, fused, flipped(fused_half))
    n, n_2 = b * 24 * 24, max(b * 8 * 8, 25 * second)
    listed = [
        Operation("conv2d, first", *conv, parameters, {"input": image}, n),
        Operation("conv2d, second", *conv, parameters_2, {}, n_2),
        Operation("relu", mg.relu, F.relu, half_relu, planes, {}, 1),
        Operation("max_pool2d", *pool, pool[1], planes, {}, 1),
        Operation("conv2d_relu_max_pool2d, first", *both, parameters, {"input": image}, n, kinks=True),
        Operation("conv2d_relu_max_pool2d, second", *both, parameters_2, {}, n_2, kinks=True),
        Operation("flatten", mg.flatten, flat, flat_by_place, {"input": (b, second, 4, 4)}, {}, 1),
        Operation("dense", mg.dense, F.linear, F.linear, dense, {}, max(b, features)),
        Operation("softmax", *softmax, softmax[1], {"input": (b, 10)}, {}, 10),
        Operation(
            "softmax_cross_entropy",
            mg.softmax_cross_entropy,
            F.cross_entropy,
            F.cross_entropy,
            {"input": (b, 10)},
            {},
            10 * b,
            classes=10,
        ),
    ]
    return {operation.name: operation for operation in listed}


class Contender:
    """One side of an operation in one layout, on data of its own: ``step`` is timed, ``wrong`` is asked before."""

    phases = PHASES

    def __init__(self, operation: Operation, side: str, layout: str, device: str) -> None:
        self.operation, self.layout, self.device = operation, layout, device
        self.function = operation.ours if side == "ours" else operation.native
        self.step = self._step_on(*self._laid(seed=0, whole_numbers=False))

    def wrong(self) -> list[str]:
        """What is wrong with our answers, in sentences. Native's are not asked for: they are the measure."""
        found = []
        for whole_numbers in (True, False):
            right = self.operation.right(whole_numbers, self.device)
            got = answers(self.function, *self._laid(int(whole_numbers), whole_numbers), len(self.operation.data))
            names = ["output", *self.operation.shapes]
            limit = speed_check.tolerance(self.operation.terms, self.device)
            allowed = dict.fromkeys(names, limit)
            if self.operation.kinks and not whole_numbers:
                allowed = dict.fromkeys(names, speed_check.NEAR_TIES) | {"output": limit}
            label = "whole numbers" if whole_numbers else "drawn numbers"
            pairs = (dict(zip(names, values, strict=False)) for values in (got, right))
            found += [f"{sentence} ({label})" for sentence in speed_check.mistakes(*pairs, allowed)]
        return found

    def saved_of(self) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """The forward pass, and the tensors that the caller holds anyway: for ``memory.saved_bytes``."""
        inputs, labels = self._laid(seed=0, whole_numbers=False)
        leaves = with_gradients(inputs, len(self.operation.data))
        given = leaves if labels is None else [*leaves, labels]
        return lambda: self.function(*given), given

    def _laid(self, seed: int, whole_numbers: bool) -> tuple[list[Tensor], Tensor | None]:
        inputs, labels = self.operation.inputs(seed, whole_numbers, self.device)
        return [laid(x, self.layout) for x in inputs], labels

    def _step_on(self, inputs: list[Tensor], labels: Tensor | None) -> Step:
        data = len(self.operation.data)
        leaves = with_gradients(inputs, data)
        given = leaves if labels is None else [*leaves, labels]
        function = self.function
        gradient = torch.randn_like(function(*given).detach())

        def step(mark: Callable[[], None]) -> None:
            mark()
            output = function(*given)
            mark()
            torch.autograd.grad(output, leaves[data:], gradient)
            mark()

        return step


def with_gradients(inputs: list[Tensor], data: int) -> list[Tensor]:
    """The first ``data`` of them without, the others with a gradient."""
    return [x.detach().requires_grad_(n >= data) for n, x in enumerate(inputs)]


def answers(
    function: Callable[..., Tensor], inputs: list[Tensor], labels: Tensor | None, data: int
) -> tuple[Tensor, ...]:
    """The output, and the gradient of each input after ``data``; the incoming gradient is made of whole numbers."""
    leaves = with_gradients(inputs, data)
    output = function(*leaves) if labels is None else function(*leaves, labels)
    pattern = torch.arange(output.numel(), device=output.device) % 7 - 2.0  # of mean 1: its sums do not cancel
    gradient = pattern.to(output.dtype).reshape(output.shape)
    return output.detach(), *torch.autograd.grad(output, leaves[data:], gradient)
