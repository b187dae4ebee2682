"""How a convolution lies on its input: the arguments that are not tensors, checked and made one value."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from manualgrad.ops import checks
from manualgrad.ops.windows import Windows


@dataclass(frozen=True)
class Geometry:
    """All of a convolution that is not a tensor: ``size`` is (H, W); ``flip`` makes it a convolution, not a
    correlation."""

    windows: Windows
    size: tuple[int, int]
    groups: int = 1
    flip: bool = True


def geometry_of(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    dilation: int | tuple[int, int],
    groups: int,
    flip_kernel: bool,
) -> Geometry:
    """The arguments of :func:`manualgrad.functional.conv2d`, looked at; raises ValueError where they do not fit."""
    if 0 in input.shape[-3:]:
        raise ValueError(f"conv2d: only the batch may be empty, got input of shape {tuple(input.shape)}")
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(
            f"conv2d: weight must be (out channels, in channels / groups, rows, columns), none of them 0, "
            f"got shape {tuple(weight.shape)}"
        )
    out_channels, in_channels, *kernel_size = weight.shape
    if not isinstance(flip_kernel, bool):
        raise TypeError(f"conv2d: flip_kernel must be True or False, got {flip_kernel!r}")
    groups = checks.whole("conv2d", "groups", groups, least=1)
    if input.shape[-3] != in_channels * groups:
        raise ValueError(
            f"conv2d: weight of shape {tuple(weight.shape)} with groups={groups} takes {in_channels * groups} "
            f"input channels, got input of shape {tuple(input.shape)} with {input.shape[-3]}"
        )
    if out_channels % groups:
        raise ValueError(f"conv2d: {out_channels} output channels do not split into groups={groups}")
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise ValueError(f"conv2d: bias must have shape ({out_channels},), got {tuple(bias.shape)}")

    stride = checks.pair("conv2d", "stride", stride, least=1)
    dilation = checks.pair("conv2d", "dilation", dilation, least=1)
    unpadded = Windows(tuple(kernel_size), stride, dilation=dilation)
    windows = replace(unpadded, padding=padding_of(padding, unpadded))
    size = tuple(input.shape[-2:])
    padded, span = windows.padded(*size), windows.span()
    if padded[0] < span[0] or padded[1] < span[1]:
        raise ValueError(
            f"conv2d: the kernel must fit into the padded input, got a kernel of {span[0]}x{span[1]} (dilation "
            f"counted) on {padded[0]}x{padded[1]}"
        )
    return Geometry(windows, size, groups, flip_kernel)


def padding_of(padding: int | tuple[int, int] | str, windows: Windows) -> tuple[int, int, int, int]:
    """The argument ``padding`` as (top, bottom, left, right); raises ValueError where it is not one."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        if windows.stride != (1, 1):
            raise ValueError(f"conv2d: padding='same' goes with stride 1 only, got stride {windows.stride}")
        rows, columns = (span - 1 for span in windows.span())
        return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2
    if isinstance(padding, str):
        raise ValueError(f"conv2d: padding must be a number, a pair, 'same' or 'valid', got {padding!r}")
    rows, columns = checks.pair("conv2d", "padding", padding, least=0)
    return rows, rows, columns, columns
