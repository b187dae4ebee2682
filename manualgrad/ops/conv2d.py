r"""2-D convolution, equations (1), (2) and (3).

    C_ijk         = Σ_pqr x_(s1·i+p)(s2·j+q)r w_(P−p)(Q−q)rk                     (1)
    ∂C_ijk/∂x_tuv = w_(P+s1·i−t)(Q+s2·j−u)vk, where both indices are in range    (2)
    ∂C_ijk/∂w_ctuv = x_(s1·i+P−c)(s2·j+Q−t)u δ_kv                                (3)

C is linear in x and linear in w, and so are the two sums that (2) and (3) lead to in their own operands. Hence
each of the three has the other two for its derivatives, to any order:

    operation                        derivative along its first and its second operand
    C(x, w)                          X(δ, w)     W(δ, x)
    X(δ, w) = Σ_ijk δ_ijk (2)        C(v, w)     W(δ, v)
    W(δ, x) = Σ_ij  δ_ijv (3)        C(x, v)     X(δ, v)

The formulas have the formula sheet's layout: x (N, H, W, C_in), w (kH, kW, C_in / groups, C_out), z and its gradient
g (N, H_out, W_out, C_out). The Functions have PyTorch's, and convert between the two by views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manualgrad.dispatch import by_kernel, dispatched
from manualgrad.ops import checks
from manualgrad.ops.bias import grad_bias
from manualgrad.ops.blocked_sum import add_product_, blocked_bmm_sum
from manualgrad.ops.conv2d_gemm import (
    gemm_lead_dims,
    gemm_to_weight,
    gemm_window,
    im2col_blocks,
    kernel_row_block,
    output_to_gemm,
    swap_batch_rows,
    weight_to_gemm,
)
from manualgrad.ops.conv2d_geometry import (
    Conv2dGeometry,
    known_conv2d_geometry,
    make_conv2d_geometry,
    remember_conv2d_geometry,
)
from manualgrad.ops.layout import (
    as_contiguous,
    as_non_view,
    from_nchw,
    from_oihw,
    in_memory_format,
    to_nchw,
    to_oihw,
)
from manualgrad.ops.linear_maps import Apply, bilinear
from manualgrad.ops.precision import accumulation_dtype, cast_to_autocast_dtype
from manualgrad.ops.tracers import constant_shape, traceable
from manualgrad.ops.windows import col2im, crop

# ----------------------------------------------------------------------------------------------- formulas


def conv2d_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Conv2dGeometry) -> Tensor:
    """C(x, w) + b: (N, H_out, W_out, C_out), in memory in the order of :func:`swap_batch_rows`."""
    bias = None if b is None else b.view(geometry.groups, 1, -1)
    z = blocked_bmm_sum(im2col_blocks(x, geometry), weight_to_gemm(w, geometry), bias)  # eq. (1), (17)
    window = gemm_window(geometry, constant_shape(x)[3])
    out_height, out_width = geometry.windows.output_size(*geometry.input_size)
    lead = gemm_lead_dims(-1, out_height, window, geometry)
    return swap_batch_rows(z.transpose(0, 1).reshape(*lead, out_width, constant_shape(w)[3]), window, geometry)


def conv2d_grad_input(g: Tensor, w: Tensor, geometry: Conv2dGeometry) -> Tensor:
    """Σ_ijk g_ijk ∂C_ijk/∂x_tuv: (N, H, W, C_in).

    With t = s1·i+p, (2) is w_(P−p)(Q−q)vk: the product is added to the pixel (s1·i+p, s2·j+q) that (1) reads.
    """
    batch, groups, (_, kernel_width, group_channels, _) = g.shape[0], geometry.groups, w.shape
    dtype, sum_dtype = g.dtype, accumulation_dtype(g.dtype)  # up to kH·kW products are added to one pixel
    window = gemm_window(geometry, group_channels * groups)
    image_rows, out_width = window.output_size(*geometry.input_size)
    first, *others = (matrix.to(sum_dtype).transpose(1, 2) for matrix in weight_to_gemm(w, geometry))
    g = output_to_gemm(g, window, geometry).to(sum_dtype)
    columns = torch.bmm(g, first)  # eq. (2)
    if others:
        columns = torch.constant_pad_nd(columns, (0, 0, 0, batch * image_rows * out_width - columns.shape[1]))
    for block, matrix in enumerate(others, start=1):
        add_product_(kernel_row_block(columns, block, batch, geometry), g, matrix)  # eq. (2)
    lead = gemm_lead_dims(batch, image_rows, window, geometry)
    columns = columns.view(groups, *lead, out_width, window.kernel_size[0], kernel_width, group_channels)
    columns = swap_batch_rows(columns.permute(1, 2, 3, 4, 5, 0, 6), window, geometry)
    columns = columns.reshape(*columns.shape[:5], groups * group_channels)
    x = col2im(columns, window, window.padded_size(*geometry.input_size))
    return crop(x, window).to(dtype)


def conv2d_grad_weight_per_example(g: Tensor, x: Tensor, geometry: Conv2dGeometry) -> Tensor:
    """Σ_ij g_bijv ∂C_ijk/∂w_ctuv for each example b: (N, kH, kW, C_in / groups, C_out)."""
    (batch, out_height, out_width, _), groups = g.shape, geometry.groups
    window = gemm_window(geometry, x.shape[3])
    lead = gemm_lead_dims(batch, out_height, window, geometry)

    def split_examples(matrix: Tensor) -> Tensor:
        rows = matrix.view(groups, *lead, out_width, matrix.shape[2]).movedim(0, 2)
        rows = swap_batch_rows(rows, window, geometry).transpose(1, 2)
        return rows.reshape(batch * groups, out_height * out_width, matrix.shape[2])

    g = split_examples(output_to_gemm(g, window, geometry))
    blocks = [
        torch.bmm(split_examples(x_block).transpose(1, 2), g) for x_block in im2col_blocks(x, geometry)
    ]  # eq. (3)
    w = torch.cat(blocks, 1)
    return gemm_to_weight(w.view(batch, groups, *w.shape[1:]), geometry)


def conv2d_grad_weight(g: Tensor, x: Tensor, geometry: Conv2dGeometry) -> Tensor:
    """Σ_bij g_bijv ∂C_ijk/∂w_ctuv: (kH, kW, C_in / groups, C_out).

    The sum over i and j is taken for each b first, or the sum over b and j for each i: a sum of partial sums rounds
    less than one long sum. If the partial sums would take more memory than the columns do, there is only one sum.
    """
    (batch, out_height, out_width, out_channels), groups = g.shape, geometry.groups
    window = gemm_window(geometry, x.shape[3])
    partial_sums, rows = gemm_lead_dims(batch, out_height, window, geometry)
    if out_channels // groups > rows * out_width:
        partial_sums, rows = 1, batch * out_height
    g = output_to_gemm(g, window, geometry)
    g = g.reshape(groups * partial_sums, rows * out_width, out_channels // groups)
    blocks = []
    for x_block in im2col_blocks(x, geometry):
        x_block = x_block.reshape(groups * partial_sums, rows * out_width, x_block.shape[2])
        w_block = torch.bmm(x_block.transpose(1, 2), g)  # eq. (3)
        blocks.append(w_block.view(groups, partial_sums, *w_block.shape[1:]).sum(1))
    return gemm_to_weight(torch.cat(blocks, 1), geometry)


# ------------------------------------------------------------------- the same formulas in PyTorch's layout


@dispatched
def conv2d_forward_nchw(x: Tensor, w: Tensor, b: Tensor | None, geometry: Conv2dGeometry) -> Tensor:
    """C(x, w) + b of equations (1) and (17): (N, C_out, H_out, W_out)."""
    z = conv2d_forward(from_nchw(x), from_oihw(w), b, geometry)
    return as_non_view(in_memory_format(to_nchw(z), geometry.channels_last))


@dispatched
def conv2d_grad_input_nchw(g: Tensor, w: Tensor, geometry: Conv2dGeometry) -> Tensor:
    """X(g, w) of equation (2): (N, C_in, H, W)."""
    grad_x = to_nchw(conv2d_grad_input(from_nchw(g), from_oihw(w), geometry))
    return in_memory_format(grad_x, geometry.channels_last)


@dispatched
def conv2d_grad_weight_oihw(g: Tensor, x: Tensor, geometry: Conv2dGeometry) -> Tensor:
    """W(g, x) of equation (3): (C_out, C_in / groups, kH, kW)."""
    grad_w = to_oihw(conv2d_grad_weight(from_nchw(g), from_nchw(x), geometry))
    return grad_w if geometry.channels_last else as_contiguous(grad_w)


def conv2d_grad_weight_and_bias(g: Tensor, x: Tensor, geometry: Conv2dGeometry) -> tuple[Tensor, Tensor]:
    """W(g, x) of equation (3), and the gradient of the bias of (17): by one kernel where the device has one."""
    both: tuple[Tensor, Tensor] | None = by_kernel("conv2d_grad_weight_and_bias", g, x, geometry)
    return (conv2d_grad_weight_oihw(g, x, geometry), grad_bias(g)) if both is None else both


def conv2d_backward(
    g: Tensor, x: Tensor | None, w: Tensor | None, needs_grad: Sequence[bool], geometry: Conv2dGeometry
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """X(g, w), W(g, x) and the gradient of the bias, of those of x, w and the bias that need one.

    By one kernel where the device has one. x may be None if w needs no gradient, and w if x needs none."""
    needs_x, needs_w, needs_b = needs_grad[:3]
    if x is not None and w is not None and needs_x and needs_w:
        grads: tuple[Tensor, Tensor, Tensor | None] | None = by_kernel("conv2d_backward", g, x, w, needs_b, geometry)
        if grads is not None:
            return grads
    grad_x = conv2d_grad_input_nchw(g, w, geometry) if w is not None and needs_x else None
    if x is None or not needs_w:
        return grad_x, None, grad_bias(g) if needs_b else None
    if needs_b:
        return grad_x, *conv2d_grad_weight_and_bias(g, x, geometry)
    return grad_x, conv2d_grad_weight_oihw(g, x, geometry), None


# ------------------------------------------------------------- Functions: one for each row of the table above

conv2d_apply: Apply = bilinear(
    "Conv2dFunction",
    conv2d_forward_nchw,
    grad_first=lambda g, w, geometry: conv2d_grad_input_apply(g, w, geometry),
    grad_second=lambda g, x, geometry: conv2d_grad_weight_apply(g, x, geometry),
    has_bias=True,
    all_grads=conv2d_backward,
)
conv2d_grad_input_apply: Apply = bilinear(
    "Conv2dGradInputFunction",
    conv2d_grad_input_nchw,
    grad_first=lambda v, w, geometry: conv2d_apply(v, w, None, geometry),
    grad_second=lambda v, g, geometry: conv2d_grad_weight_apply(g, v, geometry),
)
conv2d_grad_weight_apply: Apply = bilinear(
    "Conv2dGradWeightFunction",
    conv2d_grad_weight_oihw,
    grad_first=lambda v, x, geometry: conv2d_apply(x, v, None, geometry),
    grad_second=lambda v, g, geometry: conv2d_grad_input_apply(g, v, geometry),
)


@traceable
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    flip_kernel: bool = True,
    channels_last: bool = True,
) -> Tensor:
    """2-D convolution of equation (1), with the bias of (17); its derivatives are (2) and (3).

    Args:
        input: (N, C_in, H, W), or (C_in, H, W) for one image; float16, bfloat16, float32 or float64. N may be 0.
        weight: (C_out, C_in / groups, kH, kW), of the same dtype and on the same device.
        bias: (C_out,), or None.
        stride: (s1, s2) of equation (1), or one integer for both.
        padding: border of zeros: one integer, (rows, columns), "valid" (none), or "same" (the output has the size
            of the input; requires stride 1; an odd number of rows or columns gets one more at the bottom or right).
        dilation: distance between neighbouring kernel entries on the image.
        groups: number of groups into which input and output channels are split; each group is a convolution of
            its own.
        flip_kernel: True is (1), a true convolution. False is the correlation of ``torch.nn.functional.conv2d``,
            which equals ``conv2d(input, weight.flip(2, 3), flip_kernel=True)``.
        channels_last: memory format of the result and of the gradient of the input: True, or False for contiguous.

    Returns:
        (N, C_out, H_out, W_out) or (C_out, H_out, W_out); under autocast in autocast's dtype.

    Raises:
        TypeError: a tensor is not real floating point, or dtypes differ.
        ValueError: shapes, devices or numbers do not fit, or the kernel is larger than the padded input.
    """
    return apply_conv2d(
        conv2d_apply, input, weight, bias, (stride, padding, dilation, groups, flip_kernel, channels_last)
    )


def apply_conv2d(
    apply: Apply, input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]
) -> Tensor:
    """Check the arguments of :func:`conv2d`, and call ``apply`` with the tensors and their geometry.

    ``options`` are those of the geometry: from ``stride`` to ``channels_last``."""
    geometry = known_conv2d_geometry(input, weight, bias, options)
    if geometry is None:
        checks.require_images("conv2d", input)
        checks.require_tensor("conv2d", "weight", weight)
        input, weight, bias = cast_to_autocast_dtype(input, weight, bias)
        checks.require_floating("conv2d", input=input, weight=weight, bias=bias)
        geometry = make_conv2d_geometry(input, weight, bias, *options)
        remember_conv2d_geometry(input, weight, bias, options, geometry)
    if input.dim() == 3:
        return apply(input.unsqueeze(0), weight, bias, geometry).squeeze(0)
    return apply(input, weight, bias, geometry)
