"""Dtypes, memory layouts and kinds of data in which a case is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.gradients.numbers import as_real, has_gradient, to_precision

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "transposed", "expanded")
DATA = ("drawn", "whole numbers")  # as the case draws its inputs; and the same rounded to whole numbers
SECOND_DRAW = "second draw"  # other inputs and other incoming gradients of the same case
INCOMING_STREAM = 0x6D610000  # first seed of incoming gradients; inputs have another, case.INPUT_STREAM


@dataclass(frozen=True)
class Variant:
    """Dtype, memory layouts, data and device of one run.

    ``layout`` is the memory layout of the inputs, ``gradient_layout`` that of the incoming gradients.
    """

    dtype: torch.dtype = torch.float64
    layout: str = "contiguous"
    gradient_layout: str = "contiguous"
    data: str = "drawn"
    device: str = "cpu"

    def __str__(self) -> str:
        words = [str(self.dtype).removeprefix("torch.")]
        if self.layout != "contiguous":
            words.append(f"{self.layout} inputs")
        if self.gradient_layout != "contiguous":
            words.append(f"{self.gradient_layout} incoming gradient")
        if self.data != "drawn":
            words.append(self.data)
        if self.device != "cpu":
            words.append(self.device)
        return ", ".join(words)


def variants(
    dtypes: tuple[torch.dtype, ...] = DTYPES, device: str = "cpu", whole_numbers: bool = True
) -> Iterator[Variant]:
    """Variants of every dtype: contiguous tensors first, then one other layout at a time.

    A mistake that shows in a single variant can then be attributed to that dtype or layout. The dtypes of
    :func:`call_dtypes` have a second draw of inputs and incoming gradients too.
    """
    for dtype in dtypes:
        for data in DATA if whole_numbers else DATA[:1]:
            yield Variant(dtype, data=data, device=device)
        if dtype in call_dtypes(dtypes):
            yield Variant(dtype, data=SECOND_DRAW, device=device)
        for layout in LAYOUTS[1:]:
            yield Variant(dtype, layout, device=device)
            yield Variant(dtype, gradient_layout=layout, device=device)


def call_dtypes(dtypes: tuple[torch.dtype, ...]) -> tuple[torch.dtype, ...]:
    """Dtypes in which calls are varied: the first, and float32, in which kernels often replace a formula."""
    return tuple(dict.fromkeys((*dtypes[:1], *(dtype for dtype in dtypes if dtype is torch.float32))))


def round_inputs(inputs: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Round the inputs to the variant's dtype and data, and return them in double precision, contiguous.

    Every run of the variant starts from exactly these values. In the "expanded" layout the first input with rows has
    the same values in every row. The other inputs keep their rows: with equal rows everywhere too many terms cancel.
    """
    first = next((name for name, value in inputs.items() if has_gradient(value) and value.dim() > 1), None)
    return {name: _round_input(value, variant, is_first=name == first) for name, value in inputs.items()}


def _round_input(tensor: Tensor, variant: Variant, *, is_first: bool) -> Tensor:
    if not has_gradient(tensor):
        return tensor.to(variant.device)
    tensor = to_precision(tensor.to(variant.device), torch.float64)
    if variant.data == "whole numbers":
        tensor = _to_whole_numbers(tensor)
    if variant.layout == "expanded" and is_first:
        tensor = tensor[:1].expand_as(tensor)
    return to_precision(to_precision(tensor, variant.dtype), torch.float64).contiguous()


def _to_whole_numbers(values: Tensor) -> Tensor:
    """Double and round: whole numbers with zeros and ties among them."""
    rounded = (2 * as_real(values)).round()
    return torch.view_as_complex(rounded) if values.is_complex() else rounded


def to_layout(tensor: Tensor, layout: str) -> Tensor:
    """Copy the values into another memory layout; a layout that the shape cannot have leaves them contiguous.

    "expanded" makes the first dimension's stride 0 if all rows are equal, as :func:`round_inputs` makes them.
    """
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.mT.contiguous().mT
    if layout == "expanded" and tensor.dim() > 1 and len(tensor) > 1 and bool((tensor == tensor[:1]).all()):
        return tensor[:1].clone().expand_as(tensor)  # one row of memory, as Tensor.expand makes it
    return tensor.contiguous()


def incoming_gradient(output: Tensor, variant: Variant, seed: int) -> Tensor:
    """Draw the gradient that backward receives for ``output``: double precision, rounded to the variant's dtype.

    Its random numbers have a stream of their own: they are not those of any input. For the gradient layout "expanded"
    all elements are one number, as in the backward of ``sum``.
    """
    draw = 1000 * (variant.data == SECOND_DRAW)
    generator = torch.Generator().manual_seed(INCOMING_STREAM + draw + seed)
    dtype = torch.complex128 if output.is_complex() else torch.float64
    values = torch.randn(output.shape, generator=generator, dtype=dtype)
    if variant.data == "whole numbers":
        values = _to_whole_numbers(values)
        values = values.where(values != 0, 1.0)  # a zero would hide a mistake at a tie
    if variant.gradient_layout == "expanded":
        values = torch.full_like(values, 0.75)
    return to_precision(to_precision(values, variant.dtype), torch.float64).to(variant.device)


def gradient_to_layout(gradient: Tensor, layout: str) -> Tensor:
    """Copy the incoming gradient into a memory layout; "expanded" gives every dimension the stride 0."""
    if layout == "expanded" and gradient.numel():
        return gradient.flatten()[0].clone().expand(gradient.shape)
    return to_layout(gradient, layout)
