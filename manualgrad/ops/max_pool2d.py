r"""Max-pooling, equation (4), and P⁻¹ of section 4.2.

    P_ijk(x) = max_pq x_(s1·i+p)(s2·j+q)k                                        (4)

The maximum is at one place (p, q) of its window, so ∂P_ijk/∂x_tuk is 1 there and 0 elsewhere: P⁻¹ sends each δ_ijk
back to that place. Of equal maxima the first in row-major order receives all of it. NaN counts as a maximum, and of
several NaN the last receives it, as in PyTorch.

The place is kept as its *pooling index* p·(Q+1) + q, an index within the window. With fixed pooling indices P is
linear: its derivative picks the same places from its argument, and is the adjoint of P⁻¹.

The maximum is taken in the formula sheet's layout, (N, H, W, C).
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad._torch_compat import jit_tracing_state
from manualgrad.dispatch import dispatched
from manualgrad.ops import checks
from manualgrad.ops.differentiable import differentiable
from manualgrad.ops.layout import as_non_view, from_nchw, in_memory_format, to_nchw
from manualgrad.ops.linear_maps import linear_pair
from manualgrad.ops.max_pool2d_geometry import MaxPool2dGeometry, make_max_pool2d_geometry
from manualgrad.ops.precision import accumulation_dtype
from manualgrad.ops.selection import compare, select
from manualgrad.ops.tracers import constant_shape, traceable
from manualgrad.ops.windows import crop, offset_view, pad

# ----------------------------------------------------------------------------------------------- formulas


@dispatched
def max_pool2d_forward(x: Tensor, geometry: MaxPool2dGeometry) -> tuple[Tensor, Tensor]:
    """P(x) and the pooling index of each maximum, both (N, H_out, W_out, C)."""
    windows, output_size = geometry.windows, geometry.output_size
    padding_value = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = pad(x, windows, padding_value)
    maximum = offset_view(padded, windows, 0, 0, output_size)
    if windows.kernel_size == (1, 1):
        maximum = maximum.clone()  # the maximum of no others must not be a view of x
    pool_index = torch.zeros_like(maximum, dtype=geometry.index_dtype)
    image_mask = _image_mask(x, geometry)
    has_pixel = None if image_mask is None else offset_view(image_mask, windows, 0, 0, output_size)
    for index, (p, q) in enumerate(list(windows.offsets())[1:], start=1):
        value = offset_view(padded, windows, p, q, output_size)
        # NaN replaces a number, and a later NaN an earlier one
        is_new_maximum = ~compare(maximum.nan_to_num(torch.inf, torch.inf, -torch.inf), ">=", value)
        if image_mask is not None and has_pixel is not None:
            # the first pixel of the image replaces padding, even if the pixel is -inf
            is_pixel = offset_view(image_mask, windows, p, q, output_size)
            is_new_maximum, has_pixel = is_new_maximum | (is_pixel & ~has_pixel), has_pixel | is_pixel
        maximum = torch.maximum(maximum, value)  # eq. (4)
        # indices increase, so the larger one is the later maximum
        pool_index = torch.maximum(pool_index, is_new_maximum.to(pool_index.dtype) * index)
    return maximum, pool_index


def _image_mask(x: Tensor, geometry: MaxPool2dGeometry) -> Tensor | None:
    """(1, H, W, 1) of the padded image, True where it is no padding; None without padding."""
    if not any(geometry.windows.padding):
        return None
    return pad(x.new_ones(1, *x.shape[1:3], 1, dtype=torch.bool), geometry.windows, 0)


@dispatched
def max_pool2d_backward(g: Tensor, pool_index: Tensor, geometry: MaxPool2dGeometry) -> Tensor:
    """P⁻¹(g): each g_ijk added to the place that its maximum came from. (N, C, H_out, W_out) to (N, C, H, W)."""
    (height, width), windows = geometry.windows.padded_size(*geometry.input_size), geometry.windows
    dtype = accumulation_dtype(g.dtype)  # gradients of many windows are added to one pixel
    if geometry.channels_last:
        x = g.new_zeros(g.shape[0], height, width, g.shape[1], dtype=dtype)
    else:
        x = from_nchw(g.new_zeros(*g.shape[:2], height, width, dtype=dtype))
    g, pool_index = from_nchw(g), from_nchw(pool_index)
    for index, (p, q) in enumerate(windows.offsets()):
        place = offset_view(x, windows, p, q, geometry.output_size)
        place.add_(select(compare(pool_index, "==", index), g))  # eq. (4)
    return in_memory_format(to_nchw(crop(x, windows)).to(g.dtype), geometry.channels_last)


def max_pool2d_jvp(x: Tensor, pool_index: Tensor, geometry: MaxPool2dGeometry) -> Tensor:
    """The adjoint of :func:`max_pool2d_backward`: the value of each window at its pooling index."""
    x, pool_index, windows = from_nchw(x), from_nchw(pool_index), geometry.windows
    padded = pad(x, windows)
    picked = offset_view(padded, windows, 0, 0, geometry.output_size)
    for index, (p, q) in enumerate(windows.offsets()):
        picked = torch.where(pool_index == index, offset_view(padded, windows, p, q, geometry.output_size), picked)
    return in_memory_format(to_nchw(picked), geometry.channels_last)


# ------------------------------------------------------------------- the same formula in PyTorch's layout


@dispatched
def max_pool2d_forward_nchw(x: Tensor, geometry: MaxPool2dGeometry) -> tuple[Tensor, Tensor]:
    """P(x), in the memory format of the geometry, and the pooling indices, both (N, C, H_out, W_out)."""
    maximum, pool_index = max_pool2d_forward(from_nchw(x), geometry)
    return as_non_view(in_memory_format(to_nchw(maximum), geometry.channels_last)), to_nchw(pool_index)


def indices_in_image(pool_index: Tensor, geometry: MaxPool2dGeometry) -> Tensor:
    """Pooling indices as row · W + column of the unpadded image: int64, (N, H_out, W_out, C)."""
    windows, (out_height, out_width) = geometry.windows, geometry.output_size
    pool_index = pool_index.long()
    p, q = pool_index // windows.kernel_size[1], pool_index % windows.kernel_size[1]
    i = torch.arange(out_height, device=pool_index.device)[:, None, None]
    j = torch.arange(out_width, device=pool_index.device)[:, None]
    row = windows.stride[0] * i + windows.dilation[0] * p - windows.padding[0]
    column = windows.stride[1] * j + windows.dilation[1] * q - windows.padding[2]
    return row * geometry.input_size[1] + column


# ---------------------------------------------------------------------------------------------- Functions


class MaxPool2dFunction(Function):
    """P(x) of equation (4) and the pooling indices. Saves the pooling indices: one byte per maximum."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, geometry: MaxPool2dGeometry) -> tuple[Tensor, Tensor]:
        maximum, pool_index = max_pool2d_forward_nchw(x, geometry)
        if jit_tracing_state():  # P(x) = (∂P/∂x) x, whose derivative autograd computes as P⁻¹
            maximum = max_pool2d_jvp(x, pool_index, geometry)
        return maximum, pool_index

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.geometry = inputs[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_forward(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
        (pool_index,) = ctx.saved_tensors
        return max_pool2d_backward_apply(g, pool_index, ctx.geometry), None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, _: None) -> tuple[Tensor, None]:
        (pool_index,) = ctx.saved_tensors
        return max_pool2d_jvp_apply(x_t, pool_index, ctx.geometry), None


max_pool2d_apply = differentiable(MaxPool2dFunction)
max_pool2d_backward_apply, max_pool2d_jvp_apply = linear_pair(
    ("MaxPool2dBackwardFunction", "MaxPool2dJvpFunction"), max_pool2d_backward, max_pool2d_jvp
)


@overload
def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: Literal[False] = False,
    *,
    channels_last: bool = ...,
) -> Tensor: ...
@overload
def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    *,
    return_indices: Literal[True],
    channels_last: bool = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    channels_last: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
