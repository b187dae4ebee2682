"""The kernels for P(R(C(x, w) + b)) as functions of tensors, with the checks that keep them within the tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from manualgrad.cpu import conv_pool_sizes as sizes
from manualgrad.cpu import memory, team
from manualgrad.cpu.conv_pool_sizes import Sizes, WeightLayout, sizes_of, split_work
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.tensor_checks import storage_covers


def run_forward(
    module: KernelModule, x: Tensor, weight: Tensor, bias: Tensor | None, flip: bool
) -> tuple[Tensor, Tensor]:
    """Compute P(R(C(x, w) + b)) and its pooling indices.

    Args:
        module: the kernels.
        x: (N, C_in, H, W) float32.
        weight: (C_out, C_in, kH, kW) float32.
        bias: (C_out) float32, or None.
        flip: True for the convolution of equation (1), False for a correlation.

    Returns:
        Two tensors (N, C_out, H_out, W_out), float32 and uint8, channels_last.

    Raises:
        ValueError: a shape, dtype or device is none of these, or a storage is too small.
    """
    s = sizes_of(x.shape, weight.shape, module.lanes)
    check_tensor(weight, weight.shape)
    x = to_contiguous(check_tensor(x, x.shape), torch.channels_last)
    if bias is None:
        bias = memory.new(s.out_channels, zeros=True)
    else:
        bias = to_contiguous(check_tensor(bias, (s.out_channels,)))
    bias = zero_pad(bias, s.out_channels_padded, 0)
    packed = _pack_weight(module, s, s.forward_layout, weight, flip)
    out = memory.new(s.batch_size, s.out_height, s.out_width, s.out_channels_padded)
    pool_index = memory.new(*out.shape, dtype=torch.uint8)
    num_tasks, share = split_work(s.batch_size * s.out_height, sizes.num_threads_for(s.multiplications))
    team.run(
        module, "conv_pool_forward", num_tasks, x=x.data_ptr(), packed_weight=packed.data_ptr(), bias=bias.data_ptr(),
        out=out.data_ptr(), pool_index=pool_index.data_ptr(), share=share, **sizes.forward_sizes(s),
    )  # fmt: skip
    return _unpad_nchw(out, s.out_channels), _unpad_nchw(pool_index, s.out_channels)


def run_backward(
    module: KernelModule, grad_out: Tensor, x: Tensor | None, weight: Tensor | None, pool_index: Tensor,
    shapes: tuple[Sequence[int], Sequence[int]], flip: bool, subgradient: float,
) -> tuple[Tensor | None, Tensor | None, Tensor] | None:  # fmt: skip
    """Compute gradients of P(R(C(x, w) + b)): of x if weight is given, of weight if x is given, and of the bias.

    Args:
        module: the kernels.
        grad_out: (N, C_out, H_out, W_out) float32.
        x: (N, C_in, H, W) float32, or None.
        weight: (C_out, C_in, kH, kW) float32, or None.
        pool_index: (N, C_out, H_out, W_out) uint8, of :func:`run_forward`.
        shapes: those of x and weight.
        flip: True for the convolution of equation (1), False for a correlation.
        subgradient: the derivative of ReLU at 0.

    Returns:
        The three gradients. None if x or weight is not finite: 0·∞ = NaN then, which the formula computes.

    Raises:
        ValueError: a shape, dtype or device is none of these, or a storage is too small.
    """
    s = sizes_of(*shapes, module.lanes)
    out_shape = (s.batch_size, s.out_channels, s.out_height, s.out_width)
    check_tensor(grad_out, out_shape)
    check_tensor(pool_index, out_shape, torch.uint8)
    if weight is not None:
        check_tensor(weight, shapes[1])
    if x is not None:
        x = to_backward_layout(s, check_tensor(x, shapes[0]))
    grad_out, pool_index = (
        zero_pad(to_contiguous(t, torch.channels_last), s.out_channels_padded, 1) for t in (grad_out, pool_index)
    )
    grad_weight_numel = 0 if x is None else s.grad_weight_layout.numel
    max_tasks = sizes.num_tasks_for(s.batch_size, sizes.num_threads_for(s.multiplications), grad_weight_numel)
    num_tasks, share = split_work(s.batch_size, max_tasks)
    scratch, weight_parts = memory.new(num_tasks * s.scratch_bytes // 4), memory.new(num_tasks * grad_weight_numel)
    bias_parts, nonfinite = memory.new(num_tasks * s.out_channels_padded), memory.new(num_tasks)
    packed = grad_input = None
    if weight is not None:
        packed = _pack_weight(module, s, s.grad_input_layout, weight, flip)
        grad_input = memory.new(s.batch_size, s.height, s.width, s.in_channels_padded)
    team.run(
        module, "conv_pool_backward", num_tasks, x=_address(x), packed_weight=_address(packed),
        grad_out=grad_out.data_ptr(), pool_index=pool_index.data_ptr(), grad_input=_address(grad_input),
        grad_weight_parts=weight_parts.data_ptr(), grad_bias_parts=bias_parts.data_ptr(),
        nonfinite=nonfinite.data_ptr(), scratch=scratch.data_ptr(), share=share,
        needs_grad_input=weight is not None, needs_grad_weight=x is not None, **sizes.backward_sizes(s, subgradient),
    )  # fmt: skip
    if any(map(math.isnan, nonfinite.tolist())):
        return None
    if grad_input is not None:
        grad_input = _unpad_nchw(grad_input, s.in_channels)
    grad_weight, grad_bias = None if x is None else memory.new(*shapes[1]), memory.new(s.out_channels)
    pack_tasks, share = _split_output_channels(s)
    arguments = sizes.unpack_reduce_arguments(s, flip, weight_parts.data_ptr(), bias_parts.data_ptr())
    if x is None:
        arguments["in_channels"] = 0
    team.run(
        module, "unpack_reduce_grads", pack_tasks, grad_weight=_address(grad_weight), grad_bias=grad_bias.data_ptr(),
        num_parts=num_tasks, share=share, **arguments,
    )  # fmt: skip
    return grad_input, grad_weight, grad_bias


def to_backward_layout(s: Sizes, x: Tensor) -> Tensor:
    """Return ``x`` in the order that the backward kernel reads."""
    if s.vectorizes_outputs:
        return to_contiguous(x)
    return zero_pad(to_contiguous(x, torch.channels_last), s.in_channels_padded, 1)


# --------------------------------------------------------------------------------- checks and memory formats


def check_tensor(t: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return ``t``; raise ValueError unless it is a CPU tensor of this shape and dtype, whose storage covers it."""
    if t.shape != tuple(shape) or t.dtype is not dtype or not t.is_cpu or not storage_covers(t):
        raise ValueError(
            f"kernels: expected {dtype} of shape {tuple(shape)} on the CPU, got {t.dtype} of {tuple(t.shape)} "
            f"on {t.device} in {t.untyped_storage().nbytes()} bytes"
        )
    return t


