"""Replacements for functions of ``torch`` and ``torch.nn.functional``, with PyTorch's names and conventions.

Outputs have the memory format that PyTorch's have: a ``view`` of the output, or the mask that a later dropout draws,
depends on it. In-place functions change the tensor itself. At the end are padding and the memory format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad import functional
from manualgrad.ops import conv_relu, dense_relu
from manualgrad.ops.relu_in_place import relu_in_place
from manualgrad.ops.targets import Reduction
from manualgrad.ops.tracers import inside_traceable, traceable, untraced

_relu, _relu_in_place = inside_traceable(functional.relu), inside_traceable(relu_in_place)
_conv2d, _max_pool2d = inside_traceable(functional.conv2d), inside_traceable(functional.max_pool2d)


@traceable
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``F.relu``: the derivative at 0 is 0; ``inplace`` writes the result over ``input``."""
    return _relu_in_place(input) if inplace else _relu(input, subgradient=0)


@traceable
def relu_(input: Tensor) -> Tensor:
    """``F.relu_``: :func:`relu` in place."""
    return _relu_in_place(input)


@traceable
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """``F.conv2d``: the correlation, which does not flip the kernel."""
    return _conv2d(
        input, weight, bias, stride, padding, dilation, groups, flip_kernel=False,
        channels_last=_is_result_channels_last(input, weight),
    )  # fmt: skip


def conv2d_relu(input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """:func:`relu` of :func:`conv2d`, whose ``options`` are those from ``stride`` to ``groups``."""
    return conv_relu.conv2d_relu(input, weight, bias, *options, False, _is_result_channels_last(input, weight))


def _is_result_channels_last(input: Tensor, weight: Tensor) -> bool:
    return is_channels_last(input) or is_channels_last(weight)


@traceable
def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``F.max_pool2d``."""
    return _max_pool2d(
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode,
        return_indices,
        channels_last=is_channels_last(input),
    )


def returns_fewer(
    kernel_size: Any = 1, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False,
    return_indices: Any = False, *_: Any, **__: Any,
) -> bool:  # fmt: skip
    """Return True if :func:`max_pool2d` of these arguments returns only the maxima, fewer than there are pixels.

    False for arguments that it does not take."""
    stride = kernel_size if stride is None else stride
    strides = stride if type(stride) is tuple else (stride,)
    return return_indices is False and all(type(s) is int for s in strides) and any(s > 1 for s in strides)


@traceable
def max_pool2d_with_indices(
    input: Tensor, kernel_size: int | tuple[int, int], *args: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """``F.max_pool2d_with_indices``, which ``F.max_pool2d`` calls for ``return_indices=True``."""
    output, indices = max_pool2d(input, kernel_size, *args, **options | {"return_indices": True})
    return output, indices


@traceable
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``."""
    return functional.dense(input, weight, bias)


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`relu` of :func:`linear`."""
    return dense_relu.dense_relu(input, weight, bias)


@traceable
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """``torch.flatten``: channels, rows, columns; a view if the strides allow it."""
    return input.flatten(start_dim, end_dim)


@traceable
def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.softmax``."""
    return functional.softmax(input if dtype is None else input.to(dtype), dim)


@traceable
def functional_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """``F.softmax``; ``dim=None``, which is deprecated, is 0 for tensors of 0, 1 or 3 dimensions and else 1."""
    if dim is None:
        dim = 0 if input.dim() in (0, 1, 3) else 1
    return softmax(input, dim, dtype)


@traceable
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``F.cross_entropy``; ``size_average`` and ``reduce``, which are deprecated, decide about ``reduction``."""
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    return functional.softmax_cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


@traceable
def pad2d(input: Tensor, padding: Sequence[int], mode: str) -> Tensor:
    """``F.pad`` in the modes that fill the border from the image, for ``padding_mode`` of ``Conv2d``.

    Args:
        input: (..., H, W).
        padding: numbers of columns on the left and right, then of rows at the top and bottom, as for ``F.pad``.
        mode: "reflect", "replicate" or "circular".

    Raises:
        ValueError: the padding is too large for the image: "reflect" allows size − 1, "circular" allows size.
    """
    left, right, top, bottom = padding
    channels_last = mode != "circular" and is_channels_last(input)  # PyTorch's circular padding is always contiguous
    for dim, before, after in ((-2, top, bottom), (-1, left, right)):
        size = input.shape[dim]
        limit = {"reflect": size - 1, "circular": size}.get(mode, max(before, after))  # "replicate" has no limit
        if max(before, after) > limit:
            raise ValueError(
                f"conv2d: padding_mode={mode!r} can pad a dimension of size {size} by at most {limit}, "
                f"got {(before, after)}"
            )
        index = torch.arange(-before, size + after, device=input.device)
        if mode == "reflect":
            index = (size - 1) - ((size - 1) - index.abs()).abs()  # mirrored at 0, then at size − 1
        elif mode == "circular":
            index = index % size
        else:
            index = index.clamp(0, size - 1)
        input = input.index_select(dim, index)
    return input.contiguous(memory_format=torch.channels_last) if channels_last else input


@untraced
def is_channels_last(x: Tensor) -> bool:
    """Return True if PyTorch's layers treat ``x`` (N, C, H, W) as channels_last: strides increase from C to W, H, N.

    The comparison is that of ATen's ``is_channels_last_strides_2d``, dimensions of size 1 included, by which PyTorch
    chooses the memory format of a layer's output.
    """
    if x.dim() != 4 or x.numel() == 0:
        return False
    (_, channels, height, width), (n, c, h, w) = x.shape, x.stride()
    return c > 0 and c * channels <= w and w * width <= h and h * height <= n and h * height != c
