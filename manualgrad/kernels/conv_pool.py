"""The kernels for P(R(C(x, w) + b)), as functions of tensors: what they take, and all that keeps them inside of
it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from manualgrad.kernels import conv_pool_backward as derivatives
from manualgrad.kernels import memory, parallel
from manualgrad.kernels.codes import ZERO
from manualgrad.kernels.compiled import Code
from manualgrad.kernels.plain import is_all_there

IMAGES_OF_A_SLOT = 64  # at most: a sum over few images, and then over the slots, rounds less than one over all
WORTH_A_THREAD = 1 << 20  # multiplications; fewer are done before another thread has woken up
FLOATS_OF_ALL_SLOTS = 1 << 26  # that Δw's sums may take together


@dataclass(frozen=True)
class Sizes:
    """B, R, H, W, K, P+1, Q+1 of x and w; the windows' rows and columns; R and K rounded up to whole vectors."""

    images: int
    channels: int
    height: int
    width: int
    outputs: int
    kernel_rows: int
    kernel_columns: int
    rows: int
    columns: int
    channels_padded: int
    outputs_padded: int
    few: bool  # so few channels that Δw is better summed over k than over r

    @cached_property
    def multiplications(self) -> int:
        return 4 * self.images * self.rows * self.columns * self.outputs * self.weights_of_one

    @cached_property
    def weights_of_one(self) -> int:
        """Weights of one k."""
        return self.channels * self.kernel_rows * self.kernel_columns


