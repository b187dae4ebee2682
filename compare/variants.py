"""In which dtypes, memory layouts and kinds of data a case is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "transposed", "expanded")
DATA = ("drawn", "whole numbers")


@dataclass(frozen=True)
class Variant:
    """How one run's inputs and incoming gradients are made.

    ``layout`` is that of the inputs, ``gradient_layout`` that of the gradients that backward is given.
    """

    dtype: torch.dtype = torch.float64
    layout: str = "contiguous"
    gradient_layout: str = "contiguous"
    data: str = "drawn"
    device: str = "cpu"

    def __str__(self) -> str:
        parts = [str(self.dtype).removeprefix("torch.")]
        if self.layout != "contiguous":
            parts.append(f"{self.layout} inputs")
        if self.gradient_layout != "contiguous":
            parts.append(f"{self.gradient_layout} gradient")
        if self.data != "drawn":
            parts.append(self.data)
        if self.device != "cpu":
            parts.append(self.device)
        return ", ".join(parts)


def variants(
    dtypes: tuple[torch.dtype, ...] = DTYPES, device: str = "cpu", whole_numbers: bool = True
) -> Iterator[Variant]:
    """The plain one of each dtype first; then one layout at a time, so that a fault shows what it depends on."""
    for dtype in dtypes:
        for data in DATA if whole_numbers else DATA[:1]:
            yield Variant(dtype, data=data, device=device)
        for layout in LAYOUTS[1:]:
            yield Variant(dtype, layout, device=device)
            yield Variant(dtype, gradient_layout=layout, device=device)


def with_values(inputs: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """The inputs rounded as the variant has it: to its dtype, to whole numbers, and the first repeated if expanded.

    In float64, contiguous: these are the exact values that every run of the variant starts from. Only the first input
    that has rows is expanded: with every weight the same, too much would cancel.
    """
    first = next((name for name, value in inputs.items() if value.is_floating_point() and value.dim() > 1), None)
    return {name: _with_values(value, variant, name == first) for name, value in inputs.items()}


def _with_values(tensor: Tensor, variant: Variant, first: bool) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.to(variant.device)
    tensor = tensor.to(device=variant.device, dtype=torch.float64)
    if variant.data == "whole numbers":
        tensor = (2 * tensor).round()
    if variant.layout == "expanded" and first:
        tensor = tensor[:1].expand_as(tensor)
    return tensor.to(variant.dtype).double().contiguous()


def laid(tensor: Tensor, layout: str) -> Tensor:
    """The same values with another order in memory; as they are where the layout has no meaning for their shape.

    "expanded" has a stride of 0 where :func:`with_values` put the same values everywhere along the first dimension.
    """
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.mT.contiguous().mT
    if layout == "expanded" and tensor.dim() > 1 and len(tensor) > 1 and bool((tensor == tensor[:1]).all()):
        return tensor[:1].clone().expand_as(tensor)  # one row of memory, as expand makes it
    return tensor.contiguous()


def incoming_gradient(like: Tensor, variant: Variant, seed: int) -> Tensor:
    """The gradient that backward is given for an output like ``like``, in float64, rounded to the variant's dtype.

    "expanded" is one number for all, with strides of 0, as the backward of ``sum`` makes it.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    if variant.data == "whole numbers":
        values = (2 * values).round()
    if variant.gradient_layout == "expanded":
        values = torch.full_like(values, 0.75)
    return values.to(variant.dtype).double().to(variant.device)


def laid_gradient(gradient: Tensor, layout: str) -> Tensor:
    """The incoming gradient in its layout."""
    if layout == "expanded" and gradient.numel():
        return gradient.flatten()[0].clone().expand(gradient.shape)
    return laid(gradient, layout)
