"""The operations of the table that a ``DocumentCNN`` runs, ready to be checked and timed in both memory layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compare.gradients.variants import to_layout
from compare.operation import Option, Shapes
from compare.operations import OPTIONS
from compare.speed import correctness
from compare.speed.timer import TimedStep

PHASES = ("forward", "backward")
LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class TimedOperation:
    """An option of the table on tensors of the shapes that it has in a network.

    Args:
        option: the option; ``option.reference`` computes the results to compare with.
        ours: our function.
        shapes: shapes of the tensors; the first ``option.data`` of them have no gradient, such as the images.
        expected: results of the reference that :meth:`expected_results` has computed.
    """

    option: Option
    ours: Callable[..., Tensor]
    shapes: Shapes
    expected: dict[bool, tuple[Tensor, ...]] = field(default_factory=dict, compare=False)

    @property
    def layouts(self) -> Sequence[str]:
        """Memory layouts that differ for tensors of these shapes."""
        return LAYOUTS if any(len(shape) == 4 for shape in self.shapes) else LAYOUTS[:1]

    def inputs(self, seed: int, whole_numbers: bool, device: str) -> tuple[list[Tensor], Tensor | None]:
        """Contiguous float32 tensors, and labels if the operation takes them."""
        generator = torch.Generator().manual_seed(seed)
        tensors = [torch.randn(shape, generator=generator) for shape in self.shapes]
        if whole_numbers:
            tensors = [(0.6 * t).round() for t in tensors]  # more than half are 0, so that sums often are too
        tensors = [t.to(device) for t in tensors]
        if self.option.operation.target != "labels":
            return tensors, None
        batch, classes = self.shapes[0]
        return tensors, torch.randint(classes, (batch,), generator=generator).to(device)

    def expected_results(self, whole_numbers: bool, device: str) -> tuple[Tensor, ...]:
        """The float64 results that :meth:`Contender.find_mismatches` compares with; computed once."""
        if whole_numbers not in self.expected:
            inputs, labels = self.inputs(int(whole_numbers), whole_numbers, device)
            inputs = [x.double() for x in inputs]
            results = output_and_gradients(self.option.reference, inputs, labels, self.option.data)
            self.expected[whole_numbers] = results
        return self.expected[whole_numbers]


def operations(batch: int = 64, channels: Sequence[int] = (16, 32), hidden: int = 128) -> dict[str, TimedOperation]:
    """Operations of a ``DocumentCNN`` for 28×28 images, 5×5 kernels and 10 classes, by name."""
    return {
        option.title: TimedOperation(option, option.ours, option.network(batch, channels, hidden))
        for option in OPTIONS
        if option.network
    }


class Contender:
    """One side of an operation in one layout, with inputs of its own.

    :meth:`find_mismatches` checks the results, ``step`` is what is timed.
    """

    phases = PHASES

    def __init__(self, operation: TimedOperation, side: str, layout: str, device: str) -> None:
        self.operation, self.layout, self.device = operation, layout, device
        self.option = operation.option
        self.function = operation.ours if side == "ours" else self.option.native
        self.step = self._make_step(*self._inputs(seed=0, whole_numbers=False))

    def find_mismatches(self) -> list[str]:
        """Sentences about each output or gradient of ours that differs from PyTorch's by more than rounding."""
        operation, data, sentences = self.option.operation, self.option.data, []
        names = ["output", *operation.tensors[data:]]
        limit = correctness.rounding_tolerance(operation.longest_sum(*self.operation.shapes), self.device)
        for whole_numbers in (True, False):
            expected = self.operation.expected_results(whole_numbers, self.device)
            results = output_and_gradients(self.function, *self._inputs(int(whole_numbers), whole_numbers), data)
            tolerance = dict.fromkeys(names, limit)
            if operation.kinks and not whole_numbers:
                tolerance = dict.fromkeys(names, correctness.NEAR_TIE_TOLERANCE) | {"output": limit}
            label = "whole numbers" if whole_numbers else "random numbers"
            pairs = (dict(zip(names, values, strict=False)) for values in (results, expected))
            sentences += [f"{sentence} ({label})" for sentence in correctness.describe_mismatches(*pairs, tolerance)]
        return sentences

    def forward_and_held_tensors(self) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """The forward pass, and the tensors that its caller holds in any case: for ``memory.saved_bytes``."""
        arguments, _ = self._arguments(*self._inputs(seed=0, whole_numbers=False))
        return lambda: self.function(*arguments), arguments

    def _inputs(self, seed: int, whole_numbers: bool) -> tuple[list[Tensor], Tensor | None]:
        inputs, labels = self.operation.inputs(seed, whole_numbers, self.device)
        return [to_layout(x, self.layout) for x in inputs], labels

    def _arguments(self, inputs: list[Tensor], labels: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Arguments of the function, and those of them that require a gradient."""
        leaves = with_gradients(inputs, self.option.data)
        return leaves if labels is None else [*leaves, labels], leaves[self.option.data :]

    def _make_step(self, inputs: list[Tensor], labels: Tensor | None) -> TimedStep:
        arguments, leaves = self._arguments(inputs, labels)
        function = self.function
        gradient = torch.randn_like(function(*arguments).detach())

        def step(mark: Callable[[], None]) -> None:
            mark()
            output = function(*arguments)
            mark()
            torch.autograd.grad(output, leaves, gradient)
            mark()

        return step


def with_gradients(inputs: list[Tensor], data: int) -> list[Tensor]:
    """Copies as leaves; all but the first ``data`` require a gradient."""
    return [x.detach().requires_grad_(n >= data) for n, x in enumerate(inputs)]


def output_and_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], labels: Tensor | None, data: int
) -> tuple[Tensor, ...]:
    """The output, and the gradient of each input after ``data``; the incoming gradient is made of whole numbers."""
    leaves = with_gradients(inputs, data)
    output = function(*leaves) if labels is None else function(*leaves, labels)
    pattern = torch.arange(output.numel(), device=output.device) % 7 - 2.0  # of mean 1: its sums do not cancel
    gradient = pattern.to(output.dtype).reshape(output.shape)
    return output.detach(), *torch.autograd.grad(output, leaves[data:], gradient)
