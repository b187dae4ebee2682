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

The formulas have the document's layout: x (B, H, W, R), w (P+1, Q+1, R, K), z and δ (B, I, J, K). The Functions
have PyTorch's, and turn one into the other by views.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manualgrad.ops import checks
from manualgrad.ops.bias import bias_jvp, grad_bias_apply
from manualgrad.ops.blocked_sum import add_product, blocked_bmm_sum
from manualgrad.ops.conv2d_geometry import Geometry, geometry_of
from manualgrad.ops.differentiable import differentiable, save, total
from manualgrad.ops.layout import as_contiguous_nhwc, as_non_view, from_nchw, from_oihw, to_nchw, to_oihw
from manualgrad.ops.precision import accumulator, autocast_lower
from manualgrad.ops.windows import Windows, col2im, crop, pad, sliding_window_view

# ----------------------------------------------------------------------------------------------- formulas


def gemm_window(geometry: Geometry, channels: int) -> Windows:
    """The windows of one product: of one kernel row, or of all rows at once.

    Neighbouring windows see the same rows of the image. One kernel row at a time, such a row is copied once and not
    P+1 times. All at once where one has few numbers, or where the stride leaves rows out.
    """
    windows = geometry.windows
    q, stride = windows.kernel_size[1], windows.stride[0]
    if stride > 1 or q * channels // geometry.groups < LONG_ROW:
        return windows
    return replace(windows, kernel_size=(1, q))


LONG_ROW = 32  # numbers of a kernel row that make a product worth while


def swap_batch_rows(z: Tensor, windows: Windows, geometry: Geometry) -> Tensor:
    """(B, I, ...) as (I, B, ...), or back, where a strip is one kernel row: its rows of the image, which begin with
    strip n at row n, then lie together. Elsewhere as it is."""
    return z if windows == geometry.windows else z.transpose(0, 1)


def gemm_lead_dims(b: int, i: int, windows: Windows, geometry: Geometry) -> tuple[int, int]:
    """The first two dimensions in :func:`swap_batch_rows` order."""
    return (b, i) if windows == geometry.windows else (i, b)