def to_contiguous(t: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Return ``t`` without gaps in this memory format, its negative bit resolved."""
    return t.resolve_neg().contiguous(memory_format=memory_format)


def zero_pad(t: Tensor, size: int, dim: int) -> Tensor:
    """Return ``t``, padded with zeros to ``size`` along ``dim``; a padded 4-d tensor is channels_last."""
    if t.shape[dim] == size:
        return t
    shape = (*t.shape[:dim], size, *t.shape[dim + 1 :])
    if t.dim() == 4:
        batch_size, channels, height, width = shape
        padded = memory.new(batch_size, height, width, channels, dtype=t.dtype, zeros=True).permute(0, 3, 1, 2)
    else:
        padded = memory.new(*shape, dtype=t.dtype, zeros=True)
    padded.narrow(dim, 0, t.shape[dim]).copy_(t)
    return padded


def _unpad_nchw(t: Tensor, channels: int) -> Tensor:
    """Return the first channels of ``t``, (N, H, W, C), as (N, C, H, W)."""
    unpadded = t if t.shape[3] == channels else t.narrow(3, 0, channels).contiguous()
    return unpadded.permute(0, 3, 1, 2)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _pack_weight(module: KernelModule, s: Sizes, layout: WeightLayout, weight: Tensor, flip: bool) -> Tensor:
    """Return ``weight`` in a kernel's layout, with zeros in padded channels."""
    packed = memory.new(layout.numel, zeros=layout.numel != weight.numel())
    weight = to_contiguous(weight)
    num_tasks, share = _split_output_channels(s)
    arguments = sizes.pack_arguments(s, layout, flip, packed.data_ptr())
    team.run(module, "pack_weight", num_tasks, weight=weight.data_ptr(), share=share, **arguments)
    return packed


def _split_output_channels(s: Sizes) -> tuple[int, int]:
    """Number of tasks that pack or unpack the weights, and the output channels of each."""
    max_tasks = min(torch.get_num_threads(), 1 + s.out_channels * s.weights_per_output // 4096)
    return split_work(s.out_channels, max_tasks)
