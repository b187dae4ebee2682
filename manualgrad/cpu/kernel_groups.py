"""Groups of kernels, each compiled when it is first used.

A network of layers that need no general convolution does not wait for that. The kernels' modules need LLVM, so they
are imported here when their group is asked for.
"""

from __future__ import annotations

from manualgrad.cpu.signature import Kernel

NETWORK, CONV2D, TRANSPOSE = "network", "conv2d", "transpose"
GROUPED_CONV = "grouped_conv_"  # followed by the channels of a group
# Followed by the columns of a window, their stride and padding, with "x" between them.
MAX_POOL_CHANNELS, MAX_POOL_ROWS = "max_pool2d_channels_", "max_pool2d_rows_"


def group_kernels(group: str = NETWORK) -> dict[str, Kernel]:
    """The kernels of a group by name."""
    if group.startswith((MAX_POOL_CHANNELS, MAX_POOL_ROWS)):
        kernels = _max_pool2d_kernels(*group.rsplit("_", 1))
    elif group.startswith(GROUPED_CONV):
        kernels = _grouped_conv_kernels(int(group.removeprefix(GROUPED_CONV)))
    elif group == TRANSPOSE:
        kernels = _transpose_kernels()
    else:
        kernels = _conv2d_kernels() if group == CONV2D else _network_kernels()
    return {kernel.name: kernel for kernel in kernels}


def group_lanes(group: str, lanes: int) -> int:
    """Floats in a vector of a group's kernels, where the instruction set has ``lanes``.

    For a convolution with groups of 8 channels a vector is one group: each source is loaded into all of its lanes,
    which takes no shuffle."""
    return min(lanes, 8) if group == f"{GROUPED_CONV}8" else lanes


def _conv2d_kernels() -> tuple[Kernel, ...]:
    from manualgrad.cpu.kernels.conv2d import conv2d
    from manualgrad.cpu.kernels.conv2d_grad_weight import conv2d_grad_weight
    from manualgrad.cpu.kernels.pack_panels import pack_panels, unpack_panels
    from manualgrad.cpu.kernels.place_images import clear_border
    from manualgrad.cpu.kernels.relu import relu_backward_inside
    from manualgrad.cpu.kernels.run_program import run_program
    from manualgrad.cpu.kernels.transpose import transpose

    convolution = conv2d, conv2d_grad_weight, pack_panels, unpack_panels, transpose
    return (*convolution, clear_border, relu_backward_inside, run_program)


def _transpose_kernels() -> tuple[Kernel, ...]:
    from manualgrad.cpu.kernels.run_program import run_program
    from manualgrad.cpu.kernels.transpose import transpose

    return transpose, run_program


def _grouped_conv_kernels(group_size: int) -> tuple[Kernel, ...]:
    from manualgrad.cpu.kernels.grouped_conv import grouped_conv
    from manualgrad.cpu.kernels.grouped_conv_grad_weight import grouped_conv_grad_weight
    from manualgrad.cpu.kernels.pack_grouped import pack_grouped_weight, sum_grouped_grads
    from manualgrad.cpu.kernels.run_program import run_program
    from manualgrad.cpu.kernels.transpose import transpose

    makers = pack_grouped_weight, grouped_conv, grouped_conv_grad_weight, sum_grouped_grads
    return (*(make(group_size) for make in makers), transpose, run_program)


def _max_pool2d_kernels(layout: str, sizes: str) -> tuple[Kernel, ...]:
    from manualgrad.cpu.kernels.max_pool2d_channels import max_pool2d_channels_backward, max_pool2d_channels_forward
    from manualgrad.cpu.kernels.max_pool2d_rows import max_pool2d_rows_backward, max_pool2d_rows_forward
    from manualgrad.cpu.kernels.run_program import run_program

    columns, stride, padding = map(int, sizes.split("x"))
    makers = (max_pool2d_channels_forward, max_pool2d_channels_backward)
    if f"{layout}_" == MAX_POOL_ROWS:
        makers = (max_pool2d_rows_forward, max_pool2d_rows_backward)
    return (*(make(columns, stride, padding) for make in makers), run_program)


def _network_kernels() -> tuple[Kernel, ...]:
    from manualgrad.cpu.kernels.conv_pool_backward import conv_pool_backward
    from manualgrad.cpu.kernels.conv_pool_forward import conv_pool_forward
    from manualgrad.cpu.kernels.gather_images import gather_images
    from manualgrad.cpu.kernels.gemm import gemm_nt, gemm_strided
    from manualgrad.cpu.kernels.label_cross_entropy import label_losses, label_losses_grad
    from manualgrad.cpu.kernels.max_pool2d import max_pool2d_backward, max_pool2d_forward
    from manualgrad.cpu.kernels.one_hot_targets import one_hot_targets
    from manualgrad.cpu.kernels.pack_weight import pack_weight, unpack_reduce_grads
    from manualgrad.cpu.kernels.place_images import place_images
    from manualgrad.cpu.kernels.relu import relu_backward, relu_backward_streams, relu_forward
    from manualgrad.cpu.kernels.run_program import run_program
    from manualgrad.cpu.kernels.sgd_update import sgd_update
    from manualgrad.cpu.kernels.softmax_cross_entropy import softmax_cross_entropy, sum_losses
    from manualgrad.cpu.kernels.softmax_rows import softmax_rows, softmax_rows_grad
    from manualgrad.cpu.kernels.top1_stats import top1_stats

    return (
        conv_pool_forward,
        conv_pool_backward,
        pack_weight,
        unpack_reduce_grads,
        softmax_cross_entropy,
        sum_losses,
        label_losses,
        label_losses_grad,
        softmax_rows,
        softmax_rows_grad,
        one_hot_targets,
        relu_forward,
        relu_backward,
        relu_backward_streams,
        max_pool2d_forward,
        max_pool2d_backward,
        gemm_nt,
        gemm_strided,
        gather_images,
        place_images,
        top1_stats,
        sgd_update,
        run_program,
    )
