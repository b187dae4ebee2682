"""Geometry of a convolution: its arguments that are not tensors, checked and collected in one value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from manualgrad._torch_compat import is_any_autocast_enabled
from manualgrad.ops import checks
from manualgrad.ops.tracers import untraced
from manualgrad.ops.value_cache import MAX_CACHED, cached_by_value, have_exact_types
from manualgrad.ops.windows import Windows
from manualgrad.tensor_checks import PLAIN_TYPES, active_mode


@dataclass(frozen=True)
class Conv2dGeometry:
    """Arguments of a convolution that are not tensors.

    ``input_size`` is (H, W) without padding. ``flip_kernel`` True is a convolution, False a correlation.
    ``channels_last`` is the memory format of results in PyTorch's layout: True or, for contiguous ones, False.
    """

    windows: Windows
    input_size: tuple[int, int]
    groups: int = 1
    flip_kernel: bool = True
    channels_last: bool = True

    @cached_property
    def _hash(self) -> int:
        return hash((self.windows, self.input_size, self.groups, self.flip_kernel, self.channels_last))

    def __hash__(self) -> int:
        return self._hash  # caches look it up several times in each call


_known: dict[tuple[Any, ...], tuple[Conv2dGeometry, tuple[Any, ...]]] = {}


def known_conv2d_geometry(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]
) -> Conv2dGeometry | None:
    """Return the geometry of arguments that :func:`remember_conv2d_geometry` has, in plain eager mode; else None.

    The arguments that are no tensors are ``options``. They are immutable and are compared by identity, since 1, 1.0
    and True are equal."""
    is_plain = type(input) in PLAIN_TYPES and type(weight) in PLAIN_TYPES
    if not is_plain or not (bias is None or type(bias) in PLAIN_TYPES) or active_mode() or is_any_autocast_enabled():
        return None
    known = _known.get(_key(input, weight, bias, options))
    return None if known is None else known[0]


def remember_conv2d_geometry(
    input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], geometry: Conv2dGeometry
) -> None:
    """Keep ``geometry`` for :func:`known_conv2d_geometry`. The arguments have passed all checks."""
    if not active_mode() and not is_any_autocast_enabled() and have_exact_types(options):
        if len(_known) >= MAX_CACHED:
            _known.clear()
        _known[_key(input, weight, bias, options)] = geometry, options  # kept, so that no other object gets their id


def _key(input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> tuple[Any, ...]:
    of_bias = None if bias is None else (bias.shape, bias.dtype, bias.device)
    return (
        input.shape, input.dtype, input.device, weight.shape, weight.dtype, weight.device, of_bias, *map(id, options)
    )  # fmt: skip


@untraced
def make_conv2d_geometry(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    dilation: int | tuple[int, int],
    groups: int,
    flip_kernel: bool,
    channels_last: bool = True,
) -> Conv2dGeometry:
    """Check the arguments of :func:`manualgrad.functional.conv2d` and return :func:`conv2d_geometry`."""
    return conv2d_geometry(
        input.shape, weight.shape, None if bias is None else bias.shape, stride, padding, dilation, groups,
        flip_kernel, channels_last,
    )  # fmt: skip


@cached_by_value
def conv2d_geometry(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    dilation: int | tuple[int, int],
    groups: int,
    flip_kernel: bool,
    channels_last: bool,
) -> Conv2dGeometry:
    """Return the geometry of a convolution of tensors of these shapes.

    Raises:
        TypeError: flip_kernel is no bool.
        ValueError: shapes or numbers do not fit.
    """
    if 0 in input_shape[-3:]:
        raise ValueError(f"conv2d: only the batch may be empty, got input of shape {tuple(input_shape)}")
    if len(weight_shape) != 4 or 0 in weight_shape:
        raise ValueError(
            f"conv2d: weight must have shape (out_channels, in_channels / groups, kH, kW), none of them 0, "
            f"got shape {tuple(weight_shape)}"
        )
    out_channels, group_channels, *kernel_size = weight_shape
    if not isinstance(flip_kernel, bool):
        raise TypeError(f"conv2d: flip_kernel must be True or False, got {flip_kernel!r}")
    groups = checks.as_integer("conv2d", "groups", groups, minimum=1)
    if input_shape[-3] != group_channels * groups:
        raise ValueError(
            f"conv2d: weight of shape {tuple(weight_shape)} with groups={groups} takes {group_channels * groups} "
            f"input channels, got input of shape {tuple(input_shape)} with {input_shape[-3]}"
        )
    if out_channels % groups:
        raise ValueError(
            f"conv2d: the number of output channels must be divisible by groups, got {out_channels} and "
            f"groups={groups}"
        )
    if bias_shape is not None and tuple(bias_shape) != (out_channels,):
        raise ValueError(f"conv2d: bias must have shape ({out_channels},), got {tuple(bias_shape)}")

    stride = checks.as_pair("conv2d", "stride", stride, minimum=1)
    dilation = checks.as_pair("conv2d", "dilation", dilation, minimum=1)
    unpadded = Windows((kernel_size[0], kernel_size[1]), stride, dilation=dilation)
    windows = Windows(unpadded.kernel_size, stride, as_padding(padding, unpadded), dilation)
    height, width = input_shape[-2:]
    padded, span = windows.padded_size(height, width), windows.span()
    if padded[0] < span[0] or padded[1] < span[1]:
        raise ValueError(
            f"conv2d: the kernel must fit into the padded input, got a kernel of {span[0]}x{span[1]} (dilation "
            f"included) on {padded[0]}x{padded[1]}"
        )
    return Conv2dGeometry(windows, (height, width), groups, flip_kernel, channels_last)


def as_padding(padding: int | tuple[int, int] | str, windows: Windows) -> tuple[int, int, int, int]:
    """Return the argument ``padding`` as (top, bottom, left, right). Raise ValueError if it is not valid."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        if windows.stride != (1, 1):
            raise ValueError(f"conv2d: padding='same' requires stride 1, got stride {windows.stride}")
        rows, columns = (span - 1 for span in windows.span())
        return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2
    if isinstance(padding, str):
        raise ValueError(f"conv2d: padding must be an integer, a pair, 'same' or 'valid', got {padding!r}")
    rows, columns = checks.as_pair("conv2d", "padding", padding, minimum=0)
    return rows, rows, columns, columns
