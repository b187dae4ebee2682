"""The kernels for P(R(C(x, w) + b)), as functions of tensors: what they take, and all that keeps them inside of
it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from manualgrad.cpu import conv_pool_sizes as sizes
from manualgrad.cpu import team, workspace
from manualgrad.cpu.conv_pool_sizes import Order, Sizes, sizes_of, split
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.tensor_checks import storage_covers


def forward(code: KernelModule, x: Tensor, w: Tensor, b: Tensor | None, flip: bool) -> tuple[Tensor, Tensor]:
    """P(R(C(x, w) + b)) and the codes, (B, K, I, J), channels last in memory; with ``flip`` as (1), else a
    correlation."""
    s = sizes_of(x.shape, w.shape, code.lanes)
    checked(w, w.shape)
    x = dense(checked(x, x.shape), torch.channels_last)
    b = workspace.new(s.outputs, zeros=True) if b is None else dense(checked(b, (s.outputs,)))
    b = padded(b, s.outputs_padded, 0)
    kernel = _arranged(code, s, s.forward_order, w, flip)
    out = workspace.new(s.images, s.rows, s.columns, s.outputs_padded)
    codes = workspace.new(*out.shape, dtype=torch.uint8)
    slots, share = split(s.images * s.rows, sizes.threads_for(s.multiplications))
    addresses = (t.data_ptr() for t in (x, kernel, b, out, codes))
    team.run(code, "forward", slots, sizes.forward_arguments(s, share, *addresses))
    return tuple(_cut(t, s.outputs, 3).permute(0, 3, 1, 2) for t in (out, codes))


def backward(
    code: KernelModule, g: Tensor, x: Tensor | None, w: Tensor | None, codes: Tensor,
    shapes: tuple[Sequence[int], Sequence[int]], flip: bool, subgradient: float,
) -> tuple[Tensor | None, Tensor | None, Tensor] | None:  # fmt: skip
    """Δx if there is w, Δw if there is x, and Δb, from the gradient ``g`` of P(R(C(x, w) + b)), ``shapes`` being
    those of x and w. None where x or w is not finite, and the formula, which makes 0·∞ = NaN of that, has to
    serve."""
    s = sizes_of(*shapes, code.lanes)
    for_x, for_w = w is not None, x is not None
    pooled = (s.images, s.outputs, s.rows, s.columns)
    checked(g, pooled)
    checked(codes, pooled, torch.uint8)
    if for_x:
        checked(w, shapes[1])
    if for_w:
        x = for_derivatives(s, checked(x, shapes[0]))
    g, codes = (padded(dense(t, torch.channels_last), s.outputs_padded, 1) for t in (g, codes))
    sums = s.sums_order.floats if for_w else 0
    slots, share = split(s.images, sizes.slots_for(s.images, sizes.threads_for(s.multiplications), sums))
    floats = slots * s.bytes_of_slot // 4, slots * sums, slots * s.outputs_padded, slots
    scratch, dw_sums, db_sums, odd = (workspace.new(count) for count in floats)
    kernel = _arranged(code, s, s.input_order, w, flip) if for_x else None
    dx = workspace.new(s.images, s.height, s.width, s.channels_padded) if for_x else None
    addresses = (0 if t is None else t.data_ptr() for t in (x, kernel, g, codes, dx, dw_sums, db_sums, odd, scratch))
    arguments = sizes.backward_arguments(s, share, *addresses, for_x, for_w, subgradient)
    team.run(code, "backward", slots, arguments)
    if any(map(math.isnan, odd.tolist())):
        return None
    if for_x:
        dx = _cut(dx, s.channels, 3).permute(0, 3, 1, 2)
    dw, db = workspace.new(*shapes[1]) if for_w else None, workspace.new(s.outputs)
    addresses = (0 if t is None else t.data_ptr() for t in (dw, dw_sums, db, db_sums))
    parts, share = _moved(s)
    team.run(code, "collect", parts, sizes.collect_arguments(s, flip, share, slots, *addresses))
    return dx, dw, db


def for_derivatives(s: Sizes, x: Tensor) -> Tensor:
    """``x`` in the order in which the derivatives' kernel reads it."""
    return dense(x) if s.few else padded(dense(x, torch.channels_last), s.channels_padded, 1)


# ---------------------------------------------------------------------------------------------- at the door


def checked(t: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """``t``, which must be this, and all there."""
    if t.shape != tuple(shape) or t.dtype is not dtype or not t.is_cpu or not storage_covers(t):
        held = t.untyped_storage().nbytes()
        raise ValueError(
            f"kernels: expected {dtype} of shape {tuple(shape)} on the CPU, got {t.dtype} of {tuple(t.shape)} "
            f"on {t.device} in {held} bytes"
        )
    return t


def dense(t: Tensor, order: torch.memory_format = torch.contiguous_format) -> Tensor:
    """``t`` without gaps or a sign put off, in that order."""
    return t.resolve_neg().contiguous(memory_format=order)


def padded(t: Tensor, size: int, dim: int) -> Tensor:
    """``t`` with zeros along ``dim``, in the same order in memory; as it is where it has that size."""
    if t.shape[dim] == size:
        return t
    shape = (*t.shape[:dim], size, *t.shape[dim + 1 :])
    if t.dim() == 4:
        batch, channels, height, width = shape
        wider = workspace.new(batch, height, width, channels, dtype=t.dtype, zeros=True).permute(0, 3, 1, 2)
    else:
        wider = workspace.new(*shape, dtype=t.dtype, zeros=True)
    wider.narrow(dim, 0, t.shape[dim]).copy_(t)
    return wider


def _cut(t: Tensor, size: int, dim: int) -> Tensor:
    return t if t.shape[dim] == size else t.narrow(dim, 0, size).contiguous()


def _arranged(code: KernelModule, s: Sizes, order: Order, w: Tensor, flip: bool) -> Tensor:
    """``w`` in a kernel's order, zeros where it is padded."""
    kernel = workspace.new(order.floats, zeros=order.floats != w.numel())
    w = dense(w)
    parts, share = _moved(s)
    arguments = sizes.arrange_arguments(s, order, flip, share, w.data_ptr(), kernel.data_ptr())
    team.run(code, "arrange", parts, arguments)
    return kernel


def _moved(s: Sizes) -> tuple[int, int]:
    """How many slots share the moving of all weights, and how many k each moves."""
    return split(s.outputs, min(torch.get_num_threads(), 1 + s.outputs * s.weights_of_one // 4096))
