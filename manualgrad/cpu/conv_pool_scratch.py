"""Sizes that ``conv_pool_backward`` shares with its callers, in a module that needs no LLVM.

Without this module, manualgrad could not be imported where llvmlite is not installed.
"""

IMAGES_PER_BLOCK = 2  # images that the weight gradient sums at once
KERNEL_COLUMNS_PER_TILE = 5  # kernel columns that ``grad_weight_over_outputs`` sums at once
READ_SLACK = 8  # floats behind an image that ``grad_weight_over_outputs`` may read


def backward_scratch_bytes(windows: int, out_channels: int, image_numel: int) -> int:
    """Scratch bytes of a task for the buffers in ``conv_pool_backward._derive_sizes``, in whole cache lines."""
    per_window = IMAGES_PER_BLOCK * (5 * out_channels + 8) + 32
    return -(-(windows * per_window + 16 * out_channels + 4 * (image_numel + READ_SLACK)) // 64) * 64
