"""The options of ``compare/operations.py`` as tests of derivatives, transforms and purity run them.

The inputs are small enough for finite differences, and free of ties where the derivative has a jump.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.operation import Shapes
from compare.operations import OPTIONS


@dataclass(frozen=True)
class SmallOperation:
    """``function`` of the tensors that :meth:`inputs` makes, all of which have a gradient."""

    name: str
    function: Callable[..., Tensor]
    shapes: Shapes
    untied: bool

    def inputs(self, dtype: torch.dtype = torch.float64, device: object = "cpu") -> tuple[Tensor, ...]:
        """Random values. If ``untied``, the distance between any two, and between any one and 0, is at least 0.03."""
        generator = torch.Generator().manual_seed(len(self.name))
        tensors = []
        for shape in self.shapes:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            if self.untied:
                n = values.numel()
                order = torch.randperm(n, generator=generator).double()
                values = ((order - n / 2 + 0.5) / 16).reshape(shape)
            tensors.append(values.to(device=device, dtype=dtype).requires_grad_())
        return tuple(tensors)


SMALL_OPERATIONS = [
    SmallOperation(option.title, option.ours, option.small, option.operation.untied)
    for option in OPTIONS
    if option.small
]


def operation_id(operation: SmallOperation) -> str:
    """Name of the operation as a pytest id."""
    return operation.name.replace(", ", "-").replace(" ", "-")
