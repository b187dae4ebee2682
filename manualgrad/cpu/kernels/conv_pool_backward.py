"""The gradients of P(R(C(x, w) + b)) from the pooling indices of the forward kernel, for (1) with stride 1 and
windows of 2×2.

    δ_ijk  = g_ijk R'_ijk, sent by P⁻¹ to one position of its window                  (4), (10)
    Δb_k   = Σ_ij δ_ijk                                                              (17)
    Δw_pqrk = Σ_ij δ_ijk x_(s+p)(t+q)r, (s, t) being the position that δ_ijk is sent to (3)
    Δx_(s+p)(t+q)r = Σ_ijk δ_ijk w_(P−p)(Q−q)rk                                      (2)

P⁻¹(g) is not stored. Each window has one position at most where its gradient, ``grad_z``, is not 0, and only this
position is multiplied. ``conv_pool_grad_weight.py`` and ``conv_pool_grad_input.py`` compute the last two sums. The
packed weight and its gradient are flipped: Δw_pqrk is stored where the packed weight has w_(P−p)(Q−q)rk.

A skipped product of 0 differs from the formula if x or w is infinite or NaN, since 0·∞ is NaN: ``nonfinite`` reports
it. A task computes ``share`` images, with sums, flags and scratch memory of its own.
"""

from __future__ import annotations

from manualgrad.cpu.conv_pool_scratch import IMAGES_PER_BLOCK, KERNEL_COLUMNS_PER_TILE, READ_SLACK
from manualgrad.cpu.ir.tiles import clear, task_range
from manualgrad.cpu.ir.values import FLOAT, INT32, INT64, Value
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.kernels.conv_pool_grad_input import grad_input
from manualgrad.cpu.kernels.conv_pool_grad_weight import grad_weight_over_inputs, grad_weight_over_outputs
from manualgrad.cpu.signature import BOOL, FLOAT32, INT, POINTER, kernel


@kernel(
    x=POINTER,  # (N, H, W, padded C_in); if vectorizes_outputs, (N, C_in, H, W)
    packed_weight=POINTER,  # (padded C_out, kH, kW, padded C_in + weight_gap), flipped
    grad_out=POINTER,  # (N, H_out, W_out, padded C_out)
    pool_index=POINTER,  # the same, bytes
    grad_input=POINTER,  # (N, H, W, padded C_in)
    # (tasks, padded C_out, kH, kW·padded C_in); if vectorizes_outputs, (tasks, C_in, kH, padded kW, padded C_out)
    grad_weight_parts=POINTER,
    grad_bias_parts=POINTER,  # (tasks, padded C_out)
    nonfinite=POINTER,  # (tasks): 0, or NaN if a number that is multiplied is not finite
    scratch=POINTER,  # (tasks, scratch_bytes)
    scratch_bytes=INT,
    batch_size=INT,
    share=INT,  # images per task
    height=INT,
    width=INT,
    in_channels=INT,
    in_channels_padded=INT,  # a multiple of the lanes
    weight_gap=INT,  # floats of the packed weight that are not read
    kernel_height=INT,
    kernel_width=INT,
    out_channels_padded=INT,  # a multiple of the lanes
    out_height=INT,
    out_width=INT,
    needs_grad_input=BOOL,
    needs_grad_weight=BOOL,
    vectorizes_outputs=BOOL,  # True if vectors of the weight gradient run over output channels, not over kW·C_in
    at_zero_index=INT,  # AT_ZERO, or no pooling index if R'(0) = 0
    subgradient=FLOAT32,
)
def conv_pool_backward(emit: Emitter, a: Arguments) -> None:
    """Compute the gradients of this task's images."""
    _derive_sizes(emit, a)
    weight_numel = emit.select(a.vectorizes_outputs == 1, a.numel_over_outputs, a.numel_over_inputs)
    a.grad_weight = a.grad_weight_parts + a.task * weight_numel * 4  # this task's
    a.grad_bias = a.grad_bias_parts + a.task * a.out_channels_padded * 4
    a.nonfinite = a.nonfinite + a.task * 4
    clear(emit, a.grad_weight, emit.select(a.needs_grad_weight == 1, weight_numel, weight_numel * 0))
    clear(emit, a.grad_bias, a.out_channels_padded)
    emit.store(emit.constant(FLOAT, 0), a.nonfinite)
    with emit.if_then(a.needs_grad_input == 1):
        positions, has_gap = a.out_channels_padded * a.kernel_height * a.kernel_width, a.weight_gap > 0
        one, all_weights = emit.constant(INT64, 1), positions * a.in_channels_padded
        rows, numel = emit.select(has_gap, positions, one), emit.select(has_gap, a.in_channels_padded, all_weights)
        _accumulate_nonfinite(emit, a.nonfinite, a.packed_weight, numel, rows, a.weight_numel * 4)
    start, stop = task_range(emit, a, a.batch_size)
    with emit.loop(start, stop, IMAGES_PER_BLOCK) as first:
        end = emit.select(first + IMAGES_PER_BLOCK < stop, first + IMAGES_PER_BLOCK, stop)
        with emit.loop(first, end) as image:
            _grad_z(emit, a, image, image - first)
        with emit.if_then(a.needs_grad_weight == 1):
            _accumulate_nonfinite(emit, a.nonfinite, a.x + first * a.image_numel * 4, (end - first) * a.image_numel)
            with emit.if_then(a.vectorizes_outputs == 1), emit.loop(first, end) as image:
                grad_weight_over_outputs(emit, a, image, image - first)
            with emit.if_then(a.vectorizes_outputs == 0):
                grad_weight_over_inputs(emit, a, first, end - first)
        with emit.if_then(a.needs_grad_input == 1), emit.loop(first, end) as image:
            grad_input(emit, a, image, image - first)