@lru_cache(256)
def sizes_of(x: tuple[int, ...], w: tuple[int, ...], lanes: int) -> Sizes:
    """Of the shapes (B, R, H, W) and (K, R, P+1, Q+1); raises ValueError where they do not fit, or leave no
    window."""
    if len(x) != 4 or len(w) != 4 or x[1] != w[1] or min(*x[1:], *w) < 1:
        raise ValueError(f"conv_pool: got x of shape {tuple(x)} and w of {tuple(w)}")
    (images, channels, height, width), (outputs, _, p, q) = x, w
    rows, columns = (height - p + 1) // 2, (width - q + 1) // 2
    if rows < 1 or columns < 1:
        raise ValueError(f"conv_pool: no window of 2x2 for a kernel of {p}x{q} on {height}x{width}")
    padded = [-(-count // lanes) * lanes for count in (channels, outputs)]
    return Sizes(images, channels, height, width, outputs, p, q, rows, columns, *padded, 4 * channels <= lanes)


def forward(code: Code, x: Tensor, w: Tensor, b: Tensor | None, flip: bool) -> tuple[Tensor, Tensor]:
    """P(R(C(x, w) + b)) and the codes, (B, K, I, J), channels last in memory; with ``flip`` as (1), else a
    correlation."""
    s = sizes_of(x.shape, w.shape, code.lanes)
    _checked(w, w.shape)
    x = _dense(_checked(x, x.shape), torch.channels_last)
    b = memory.new(s.outputs, zeros=True) if b is None else _dense(_checked(b, (s.outputs,)))
    b = _padded(b, s.outputs_padded, 0)
    run = s.kernel_columns * s.channels
    line, k = run * s.outputs_padded, s.outputs_padded
    kernel = _arranged(code, s, w, flip, s.kernel_rows * line, (1, k, line, s.channels * k))
    out = memory.new(s.images, s.rows, s.columns, s.outputs_padded)
    codes = memory.new(*out.shape, dtype=torch.uint8)
    pooled_rows = s.images * s.rows
    slots, share = _split(pooled_rows, _threads(s))
    parallel.run(code, "forward", slots, [
        x.data_ptr(), kernel.data_ptr(), b.data_ptr(), out.data_ptr(), codes.data_ptr(), pooled_rows, share,
        s.height, s.width, s.channels, s.kernel_rows, run, s.outputs_padded, s.rows, s.columns,
    ])  # fmt: skip
    return tuple(_cut(t, s.outputs, 3).permute(0, 3, 1, 2) for t in (out, codes))


def backward(
    code: Code, g: Tensor, x: Tensor | None, w: Tensor | None, codes: Tensor,
    shapes: tuple[Sequence[int], Sequence[int]], flip: bool, subgradient: float,
) -> tuple[Tensor | None, Tensor | None, Tensor] | None:  # fmt: skip
    """Δx if there is w, Δw if there is x, and Δb, from the gradient ``g`` of P(R(C(x, w) + b)), ``shapes`` being
    those of x and w. None where x or w is not finite, and the formula, which makes 0·∞ = NaN of that, has to
    serve."""
    s = sizes_of(*shapes, code.lanes)
    few, for_x, for_w = s.few, w is not None, x is not None
    channels = s.channels if few else s.channels_padded
    pooled = (s.images, s.outputs, s.rows, s.columns)
    _checked(g, pooled)
    _checked(codes, pooled, torch.uint8)
    if for_x:
        _checked(w, shapes[1])
    if for_w:
        _checked(x, shapes[0])
        x = _dense(x) if few else _padded(_dense(x, torch.channels_last), channels, 1)
    g, codes = (_padded(_dense(t, torch.channels_last), s.outputs_padded, 1) for t in (g, codes))
    cells, image = s.rows * s.columns, channels * s.height * s.width
    few_run = -(-s.kernel_columns // derivatives.FEW_COLUMNS) * derivatives.FEW_COLUMNS
    sums = s.kernel_rows * (few_run if few else s.kernel_columns) * channels * s.outputs_padded if for_w else 0
    slots, share = _split(s.images, _slots(s, sums))
    bytes_of_slot = derivatives.scratch_bytes(cells, s.outputs_padded, image)
    floats = slots * bytes_of_slot // 4, slots * sums, slots * s.outputs_padded, slots
    scratch, dw_sums, db_sums, odd = (memory.new(count) for count in floats)
    kernel = dx = None
    if for_x:
        r = s.channels_padded
        steps = (s.kernel_rows * s.kernel_columns * r, 1, s.kernel_columns * r, r)
        kernel = _arranged(code, s, w, flip, s.outputs_padded * steps[0], steps)
        dx = memory.new(s.images, s.height, s.width, s.channels_padded)
    zero_code = ZERO if subgradient else -1
    parallel.run(code, "backward", slots, [
        x.data_ptr() if for_w else 0, kernel.data_ptr() if for_x else 0, g.data_ptr(), codes.data_ptr(),
        dx.data_ptr() if for_x else 0,
        dw_sums.data_ptr(), db_sums.data_ptr(), odd.data_ptr(), scratch.data_ptr(), bytes_of_slot,
        s.images, share, s.height, s.width, channels, s.channels_padded, s.kernel_rows, s.kernel_columns,
        s.outputs_padded, s.rows, s.columns, for_x, for_w, few, zero_code, parallel.as_float(subgradient),
    ])  # fmt: skip
    if any(map(math.isnan, odd.tolist())):
        return None
    if for_x:
        dx = _cut(dx, s.channels, 3).permute(0, 3, 1, 2)
    if few:
        k = s.outputs_padded
        steps = (1, s.kernel_rows * few_run * k, few_run * k, k)
    else:
        steps = (s.kernel_rows * s.kernel_columns * channels, 1, s.kernel_columns * channels, channels)
    dw, db = memory.new(*shapes[1]) if for_w else None, memory.new(s.outputs)
    _move(code, "collect", s, dw, dw_sums, flip, steps, slots, sums, db, db_sums)
    return dx, dw, db


# ---------------------------------------------------------------------------------------------- at the door


def _checked(t: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """``t``, which must be this, and all there."""
    if t.shape != tuple(shape) or t.dtype is not dtype or t.device.type != "cpu" or not is_all_there(t):
        held = t.untyped_storage().nbytes()
        raise ValueError(
            f"conv_pool: expected {dtype} of shape {tuple(shape)} on the CPU, got {t.dtype} of {tuple(t.shape)} "
            f"on {t.device} in {held} bytes"
        )
    return t


def _dense(t: Tensor, order: torch.memory_format = torch.contiguous_format) -> Tensor:
    return t.resolve_neg().contiguous(memory_format=order)


def _padded(t: Tensor, size: int, dim: int) -> Tensor:
    """``t`` with zeros along ``dim``, in the same order in memory; as it is where it has that size."""
    if t.shape[dim] == size:
        return t
    shape = (*t.shape[:dim], size, *t.shape[dim + 1 :])
    if t.dim() == 4:
        batch, channels, height, width = shape
        wider = memory.new(batch, height, width, channels, dtype=t.dtype, zeros=True).permute(0, 3, 1, 2)
    else:
        wider = memory.new(*shape, dtype=t.dtype, zeros=True)
    wider.narrow(dim, 0, t.shape[dim]).copy_(t)
    return wider


def _cut(t: Tensor, size: int, dim: int) -> Tensor:
    return t if t.shape[dim] == size else t.narrow(dim, 0, size).contiguous()


def _threads(s: Sizes) -> int:
    return min(torch.get_num_threads(), 1 + s.multiplications // WORTH_A_THREAD)


def _slots(s: Sizes, sums: int) -> int:
    threads = _threads(s)
    rounds = -(-s.images // (threads * IMAGES_OF_A_SLOT))
    return max(1, min(threads * rounds, FLOATS_OF_ALL_SLOTS // max(1, sums)))


def _split(count: int, slots: int) -> tuple[int, int]:
    """At most ``slots`` slots, and the share of each, that cover ``count``."""
    share = max(1, -(-count // slots))
    return max(1, -(-count // share)), share


def _arranged(code: Code, s: Sizes, w: Tensor, flip: bool, size: int, steps: tuple[int, int, int, int]) -> Tensor:
    """``w`` in a kernel's order, zeros where it is padded."""
    kernel = memory.new(size, zeros=size != w.numel())
    _move(code, "arrange", s, _dense(w), kernel, flip, steps)
    return kernel


def _move(
    code: Code, kernel: str, s: Sizes, seen: Tensor | None, other: Tensor, flip: bool,
    steps: tuple[int, int, int, int], slots: int = 1, step_slot: int = 0, *bias: Any,
) -> None:  # fmt: skip
    """Runs ``arrange`` or ``collect``; ``steps`` are the floats from one k, r, p, q to the next."""
    k, r, p, q = (4 * step for step in steps)
    first = other.data_ptr()
    if flip:
        first += (s.kernel_rows - 1) * p + (s.kernel_columns - 1) * q
        p, q = -p, -q
    parts, share = _split(s.outputs, min(torch.get_num_threads(), 1 + s.outputs * s.weights_of_one // 4096))
    db, db_sums = bias or (None, None)
    parallel.run(code, kernel, parts, [
        0 if seen is None else seen.data_ptr(), first, s.outputs, share,
        0 if seen is None else s.channels, s.kernel_rows, s.kernel_columns, k, r, p, q, slots, 4 * step_slot,
        0 if db is None else db.data_ptr(), 0 if db is None else db_sums.data_ptr(), s.outputs_padded,
    ])  # fmt: skip
