"""Random calls of every kernel on tensors next to protected pages: an access out of bounds ends the process.

    python -m tests.cpu.guard_pages 10000            # number of calls
    python -m tests.cpu.guard_pages 1000 --python-threads 3
    python -m tests.cpu.guard_pages --overrun after  # reads one number too many, to show that this is detected

Each tensor that a kernel reads or writes begins after a page without access rights, or ends before one. Its memory is
unmapped when the tensor is freed: a kernel that still reads it ends the process too. With --python-threads several
threads make the calls at once, and the main thread drops the cached programs, whose tables the kernels read.
``tests/cpu/test_memory_bounds.py`` runs a few calls.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import mmap
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from manualgrad.cpu import (
    conv2d_programs,
    conv_pool,
    grouped_conv_programs,
    grouped_conv_runs,
    instruction_set,
    jit,
    max_pool2d,
    memory,
    row_kernels,
    small_kernels,
)
from manualgrad.dispatch import by_kernel
from manualgrad.network.cpu_blocks import geometries
from manualgrad.network.descent import Descent
from manualgrad.network.device import Activation, Unsupported
from manualgrad.network.layers import Conv, Dense, Flatten, MaxPool, NetworkSpec
from manualgrad.network.plan import Plan
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry
from manualgrad.ops.max_pool2d_geometry import make_max_pool2d_geometry

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE = mmap.PAGESIZE
CACHES = [
    value
    for module in (conv2d_programs, grouped_conv_programs, grouped_conv_runs, max_pool2d, row_kernels, small_kernels)
    for value in vars(module).values()
    if hasattr(value, "cache_clear")
]
guard_is_after = True  # or before


def guarded_tensor(*shape: int, dtype: torch.dtype = torch.float32, zeros: bool = False) -> Tensor:
    """Replace ``memory.new``; the tensor is filled with NaN, or 255, unless ``zeros``."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    pages = -(-size // PAGE) + 2
    start = map_memory(pages * PAGE)
    for page in (start, start + (pages - 1) * PAGE):
        protect(page, PAGE)
    first = start + (pages - 1) * PAGE - size if guard_is_after else start + PAGE
    block = (ctypes.c_byte * size).from_address(first)
    weakref.finalize(block, LIBC.munmap, start, pages * PAGE)
    tensor = torch.frombuffer(block, dtype=dtype).view(shape)
    return tensor.zero_() if zeros else tensor.fill_(math.nan if dtype.is_floating_point else 255)


def guarded_channels_last(batch: int, channels: int, height: int, width: int, **options: Any) -> Tensor:
    """Replace ``memory.new_channels_last``."""
    return guarded_tensor(batch, height, width, channels, **options).permute(0, 3, 1, 2)


