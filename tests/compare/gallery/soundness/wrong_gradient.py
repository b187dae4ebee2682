"""An entry of the gallery of wrong gradients that are right in some situations, and the means to write one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from compare.case import Case


@dataclass(frozen=True)
class WrongGradient:
    """A Function with one mistake that does not show in every situation.

    Args:
        make_case: makes the case; state that the Function keeps between calls is new in each case.
        quantity: name of the input whose gradient is wrong, or "output"; "" if the mistake belongs to no quantity.
    """

    make_case: Callable[[], Case]
    quantity: str

    @property
    def name(self) -> str:
        """Name of the case."""
        return self.make_case().name


def wrong(
    name: str,
    quantity: str,
    ours: Callable[..., Any],
    native: Callable[..., Any],
    make_inputs: Callable[[], Any],
    **options: Any,
) -> WrongGradient:
    """Make an entry of a Function without state; ``options`` are those of the case."""
    case = Case(name, ours, native, make_inputs, **options)
    return WrongGradient(lambda: case, quantity)


def wrong_with_state(
    name: str,
    quantity: str,
    make_ours: Callable[[], Callable[..., Any]],
    native: Callable[..., Any],
    make_inputs: Callable[[], Any],
) -> WrongGradient:
    """Make an entry of a Function with state, which ``make_ours`` makes anew."""
    return WrongGradient(lambda: Case(name, make_ours(), native, make_inputs), quantity)


def from_output(forward: Callable[..., Tensor], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a Function with ``setup_context`` that saves its output, and return its ``apply``.

    Args:
        backward: takes the gradient of the output, the output, then the inputs, and returns the gradients of the
            inputs.
    """

    class FromOutput(Function):
        @staticmethod
        def forward(*inputs: Tensor) -> Tensor:
            return forward(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            ctx.save_for_backward(output, *inputs)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return backward(g, *ctx.saved_tensors)

    return FromOutput.apply


def with_needs(forward: Callable[..., Tensor], backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a Function whose ``backward`` takes ``needs_input_grad`` first, then the gradient and the inputs."""

    class WithNeeds(Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            return forward(*inputs)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return backward(ctx.needs_input_grad, g, *ctx.saved_tensors)

    return WithNeeds.apply


def complex_randn(**shapes: tuple[int, ...]) -> Callable[[], dict[str, Tensor]]:
    """Return a ``make_inputs`` that draws complex normal numbers of the given shapes, by name."""
    return lambda: {name: torch.randn(shape, dtype=torch.complex128) for name, shape in shapes.items()}
