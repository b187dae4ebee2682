"""One function under test with its inputs, and the baseline run that other ways of running it must reproduce."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compare.capabilities.assertions import assert_close
from compare.case import Case
from compare.gradients.run_variant import gradient_name, output_name


class FunctionUnderTest:
    """The function of ``case`` that is under test, ours or native, with the case's inputs in ``dtype`` on ``device``.

    Every run starts from fresh copies, so a function that writes into its arguments does not spoil a later run.
    """

    def __init__(
        self,
        case: Case,
        function: Callable[..., Any],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.case, self.function, self.device, self.dtype = case, function, torch.device(device), dtype
        self.inputs = self.draw_inputs(0)

    def draw_inputs(self, seed: int) -> dict[str, Tensor]:
        """Draw the case's inputs from ``seed``, floating-point ones in ``self.dtype``."""
        return {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype).clone()
            for name, tensor in self.case.inputs(seed).items()
        }

    def with_function(self, function: Callable[..., Any]) -> FunctionUnderTest:
        """Put ``function`` under test with the same case, device and dtype."""
        return FunctionUnderTest(self.case, function, self.device, self.dtype)

    @property
    def floating_names(self) -> list[str]:
        """Names of the floating-point inputs, which are those that have a gradient."""
        return [name for name, tensor in self.inputs.items() if tensor.is_floating_point()]

    def leaves(
        self, inputs: Mapping[str, Tensor] | None = None, requires_grad: Sequence[str] | None = None
    ) -> list[Tensor]:
        """Copies of ``inputs`` in order, with their strides; those named in ``requires_grad``, or all floating-point
        ones, require a gradient."""
        inputs = self.inputs if inputs is None else inputs
        names = self.floating_names if requires_grad is None else requires_grad
        return [copy_with_strides(tensor.detach()).requires_grad_(name in names) for name, tensor in inputs.items()]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the function and return its floating-point outputs."""
        result = self.function(*tensors)
        outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        if not all(isinstance(output, Tensor) for output in outputs):
            kinds = ", ".join(type(output).__name__ for output in outputs)
            raise TypeError(f"a function under test must return a tensor or a tuple of tensors, got {kinds}")
        return tuple(output for output in outputs if output.is_floating_point())

    def as_scalar_function(self) -> Callable[..., Tensor]:
        """Return the function with a scalar result: the sum of all outputs, weighted by fixed random numbers."""
        weights = random_grad_outputs(self.baseline[0])  # drawn beforehand: vmap allows no random numbers inside
        return lambda *tensors: sum((o * w).sum() for o, w in zip(self(*tensors), weights, strict=True))

    def of_floating_inputs(self, function: Callable[..., Any]) -> tuple[Callable[..., Any], list[Tensor]]:
        """Return ``function`` with all but the floating-point inputs fixed, and copies of the floating-point ones."""
        tensors = [tensor.clone() for tensor in self.inputs.values()]
        positions = [n for n, tensor in enumerate(tensors) if tensor.is_floating_point()]

        def partial(*floating: Tensor) -> Any:
            arguments = list(tensors)
            for n, tensor in zip(positions, floating, strict=True):
                arguments[n] = tensor
            return function(*arguments)

        return partial, [tensors[n] for n in positions]

    @cached_property
    def baseline(self) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and gradients of one ordinary forward and backward pass."""
        return run_forward_backward(self, self.leaves())

    def gradient_names(self) -> list[str]:
        """Names of the gradients, in order."""
        return [gradient_name(name) for name in self.floating_names]

    def assert_equals_baseline(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor], where: str = "") -> None:
        """Assert that outputs and gradients of all floating-point inputs are those of the baseline run.

        Raises:
            CheckFailed: they are not.
        """
        assert_close(outputs, self.baseline[0], output_names(outputs), where)
        assert_close(gradients, self.baseline[1], self.gradient_names(), where)


def output_names(outputs: Sequence[Tensor]) -> list[str]:
    """Names of the outputs, in order."""
    return [output_name(n) for n in range(len(outputs))]


def run_forward_backward(
    function: Callable[..., Any], leaves: Sequence[Tensor], grad_outputs: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Run a forward and a backward pass; return outputs and gradients of the leaves that require one.

    ``grad_outputs`` default to :func:`random_grad_outputs`.
    """
    outputs = function(*leaves)
    grads = input_grads(outputs, leaves, random_grad_outputs(outputs) if grad_outputs is None else grad_outputs)
    return [output.detach() for output in outputs], grads


def input_grads(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], grad_outputs: Sequence[Tensor], **options: Any
) -> list[Tensor]:
    """Gradients of the leaves that require one; zeros for a leaf that receives none."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    selected, selected_grads = requiring_grad(outputs, grad_outputs)
    grads = torch.autograd.grad(selected, wanted, selected_grads, allow_unused=True, **options)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(wanted, grads, strict=True)]


def requiring_grad(outputs: Sequence[Tensor], grad_outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Select the outputs that require a gradient, and the gradients for them."""
    numbers = [n for n, output in enumerate(outputs) if output.requires_grad]
    if not numbers:
        raise RuntimeError("no output requires a gradient, although an input does")
    return [outputs[n] for n in numbers], [grad_outputs[n] for n in numbers]


def random_grad_outputs(outputs: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    """Draw a fixed random gradient for each output."""
    return random_like(outputs, seed)


def random_like(tensors: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Draw normal numbers in the shape of each tensor: the same for the same shapes and seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype) for t in tensors]


def copy_with_strides(tensor: Tensor) -> Tensor:
    """Copy ``tensor`` with its memory layout: gaps, storage offset and strides of 0 included."""
    if not tensor.numel():
        return tensor.clone()
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.as_strided((last + 1,), (1,), 0).clone()
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