def guarded_offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Replace ``memory.buffer_offsets``: each buffer has pages of its own, between two protected ones."""
    offsets, end = [], PAGE
    for size in sizes:
        pages = -(-size // PAGE) * PAGE
        offsets.append(end + (pages - size) // 4 * 4 if guard_is_after else end)
        end += pages + PAGE
    return offsets, end


def guarded_workspace(nbytes: int, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Replace ``memory.new_workspace``, for the offsets of :func:`guarded_offsets`."""
    start = map_memory(nbytes)
    block = (ctypes.c_byte * nbytes).from_address(start)
    weakref.finalize(block, LIBC.munmap, start, nbytes)
    protected_from = 0
    for offset, size in zip(offsets, sizes, strict=True):
        (ctypes.c_byte * size).from_buffer(block, offset)[:] = b"\xff" * size  # NaN
        first_page = offset // PAGE * PAGE
        protect(start + protected_from, first_page - protected_from)
        protected_from = -(-(offset + size) // PAGE) * PAGE
    protect(start + protected_from, nbytes - protected_from)
    return torch.frombuffer(block, dtype=torch.uint8)


def map_memory(size: int) -> int:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = LIBC.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    assert start not in (None, ctypes.c_void_p(-1).value), "no memory"
    return start


def protect(start: int, size: int) -> None:
    assert LIBC.mprotect(start, size, 0) == 0


def guarded_copy(t: Tensor, channels_last: bool = False) -> Tensor:
    if channels_last:
        return guarded_copy(t.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
    return guarded_tensor(*t.shape, dtype=t.dtype).copy_(t)


def guarded_randn(*shape: int) -> Tensor:
    return guarded_copy(torch.randn(shape))


def run_random_kernels(draw: random.Random) -> str:
    """Run some kernels on random sizes; return the kind, one of those that :func:`main` prints."""
    global guard_is_after
    guard_is_after = draw.random() < 0.5
    if threading.current_thread() is threading.main_thread():
        torch.set_num_threads(draw.randint(1, 4))
    instruction_set.choose(draw.choice(jit.instruction_sets()))
    kind = draw.random()
    if kind < 0.15:
        run_small_kernels(draw)
        return "small"
    if kind < 0.3:
        run_pooling(draw)
        return "pooling"
    if kind < 0.5:
        run_network(draw)
        return "network"
    if kind < 0.65:
        run_grouped_convolution(draw)
        return "grouped"
    if kind < 0.8:
        run_conv_pool(draw)
        return "conv_pool"
    run_convolution(draw)
    return "convolution"


def run_convolution(draw: random.Random) -> None:
    """Run the kernels of a general convolution forward and backward."""
    groups = draw.choice([1, 1, 1, 2, 3])
    in_channels = draw.choice([1, 2, 3, 5, 8, 17, 40] if groups == 1 else [17, 20, 33]) * groups
    out_channels = draw.choice([1, 3, 8, 9, 16, 33, 70]) * groups
    kernel, stride, dilation, padding = (
        (draw.randint(m, n), draw.randint(m, n)) for m, n in ((1, 5), (1, 3), (1, 2), (0, 3))
    )
    span = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [max(1, n) + draw.choice([0, 1, 4, 11]) for n in span]
    x = guarded_copy(torch.randn(draw.choice([0, 1, 2, 5]), in_channels, *size), draw.random() < 0.5)
    w = guarded_copy(torch.randn(out_channels, in_channels // groups, *kernel), draw.random() < 0.5)
    b = guarded_randn(out_channels) if draw.random() < 0.7 else None
    flip, channels_last = draw.random() < 0.5, draw.random() < 0.5
    geometry = make_conv2d_geometry(x, w, b, stride, padding, dilation, groups, flip, channels_last)
    out = by_kernel("conv2d_forward_nchw", x, w, b, geometry)
    assert out is not None, "a kernel was not used"
    g = guarded_copy(out, draw.random() < 0.5)
    assert by_kernel("conv2d_grad_input_nchw", g, w, geometry) is not None, "a kernel was not used"
    assert by_kernel("conv2d_grad_weight_oihw", g, x, geometry) is not None, "a kernel was not used"
    assert by_kernel("conv2d_backward", g, x, w, b is not None, geometry) is not None, "a kernel was not used"


def run_conv_pool(draw: random.Random) -> None:
    """Run the kernels of a convolution with ReLU and pooling forward and backward."""
    kernel = (5, 5) if draw.random() < 0.3 else (draw.randint(1, 7), draw.randint(1, 11))
    batch_size, in_channels = draw.choice([0, 1, 2, 3, 5]), draw.choice([1, 1, 2, 3, 4, 5, 8, 16, 20, 32, 64])
    out_channels = draw.choice([1, 3, 8, 15, 16, 24, 32, 40, 64, 72, 130])
    size = [k + draw.randint(1, 9) for k in kernel]
    x = guarded_copy(torch.randn(batch_size, in_channels, *size), draw.random() < 0.5)
    w = guarded_randn(out_channels, in_channels, *kernel)
    b = guarded_randn(out_channels) if draw.random() < 0.7 else None
    if draw.random() < 0.1 and x.numel():
        x[tuple(draw.randrange(n) for n in x.shape)] = math.inf
    flip, subgradient = draw.random() < 0.5, draw.choice([0, 0.5])
    module = instruction_set.current_module()
    out, pool_index = conv_pool.run_forward(module, x, w, b, flip)
    if draw.random() < 0.3:
        pool_index = torch.randint(256, pool_index.shape, dtype=torch.uint8)  # values that forward never returns
    g, pool_index = (guarded_copy(t, channels_last=True) for t in (out, pool_index))
    needs_x, needs_w = draw.choice([(True, True), (True, False), (False, True)])
    tensors = g, x if needs_w else None, w if needs_x else None, pool_index
    conv_pool.run_backward(module, *tensors, (x.shape, w.shape), flip, subgradient)


def run_pooling(draw: random.Random) -> None:
    """Run max-pooling forward and backward; a window may be larger than the image."""
    kernel, stride, dilation = ((draw.randint(1, n), draw.randint(1, n)) for n in (6, 4, 2))
    padding, ceil_mode = (draw.randint(0, kernel[0] // 2), draw.randint(0, kernel[1] // 2)), draw.random() < 0.5
    span = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [max(1, n) + draw.randint(0, extra) for n, extra in zip(span, (9, 40), strict=True)]
    channels = draw.choice([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 70, 130])
    x = guarded_copy(torch.randn(draw.choice([0, 1, 2, 5]), channels, *size), draw.random() < 0.5)
    channels_last = draw.random() < 0.5  # the memory format of results: contiguous ones have kernels of their own
    geometry = make_max_pool2d_geometry(tuple(x.shape), kernel, stride, padding, dilation, ceil_mode, channels_last)
    results = by_kernel("max_pool2d_forward", x.permute(0, 2, 3, 1), geometry)
    assert results is not None, "a kernel was not used"
    g, pool_index = (guarded_copy(t.permute(0, 3, 1, 2), channels_last=draw.random() < 0.5) for t in results)
    if draw.random() < 0.3:
        pool_index = torch.randint(256, pool_index.shape, dtype=torch.uint8)  # values that forward never returns
    assert by_kernel("max_pool2d_backward", g, pool_index, geometry) is not None, "a kernel was not used"


def run_grouped_convolution(draw: random.Random) -> None:
    """Run the kernels of a convolution with few channels in a group, forward and backward."""
    kernel, stride, dilation = ((draw.randint(1, n), draw.randint(1, n)) for n in (7, 3, 3))
    padding = draw.randint(0, 4), draw.randint(0, 4)
    span = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [max(1, n) + draw.randint(0, 9) for n in span]
    in_channels = draw.choice([1, 1, 1, 2, 3, 4, 8, 8, 16, 32])
    groups = draw.choice([2, 3, 5, 8, 9, 16, 17, 31, 32, 66, 130] if in_channels < 16 else [2, 3, 8, 17])
    out_channels = draw.choice([in_channels, in_channels, draw.randint(1, 8)] if in_channels < 16 else [in_channels])
    x_shape = draw.choice([0, 1, 2, 5]), groups * in_channels, *size
    x = guarded_copy(torch.randn(x_shape), draw.random() < 0.5)
    w = guarded_randn(groups * out_channels, in_channels, *kernel)
    b = guarded_randn(len(w)) if draw.random() < 0.5 else None
    flip, channels_last = draw.random() < 0.5, draw.random() < 0.5
    geometry = make_conv2d_geometry(x, w, b, stride, padding, dilation, groups, flip, channels_last)
    out = by_kernel("conv2d_forward_nchw", x, w, b, geometry)
    g = guarded_copy(out, draw.random() < 0.5)
    grads = by_kernel("conv2d_grad_input_nchw", g, w, geometry), by_kernel("conv2d_grad_weight_oihw", g, x, geometry)
    assert all(result is not None and result.isfinite().all() for result in (out, *grads)), "a kernel was not used"


def run_network(draw: random.Random) -> None:
    """Run a planned network forward and backward, its loss, and for one input channel its descent."""
    kernel = draw.randint(1, 5), draw.randint(1, 5)
    in_channels, height, width = image_shape = (
        draw.choice([1, 1, 2, 5, 16]),
        draw.randint(18, 24),
        draw.randint(18, 24),
    )
    flip, subgradient = draw.random() < 0.5, draw.choice([0, 0.5])
    pool, layers = MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False, False), []
    for _ in range(draw.randint(1, 2)):
        channels, padding = draw.choice([5, 16, 20, 32, 64]), (draw.randint(0, 2), draw.randint(0, 2))
        is_fused, has_relu = draw.random() < 0.5, draw.random() < 0.7
        stride, dilation = ((1, 1), (1, 1)) if is_fused else ((draw.randint(1, 2), draw.randint(1, 3)), (1, 1))
        pooling = pool if is_fused else draw.choice([None, MaxPool((3, 3), (2, 2), (1, 1), (1, 1), True, False)])
        options = stride, padding, dilation, 1, "zeros", flip, subgradient if is_fused or has_relu else None, pooling
        layer = Conv(channels, in_channels, kernel, *options)
        try:
            conv, pools = geometries(layer, Activation((height, width, in_channels)))
        except Unsupported:  # the first layer has left too small an image for a second one
            assert layers
            break
        layers.append(layer)
        height, width = pools.output_size if pools else conv.windows.output_size(height, width)
        in_channels = channels
    layers.append(Flatten(channel_major=draw.random() < 0.5))
    features = [in_channels * height * width, *(draw.randint(1, 40) for _ in range(draw.randint(1, 3)))]
    for n in range(1, len(features)):
        layers.append(Dense(features[n], features[n - 1], subgradient if n < len(features) - 1 else None))
    network = NetworkSpec(image_shape, tuple(layers))
    batch_size = draw.choice([0, 1, 2, 3, 9])
    plan = Plan(instruction_set.current_module(), network, batch_size, torch.get_num_threads())
    x = guarded_copy(torch.randn(batch_size, *image_shape), draw.random() < 0.5)
    parameters = [guarded_randn(*shape) for shape in plan.parameter_shapes]
    logits, saved = plan.forward(x, parameters)
    plan.backward(guarded_copy(logits), x, saved, parameters[::2])
    labels = guarded_copy(torch.randint(-1, features[-1], (batch_size,)))
    plan.loss_and_grads(x, labels, parameters, 1.0, update=draw.random() < 0.5)
    if batch_size and image_shape[0] == 1:
        run_descent(draw, plan, parameters)


def run_descent(draw: random.Random, plan: Plan, parameters: list[Tensor]) -> None:
    """Take two steps on images that may be views of larger ones."""
    count, (_, height, width) = plan.batch_size + draw.randint(0, 4), plan.network.image_shape
    margin = draw.choice([0, 0, 3])
    larger = guarded_copy(torch.randint(256, (count, 1, height + margin, width + margin), dtype=torch.uint8))
    images = larger[..., margin:, margin:] if draw.random() < 0.5 else larger[..., :height, :width]
    labels = guarded_copy(torch.randint(plan.network.classes, (count,)))
    descent = Descent(plan, parameters, images, labels, 33.0, 78.0)
    descent.begin_epoch(torch.randperm(count))
    for first in (0, count - plan.batch_size):
        descent.step(first, 1e-3)


def run_small_kernels(draw: random.Random) -> None:
    rows, classes = draw.randint(1, 70), draw.randint(1, 40)
    z, y = (guarded_randn(rows, classes) for _ in range(2))
    labels = guarded_copy(torch.randint(-3, classes + 3, (rows,)))
    results = [
        by_kernel("softmax_forward", z, -1),
        by_kernel("cross_entropy_forward", z, y, draw.random() < 0.5),
        by_kernel("cross_entropy_backward", guarded_randn(rows), z, y),
        by_kernel("relu_backward", y, z, 0.5),
        by_kernel("targets_from_labels", guarded_copy(labels.clamp(0, classes - 1)), z, None, classes, -100, True, 0),
    ]
    assert all(result is not None for result in results), "a kernel was not used"
    by_kernel("targets_from_labels", labels, z, None, classes, -1, True, 0)
    run_row_kernels(draw, classes)
    large = guarded_randn(draw.randint(60_000, 140_000) + (1 << 20 if draw.random() < 0.1 else 0))
    assert by_kernel("relu_backward", large, guarded_copy(large), 0.5) is not None


def run_row_kernels(draw: random.Random, more_classes: int) -> None:
    """Run the kernels over rows of any length, which are too many or too long for the small ones."""
    classes = draw.choice([32, 64, 500]) + more_classes
    z = guarded_randn(draw.choice([1, 3, 9, 70]) - -(1 << 15) // classes, classes)
    labels = guarded_copy(torch.randint(classes, (len(z),)))
    probs, reduction = by_kernel("softmax_forward", z, -1), draw.choice(["mean", "sum", "none"])
    loss, _, row_stats, target = by_kernel("cross_entropy_from_labels", z, labels, None, 3, reduction, 0.0)
    g = guarded_randn(*loss.shape)
    results = [
        by_kernel("softmax_backward", guarded_randn(*z.shape), probs, -1),
        by_kernel("cross_entropy_from_labels_backward", g, z, labels, None, row_stats, 3, 0.0, target),
    ]
    assert all(result.isfinite().all() for result in results)
    labels[draw.randrange(len(labels))] = draw.choice([-1, classes, 2**40])
    assert by_kernel("cross_entropy_from_labels", z, labels, None, 3, reduction, 0.0) is None


def overrun(side: str, in_workspace: bool) -> None:
    """Read one number before or after a tensor, or a buffer of a workspace."""
    global guard_is_after
    guard_is_after = side == "after"
    if in_workspace:
        offsets, nbytes = guarded_offsets((20, 20))
        tensor = guarded_workspace(nbytes, offsets, (20, 20))
        address = tensor.data_ptr() + offsets[1]
    else:
        tensor = guarded_tensor(5)
        address = tensor.data_ptr()
    ctypes.c_float.from_address(address).value  # noqa: B018
    print("inside is allowed", flush=True)
    ctypes.c_float.from_address(address + (20 if guard_is_after else -4)).value  # noqa: B018
    print("the overrun was not detected")


def run_in_threads(num_threads: int, calls: int, seed: int) -> Counter[str]:
    """Run ``calls`` random kernels; with several threads, this one drops the caches of programs while they run."""

    def run(thread: int) -> Counter[str]:
        draw = random.Random(seed + thread)
        return Counter(run_random_kernels(draw) for _ in range(calls // num_threads))

    if num_threads == 1:
        return run(0)
    torch.set_num_threads(2)
    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(run, n) for n in range(num_threads)]
        while not all(future.done() for future in futures):
            for cached in CACHES:
                cached.cache_clear()
            time.sleep(0.01)
    return sum((future.result() for future in futures), Counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calls", type=int, nargs="?", default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python-threads", type=int, default=1)
    parser.add_argument("--overrun", choices=("before", "after"), help="read one number out of bounds, on this side")
    parser.add_argument("--buffer", action="store_true", help="overrun a buffer of a workspace, not a tensor")
    options = parser.parse_args()
    if options.overrun:
        overrun(options.overrun, options.buffer)
        return
    memory.new, memory.new_like = guarded_tensor, lambda t: guarded_tensor(*t.shape)
    memory.new_channels_last = guarded_channels_last
    memory.buffer_offsets, memory.new_workspace = guarded_offsets, guarded_workspace
    memory.SHARED_BYTES = 0  # each workspace is a new one
    torch.manual_seed(options.seed)
    counts = run_in_threads(options.python_threads, options.calls, options.seed)
    print(
        f"{counts['convolution']} calls of the convolution's kernels, {counts['grouped']} of the grouped "
        f"convolution's, {counts['conv_pool']} of conv_pool's, {counts['network']} of the network's, "
        f"{counts['pooling']} of pooling's and {counts['small']} of the small ones"
    )


if __name__ == "__main__":
    main()
