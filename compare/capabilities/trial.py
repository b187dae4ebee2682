"""One function on trial, its inputs, and the plain run that other ways of running are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compare.capabilities.agreement import must_agree
from compare.case import Case
from compare.running import gradient_name, output_name


class Trial:
    """``function`` of ``case``, ours or native, with the case's inputs in float64 on ``device``.

    Every run starts from fresh copies, so that a function that writes into its arguments spoils no later run.
    """

    def __init__(self, case: Case, function: Callable[..., Any], device: str | torch.device = "cpu") -> None:
        self.case, self.function, self.device = case, function, torch.device(device)
        self.inputs = self.draw(0)

    def draw(self, seed: int) -> dict[str, Tensor]:
        """The inputs that the case makes of ``seed``, floating-point ones in float64."""
        return {
            name: tensor.to(self.device, torch.float64 if tensor.is_floating_point() else tensor.dtype).clone()
            for name, tensor in self.case.inputs(seed).items()
        }

    @property
    def floating(self) -> list[str]:
        """The names of inputs that have a gradient."""
        return [name for name, tensor in self.inputs.items() if tensor.is_floating_point()]

    def leaves(self, inputs: Mapping[str, Tensor] | None = None, asking: Sequence[str] | None = None) -> list[Tensor]:
        """Copies of ``inputs`` in order, with their strides; those in ``asking``, or all, ask for a gradient."""
        inputs = self.inputs if inputs is None else inputs
        asking = self.floating if asking is None else asking
        return [restrided(tensor.detach()).requires_grad_(name in asking) for name, tensor in inputs.items()]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The floating-point outputs."""
        result = self.function(*tensors)
        outputs = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        if not all(isinstance(output, Tensor) for output in outputs):
            kinds = ", ".join(type(output).__name__ for output in outputs)
            raise TypeError(f"a function on trial must return a tensor or a tuple of tensors, got {kinds}")
        return tuple(output for output in outputs if output.is_floating_point())

    def scalar(self) -> Callable[..., Tensor]:
        """As a function to a single number: the sum of all outputs, each element times a fixed random number."""
        weights = upstream(self.plain[0])  # drawn beforehand: under vmap nothing may be drawn
        return lambda *tensors: sum((o * w).sum() for o, w in zip(self(*tensors), weights, strict=True))

    def of_floating(self, function: Callable[..., Any]) -> tuple[Callable[..., Any], list[Tensor]]:
        """``function`` as one of the floating-point inputs alone, the others fixed, and copies of them."""
        tensors = [tensor.clone() for tensor in self.inputs.values()]
        places = [n for n, tensor in enumerate(tensors) if tensor.is_floating_point()]

        def partial(*floating: Tensor) -> Any:
            together = list(tensors)
            for n, tensor in zip(places, floating, strict=True):
                together[n] = tensor
            return function(*together)

        return partial, [tensors[n] for n in places]

    @cached_property
    def plain(self) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and gradients of one ordinary run there and back."""
        return there_and_back(self, self.leaves())

    def gradient_names(self) -> list[str]:
        """How the gradients are called, in order."""
        return [gradient_name(name) for name in self.floating]

    def must_equal_plain(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor], where: str = "") -> None:
        """That outputs and gradients of all floating-point inputs are those of the plain run.

        Raises:
            Fails: they are not.
        """
        must_agree(outputs, self.plain[0], output_names(outputs), where)
        must_agree(gradients, self.plain[1], self.gradient_names(), where)


def output_names(outputs: Sequence[Tensor]) -> list[str]:
    """How the outputs are called, in order."""
    return [output_name(n) for n in range(len(outputs))]


def there_and_back(
    function: Callable[..., Any], leaves: Sequence[Tensor], gradients: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of the leaves that ask, from :func:`upstream` or the given gradients of the outputs."""
    outputs = function(*leaves)
    found = pull(outputs, leaves, upstream(outputs) if gradients is None else gradients)
    return [output.detach() for output in outputs], found


def pull(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], gradients: Sequence[Tensor], **options: Any
) -> list[Tensor]:
    """Gradients of the leaves that ask for one, zeros where none arrives."""
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    sent, given = asking(outputs, gradients)
    found = torch.autograd.grad(sent, wanted, given, allow_unused=True, **options)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(wanted, found, strict=True)]


def asking(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that a gradient can be sent through, and the gradients for them."""
    numbers = [n for n, output in enumerate(outputs) if output.requires_grad]
    if not numbers:
        raise RuntimeError("no output asks for a gradient, although an input does")
    return [outputs[n] for n in numbers], [gradients[n] for n in numbers]


def upstream(outputs: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    """A fixed random gradient for each output."""
    return random_like(outputs, seed)


def random_like(tensors: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Normal numbers in the shape of each, the same for the same shapes and seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype) for t in tensors]


def restrided(tensor: Tensor) -> Tensor:
    """A copy that lies in memory as ``tensor`` does, gaps, offset and strides of 0 included."""
    if not tensor.numel():
        return tensor.clone()
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.as_strided((last + 1,), (1,), 0).clone()
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