def im2col(x: Tensor, windows: Windows, geometry: Geometry) -> Tensor:
    """x_(s1·i+p)(s2·j+q)r as matrices with a row for each window: (groups, B·I·J, P·Q·R),
    in :func:`swap_batch_rows` order."""
    x, groups = swap_batch_rows(sliding_window_view(pad(x, windows), windows), windows, geometry), geometry.groups
    b, i, j, p, q, r = x.shape
    x = x.reshape(b, i, j, p, q, groups, r // groups).permute(5, 0, 1, 2, 3, 4, 6)
    if q * r // groups >= j:
        return x.reshape(groups, b * i * j, p * q * r // groups)
    # The copy runs along j, which is longer than (q, r): much the faster for an image of one channel.
    return x.permute(0, 4, 5, 6, 1, 2, 3).reshape(groups, p * q * r // groups, b * i * j).transpose(1, 2)


def im2col_blocks(x: Tensor, geometry: Geometry) -> Iterator[Tensor]:
    """:func:`im2col` of x for each strip of the kernel, from top to bottom: (groups, B·I·J, numbers of a strip)."""
    windows = gemm_window(geometry, x.shape[3])
    rows = im2col(x, windows, geometry)
    for n in range(geometry.windows.kernel_size[0] // windows.kernel_size[0]):
        yield kernel_row_block(rows, n, x.shape[0], geometry)


def kernel_row_block(rows: Tensor, n: int, batch: int, geometry: Geometry) -> Tensor:
    """Those of a matrix's rows that belong to strip n of the kernel, which lies n places below strip 0."""
    i, j = geometry.windows.count(*geometry.size)
    return rows.narrow(1, n * geometry.windows.dilation[0] * batch * j, batch * i * j)


def weight_to_gemm(w: Tensor, geometry: Geometry) -> Sequence[Tensor]:
    """w_(P−p)(Q−q)rk for each strip of the kernel, with a column for each output channel: (groups, numbers, K)."""
    if geometry.flip:
        w = w.flip(0, 1)
    p, q, r, k = w.shape
    rows = gemm_window(geometry, r * geometry.groups).kernel_size[0]
    w = w.reshape(p * q * r, geometry.groups, k // geometry.groups)
    return w.transpose(0, 1).split(rows * q * r, 1)


def output_to_gemm(z: Tensor, windows: Windows, geometry: Geometry) -> Tensor:
    """(B, I, J, K) as (groups, B·I·J, K), in :func:`swap_batch_rows` order."""
    k = z.shape[3]
    z = swap_batch_rows(z, windows, geometry).reshape(z.shape[:3].numel(), geometry.groups, k // geometry.groups)
    return z.transpose(0, 1)


def conv2d_forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    """C(x, w) + b: (B, I, J, K), in :func:`swap_batch_rows` order in memory."""
    bias = None if b is None else b.view(geometry.groups, 1, -1)
    z = blocked_bmm_sum(im2col_blocks(x, geometry), weight_to_gemm(w, geometry), bias)  # eq. (1), (17)
    windows, (i, j) = gemm_window(geometry, x.shape[3]), geometry.windows.count(*geometry.size)
    z = z.transpose(0, 1).reshape(*gemm_lead_dims(x.shape[0], i, windows, geometry), j, w.shape[3])
    return swap_batch_rows(z, windows, geometry)


def conv2d_grad_input(g: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
    """Σ_ijk g_ijk ∂C_ijk/∂x_tuv: (B, H, W, R). With t = s1·i+p, (2) is w_(P−p)(Q−q)vk: what (1) gathers from
    the place (s1·i+p, s2·j+q), this adds to it."""
    b, groups, (_, q, r, _) = g.shape[0], geometry.groups, w.shape
    dtype, exact = g.dtype, accumulator(g.dtype)  # up to (P+1)(Q+1) products meet in one place
    windows = gemm_window(geometry, r * groups)
    i, j = windows.count(*geometry.size)
    first, *others = (kernels.to(exact).transpose(1, 2) for kernels in weight_to_gemm(w, geometry))
    g = output_to_gemm(g, windows, geometry).to(exact)
    each = torch.bmm(g, first)  # eq. (2)
    if others:
        each = torch.constant_pad_nd(each, (0, 0, 0, b * i * j - each.shape[1]))
    for n, kernels in enumerate(others, start=1):
        add_product(kernel_row_block(each, n, b, geometry), g, kernels)  # eq. (2)
    each = each.view(groups, *gemm_lead_dims(b, i, windows, geometry), j, windows.kernel_size[0], q, r)
    each = swap_batch_rows(each.permute(1, 2, 3, 4, 5, 0, 6), windows, geometry)
    each = each.reshape(*each.shape[:5], groups * r)
    x = col2im(each, windows, windows.padded(*geometry.size))
    return crop(x, windows).contiguous().to(dtype)


def conv2d_grad_weight_per_example(g: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """Σ_ij g_bijv ∂C_ijk/∂w_ctuv of each example b: (B, P+1, Q+1, R, K)."""
    (b, i, j, _), groups, windows = g.shape, geometry.groups, gemm_window(geometry, x.shape[3])

    def by_example(rows: Tensor) -> Tensor:
        rows = rows.view(groups, *gemm_lead_dims(b, i, windows, geometry), j, rows.shape[2]).movedim(0, 2)
        return swap_batch_rows(rows, windows, geometry).transpose(1, 2).reshape(b * groups, i * j, rows.shape[4])

    g = by_example(output_to_gemm(g, windows, geometry))
    each = [torch.bmm(by_example(rows).transpose(1, 2), g) for rows in im2col_blocks(x, geometry)]  # eq. (3)
    each = torch.cat(each, 1)
    return gemm_to_weight(each.view(b, groups, *each.shape[1:]), geometry)


def conv2d_grad_weight(g: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """Σ_bij g_bijv ∂C_ijk/∂w_ctuv: (P+1, Q+1, R, K).

    First the sum over i and j for each b, or over b and j for each i, then the other: a sum of sums rounds less than
    one long sum. Where that would take more memory than the columns do, all in one.
    """
    (b, i, j, k), groups, windows = g.shape, geometry.groups, gemm_window(geometry, x.shape[3])
    sums, terms = gemm_lead_dims(b, i, windows, geometry)
    if k // groups > terms * j:
        sums, terms = 1, b * i
    g = output_to_gemm(g, windows, geometry).reshape(groups * sums, terms * j, k // groups)
    each = []
    for rows in im2col_blocks(x, geometry):
        rows = rows.reshape(groups * sums, terms * j, rows.shape[2])
        part = torch.bmm(rows.transpose(1, 2), g)  # eq. (3)
        each.append(part.view(groups, sums, *part.shape[1:]).sum(1))
    return gemm_to_weight(torch.cat(each, 1), geometry)


def gemm_to_weight(matrices: Tensor, geometry: Geometry) -> Tensor:
    """The inverse of :func:`weight_to_gemm`, its strips in one: (..., groups, P·Q·R, K) to (..., P+1, Q+1, R, K)."""
    (*batch, groups, numbers, k), (p, q) = matrices.shape, geometry.windows.kernel_size
    w = matrices.transpose(-3, -2).reshape(*batch, p, q, numbers // (p * q), groups * k)
    return w.flip(-4, -3) if geometry.flip else w


# ---------------------------------------------------------------------------------------------- Functions


class Conv2dFunction(Function):
    """C(x, w) + b of equations (1) and (17). Saves x for the gradient of w, and w for that of x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
        z = conv2d_forward(from_nchw(x), from_oihw(w), b, geometry)
        return as_non_view(to_nchw(as_contiguous_nhwc(z)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, _, ctx.geometry = inputs
        ctx.shape = output.shape
        save(ctx, x, w, needed=(ctx.needs_input_grad[1], ctx.needs_input_grad[0]))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        for_x, for_w, for_b, _ = ctx.needs_input_grad
        return (
            conv2d_grad_input_apply(g, w, ctx.geometry) if for_x else None,
            conv2d_grad_weight_apply(g, x, ctx.geometry) if for_w else None,
            grad_bias_apply(g) if for_b else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, w_t: Tensor | None, b_t: Tensor | None, _: None) -> Tensor | None:
        x, w = ctx.saved_tensors
        return total(
            None if x_t is None else conv2d_apply(x_t, w, None, ctx.geometry),
            None if w_t is None else conv2d_apply(x, w_t, None, ctx.geometry),
            bias_jvp(b_t, ctx.shape),
        )


class Conv2dGradInputFunction(Function):
    """X(δ, w) of equation (2)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return to_nchw(conv2d_grad_input(from_nchw(g), from_oihw(w), geometry))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, w, ctx.geometry = inputs
        save(ctx, g, w, needed=(ctx.needs_input_grad[1], ctx.needs_input_grad[0]))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        g, w = ctx.saved_tensors
        for_g, for_w, _ = ctx.needs_input_grad
        return (
            conv2d_apply(v, w, None, ctx.geometry) if for_g else None,
            conv2d_grad_weight_apply(g, v, ctx.geometry) if for_w else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, w_t: Tensor | None, _: None) -> Tensor | None:
        g, w = ctx.saved_tensors
        return total(
            None if g_t is None else conv2d_grad_input_apply(g_t, w, ctx.geometry),
            None if w_t is None else conv2d_grad_input_apply(g, w_t, ctx.geometry),
        )


class Conv2dGradWeightFunction(Function):
    """W(δ, x) of equation (3)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        return to_oihw(conv2d_grad_weight(from_nchw(g), from_nchw(x), geometry))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, x, ctx.geometry = inputs
        save(ctx, g, x, needed=(ctx.needs_input_grad[1], ctx.needs_input_grad[0]))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        g, x = ctx.saved_tensors
        for_g, for_x, _ = ctx.needs_input_grad
        return (
            conv2d_apply(x, v, None, ctx.geometry) if for_g else None,
            conv2d_grad_input_apply(g, v, ctx.geometry) if for_x else None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, g_t: Tensor | None, x_t: Tensor | None, _: None) -> Tensor | None:
        g, x = ctx.saved_tensors
        return total(
            None if g_t is None else conv2d_grad_weight_apply(g_t, x, ctx.geometry),
            None if x_t is None else conv2d_grad_weight_apply(g, x_t, ctx.geometry),
        )


conv2d_apply = differentiable(Conv2dFunction)
conv2d_grad_input_apply = differentiable(Conv2dGradInputFunction)
conv2d_grad_weight_apply = differentiable(Conv2dGradWeightFunction)


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
) -> Tensor:
    """The 2-D convolution of equation (1), with a bias as in (17); its derivatives are (2) and (3).

    Args:
        input: (B, R, H, W), or (R, H, W) for one image; float16, bfloat16, float32 or float64. B may be 0.
        weight: (K, R / groups, P+1, Q+1), of the same dtype and on the same device.
        bias: (K,), or None.
        stride: s1 and s2 of the document, or one number for both.
        padding: zeros around the image: one number, (rows, columns), "valid" (none), or "same" (the output has
            the size of the input; stride 1 only; of an odd number of rows or columns the last side gets one more).
        dilation: distance between the places that neighbouring kernel entries see.
        groups: input and output channels are split into as many groups that do not see each other.
        flip_kernel: True is (1), a true convolution; False is the correlation of ``torch.nn.functional.conv2d``,
            which equals ``conv2d(input, weight.flip(2, 3), flip_kernel=True)``.

    Returns:
        (B, K, I, J) or (K, I, J), channels last in memory; under autocast in autocast's dtype.

    Raises:
        TypeError: a tensor that is not real floating point, or two dtypes.
        ValueError: shapes, devices or numbers that do not fit; a kernel larger than the padded input.
    """
    checks.images("conv2d", input)
    checks.a_tensor("conv2d", "weight", weight)
    input, weight, bias = autocast_lower(input, weight, bias)
    checks.floating("conv2d", input=input, weight=weight, bias=bias)
    geometry = geometry_of(input, weight, bias, stride, padding, dilation, groups, flip_kernel)
    if input.dim() == 3:
        return conv2d_apply(input.unsqueeze(0), weight, bias, geometry).squeeze(0)
    return conv2d_apply(input, weight, bias, geometry)
