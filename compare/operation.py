"""The types of the table in ``operations.py``: an operation beside PyTorch's, and one option of an operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import Tensor

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Operation:
    """An operation of ours and PyTorch's counterpart.

    Args:
        name: name in reports and test ids.
        tensors: names of the tensor arguments, in order.
        ours: our function.
        native: PyTorch's function as its users call it; ``compare speed`` times it.
        reference: PyTorch's function made to follow our conventions: flipped kernels, ReLU's derivative 1/2 at 0,
            flattening in (row, column, channel) order. It takes our keyword arguments. None: ``native`` follows them.
        takes_subgradient: ``ours`` and ``reference`` take ReLU's derivative at 0 as ``subgradient``; PyTorch's is 0.
        exact: whole-number inputs are computed without rounding, so PyTorch's results must be equal bit for bit.
        untied: finite differences need inputs of which no two, and none and 0, are close.
        kinks: a ReLU or maximum follows a sum inside; see :class:`compare.Case`.
        scale: standard deviation of the first tensor in reports.
        target: kind of the second tensor, if it is a target. "labels" are class indices, for which options give no
            shape: ``ours`` and ``native`` take default labels if they get none.
        combined_with: sets of keyword arguments. The native tests run each option with each of these sets, unless the
            option itself sets one of the arguments.
        longest_sum: from the shapes of the tensors, the number of terms in the longest sum of a result or gradient.
        census: from the tensors and keyword arguments, counts of values where a derivative is a convention.
    """

    name: str
    tensors: tuple[str, ...]
    ours: Callable[..., Any]
    native: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    takes_subgradient: bool = False
    exact: bool = True
    untied: bool = False
    kinks: bool = False
    scale: float = 1.0
    target: Literal["", "labels", "probabilities"] = ""
    combined_with: Sequence[Mapping[str, Any]] = ({},)
    longest_sum: Callable[..., int] = lambda *shapes: 1
    census: Callable[..., Mapping[str, int]] | None = None

    def option(self, name: str, small: Shapes | None = None, wide: Shapes | None = None, **more: Any) -> Option:
        """An :class:`Option`; of ``more``, what is not one of its fields is a keyword argument of the operation."""
        fields = {key: more.pop(key) for key in Option.__dataclass_fields__ if key in more}
        return Option(self, name, more, small, wide, **fields)


@dataclass(frozen=True)
class Option:
    """Keyword arguments of an operation, and the shapes of the tensors that each kind of test runs it on.

    Without shapes for a kind of test, the option is left out of it.

    Args:
        name: name of the option; empty for the operation without keyword arguments.
        small: shapes for finite differences, and for all other tests of derivatives, transforms and purity.
        wide: shapes for the comparison with PyTorch.
        long: shapes with long sums, for rounding errors in float32 and below.
        network: shapes in a ``DocumentCNN``, from its batch size, channels and hidden units, for ``compare speed``.
        data: number of leading tensors without a gradient in that network.
        report: ``python -m compare gradients`` has the option as a case, with the shapes of ``wide``.
    """

    operation: Operation
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    small: Shapes | None = None
    wide: Shapes | None = None
    long: Shapes | None = None
    network: Callable[[int, Sequence[int], int], Shapes] | None = None
    data: int = 0
    report: bool = False

    @property
    def title(self) -> str:
        """Name of the operation and of the option."""
        return f"{self.operation.name}, {self.name}" if self.name else self.operation.name

    @property
    def ours(self) -> Callable[..., Any]:
        """Our function with the keyword arguments bound."""
        return partial(self.operation.ours, **self.arguments)

    @property
    def native(self) -> Callable[..., Any]:
        """PyTorch's function, as its users call it, with the keyword arguments bound."""
        return partial(self.operation.native, **self.arguments)

    @property
    def reference(self) -> Callable[..., Any]:
        """PyTorch's function in our conventions with the keyword arguments bound."""
        return partial(self.operation.reference or self.operation.native, **self.arguments)

    def count(self, *tensors: Tensor) -> Mapping[str, int]:
        """Counts of the operation's census on ``tensors``."""
        return self.operation.census(*tensors, **self.arguments)