def _derive_sizes(emit: Emitter, a: Arguments) -> None:
    """Derive sizes from the arguments, and the addresses of the buffers in this task's scratch memory."""
    a.windows = a.out_height * a.out_width
    channels_in_memory = emit.select(a.vectorizes_outputs == 1, a.in_channels, a.in_channels_padded)
    a.image_numel = a.height * a.width * channels_in_memory
    a.weight_row_numel = a.kernel_width * a.in_channels_padded
    a.weight_numel = a.in_channels_padded + a.weight_gap
    a.packed_row_numel = a.kernel_width * a.weight_numel
    tile = KERNEL_COLUMNS_PER_TILE
    a.padded_kernel_width = (a.kernel_width + (tile - 1)) // tile * tile
    a.numel_over_inputs = a.out_channels_padded * a.kernel_height * a.weight_row_numel
    a.numel_over_outputs = a.in_channels * a.kernel_height * a.padded_kernel_width * a.out_channels_padded
    # floats (images of a block, windows, C_out)
    a.grad_z = a.scratch + a.task * a.scratch_bytes
    # integers (images of a block, windows): bytes from the first image to the window's first x
    a.window_offsets = a.grad_z + a.windows * a.out_channels_padded * (4 * IMAGES_PER_BLOCK)
    # integers (windows, 4 positions): one bit per output channel, 1 if grad_z goes to that position
    a.channel_masks = a.window_offsets + a.windows * (8 * IMAGES_PER_BLOCK)
    # integers of 4 bytes (4 positions, C_out): one bit per window, 1 if grad_z goes to that position
    a.window_masks = a.channel_masks + a.windows * 32
    # floats: an image and READ_SLACK
    a.image_copy = a.window_masks + a.out_channels_padded * 16
    # bytes (images of a block, windows, C_out): the position that grad_z goes to, 4 if to none
    a.positions = a.image_copy + (a.image_numel + READ_SLACK) * 4


def _accumulate_nonfinite(
    emit: Emitter, nonfinite: Value, address: Value, numel: Value, rows: Value | int = 1, row_bytes: Value | int = 0
) -> None:
    """Set ``nonfinite`` to NaN if one of ``numel`` floats of a row is infinite or NaN: 0 times any other is 0."""
    zero, step = emit.constant(emit.float_vector, 0), 4 * emit.lanes
    sums = [emit.variable(zero) for _ in range(4)]  # four chains of additions, to hide the latency of one
    total, full = emit.variable(emit.load(nonfinite, FLOAT)), numel - numel % step
    with emit.loop(0, rows) as row:
        start = address + row * row_bytes
        with emit.loop(0, full, step) as n:
            for i, vector_sum in enumerate(sums):
                vector = emit.load(start + n * 4 + emit.vector_bytes * i, emit.float_vector)
                vector_sum.set(emit.fma(vector, zero, vector_sum.get()))
        with emit.loop(full, numel) as n:
            total.add(emit.load(start + n * 4, FLOAT) * 0)
    for vector_sum in sums:
        total.add(emit.reduce_add(vector_sum.get()))
    emit.store(total.get(), nonfinite)


def _grad_z(emit: Emitter, a: Arguments, image: Value, n: Value) -> None:
    """Store grad_z and its positions for one image, the block's number ``n``; add grad_z to the bias gradient."""
    image_offset, block_offset = image * a.windows * a.out_channels_padded, n * a.windows * a.out_channels_padded
    zero, no_position = emit.constant(emit.float_vector, 0), emit.constant(emit.int_vector, 4)
    subgradient, at_zero_index = emit.splat(a.subgradient), emit.splat(emit.trunc(a.at_zero_index, INT32))
    with emit.loop(0, a.out_channels_padded, emit.lanes) as c_out:
        total = emit.variable(emit.load(a.grad_bias + c_out * 4, emit.float_vector))
        with emit.loop(0, a.windows) as window:
            offset = window * a.out_channels_padded + c_out
            grad_out = emit.load(a.grad_out + (image_offset + offset) * 4, emit.float_vector)
            index_bytes = emit.load(a.pool_index + (image_offset + offset), emit.byte_vector)
            pool_index = emit.zext(index_bytes, emit.int_vector)
            is_active, at_zero = pool_index < 4, pool_index == at_zero_index
            grad_z = emit.select(is_active, grad_out, emit.select(at_zero, grad_out * subgradient, zero))  # eq. (10)
            first_or_none = emit.select(at_zero, emit.constant(emit.int_vector, 0), no_position)
            position = emit.select(is_active, pool_index, first_or_none)
            emit.store(grad_z, a.grad_z + (block_offset + offset) * 4)
            emit.store(emit.trunc(position, emit.byte_vector), a.positions + (block_offset + offset))
            total.add(grad_z)  # eq. (17)
        emit.store(total.get(), a.grad_bias + c_out * 4)