@traceable
def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    channels_last: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Max-pooling of equation (4); its derivative is P⁻¹ of section 4.2.

    Equals ``torch.nn.functional.max_pool2d``, ties and NaN included.

    Args:
        input: (N, C, H, W) or (C, H, W), of any real dtype but bool (integers have no gradient). N may be 0.
        kernel_size: rows and columns of a window; 2×2 by default, as in the formula sheet.
        stride: (s1, s2) of equation (4), or one integer for both; None means kernel_size.
        padding: border that never holds the maximum; at most half of kernel_size.
        dilation: distance between neighbouring pixels of a window.
        ceil_mode: True also takes windows that begin inside the image and end outside of it.
        return_indices: True also returns the places of the maxima.
        channels_last: memory format of the results and of the gradient of the input: True, or False for contiguous.

    Returns:
        (N, C, H_out, W_out) or (C, H_out, W_out); with ``return_indices`` also an int64 tensor of the same shape:
        row · W + column of each maximum in its image.

    Raises:
        TypeError: a dtype without an order.
        ValueError: shapes or numbers do not fit, or a window is larger than the padded image.
    """
    checks.require_images("max_pool2d", input)
    checks.require_real("max_pool2d", input)
    geometry = make_max_pool2d_geometry(
        constant_shape(input), kernel_size, stride, padding, dilation, ceil_mode, channels_last
    )
    maximum, pool_index = max_pool2d_apply(input if input.dim() == 4 else input.unsqueeze(0), geometry)
    results = [maximum]
    if return_indices:
        indices = to_nchw(indices_in_image(from_nchw(pool_index), geometry))
        results.append(in_memory_format(indices, channels_last))
    if input.dim() == 3:
        results = [result.squeeze(0) for result in results]
    return (results[0], results[1]) if return_indices else results[0]
