"""Random calls of every kernel with no memory around any tensor: one step outside and the processor ends the process.

    python -m tests.cpu.guard_pages 10000            # so many calls
    python -m tests.cpu.guard_pages --overrun after  # reads one number too many, to show that it would be noticed

Each tensor, whether given to a kernel or made for it, lies against a page that nobody may touch: before its first
byte, or behind its last. ``tests/cpu/test_memory_bounds.py`` runs a short round of it."""

from __future__ import annotations

import argparse
import ctypes
import math
import mmap
import random
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from manualgrad.cpu import conv_pool, instruction_set, jit, small_kernels, workspace
from manualgrad.network.descent import Descent
from manualgrad.network.plan import Network, Plan

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE = mmap.PAGESIZE
guard_is_behind = True  # or before


def guarded(*shape: int, dtype: torch.dtype = torch.float32, zeros: bool = False) -> Tensor:
    """In place of ``workspace.new``: anything but zeros is NaN, or 255."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    pages = -(-size // PAGE) + 2
    start = LIBC.mmap(
        None, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    assert start not in (None, ctypes.c_void_p(-1).value), "no memory"
    for page in (start, start + (pages - 1) * PAGE):
        assert LIBC.mprotect(page, PAGE, 0) == 0
    first = start + (pages - 1) * PAGE - size if guard_is_behind else start + PAGE
    block = (ctypes.c_byte * size).from_address(first)
    weakref.finalize(block, LIBC.munmap, start, pages * PAGE)
    tensor = torch.frombuffer(block, dtype=dtype).view(shape)
    return tensor.zero_() if zeros else tensor.fill_(math.nan if dtype.is_floating_point else 255)


def guarded_offsets(sizes: Sequence[int]) -> tuple[list[int], int]:
    """In place of ``workspace.offsets``: each part has pages of its own, between two that nobody may touch."""
    found, end = [], PAGE
    for size in sizes:
        pages = -(-size // PAGE) * PAGE
        found.append(end + (pages - size) // 4 * 4 if guard_is_behind else end)
        end += pages + PAGE
    return found, end


def guarded_parts(total: int, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """In place of ``workspace.new_parts``, for such offsets."""
    start = LIBC.mmap(None, total, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert start not in (None, ctypes.c_void_p(-1).value), "no memory"
    block = (ctypes.c_byte * total).from_address(start)
    weakref.finalize(block, LIBC.munmap, start, total)
    free = 0  # from here on, nothing belongs to a part yet
    for offset, size in zip(offsets, sizes, strict=True):
        (ctypes.c_byte * size).from_buffer(block, offset)[:] = b"\xff" * size  # NaN
        first = offset // PAGE * PAGE
        assert LIBC.mprotect(start + free, first - free, 0) == 0
        free = -(-(offset + size) // PAGE) * PAGE
    assert LIBC.mprotect(start + free, total - free, 0) == 0
    return torch.frombuffer(block, dtype=torch.uint8)


def copied(t: Tensor, channels_last: bool = False) -> Tensor:
    if channels_last:
        return copied(t.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
    return guarded(*t.shape, dtype=t.dtype).copy_(t)


def one_call(draw: random.Random) -> str:
    """The convolution or the network, there and back, or the small kernels, on random sizes; its name."""
    global guard_is_behind
    guard_is_behind = draw.random() < 0.5
    torch.set_num_threads(draw.randint(1, 4))
    instruction_set.choose(draw.choice(jit.instruction_sets()))
    kind = draw.random()
    if kind < 0.5:
        return small_call(draw) if kind < 0.25 else network_call(draw)
    kernel = (5, 5) if draw.random() < 0.3 else (draw.randint(1, 7), draw.randint(1, 11))
    images, channels = draw.choice([0, 1, 2, 3, 5]), draw.choice([1, 1, 2, 3, 4, 5, 8, 16, 20, 32])
    outputs = draw.choice([1, 3, 8, 15, 16, 24, 32, 40, 64, 72, 130])
    size = [k + draw.randint(1, 9) for k in kernel]
    x, w = torch.randn(images, channels, *size), torch.randn(outputs, channels, *kernel)
    x, w, b = copied(x, draw.random() < 0.5), copied(w), copied(torch.randn(outputs)) if draw.random() < 0.7 else None
    if draw.random() < 0.1 and x.numel():
        x[tuple(draw.randrange(n) for n in x.shape)] = math.inf
    flip, subgradient = draw.random() < 0.5, draw.choice([0, 0.5])
    pooled, codes = conv_pool.forward(instruction_set.in_use(), x, w, b, flip)
    if draw.random() < 0.3:
        codes = torch.randint(256, codes.shape, dtype=torch.uint8)  # no forward ever made these
    g, codes = (copied(t, channels_last=True) for t in (pooled, codes))
    for_x, for_w = draw.choice([(True, True), (True, False), (False, True)])
    shapes = (x.shape, w.shape)
    arguments = (g, x if for_w else None, w if for_x else None, codes, shapes, flip, subgradient)
    conv_pool.backward(instruction_set.in_use(), *arguments)
    return "convolution"


def network_call(draw: random.Random) -> str:
    """The whole network, there and back."""
    channels = tuple(draw.choice([16, 32, 48]) for _ in range(draw.randint(1, 2)))
    kernel = draw.randint(1, 5), draw.randint(1, 5)
    image = draw.choice([1, 1, 2, 5, 16]), draw.randint(18, 24), draw.randint(18, 24)
    dense = tuple(draw.randint(1, 40) for _ in range(draw.randint(1, 3)))
    flip, subgradient = draw.random() < 0.5, draw.choice([0, 0.5])
    network = Network(image, tuple((k, *kernel) for k in channels), dense, flip, subgradient)
    images, code = draw.choice([0, 1, 2, 3, 9]), instruction_set.in_use()
    plan = Plan(code, network, images, torch.get_num_threads())
    x = copied(torch.randn(images, *image), draw.random() < 0.5)
    parameters = [copied(torch.randn(shape)) for shape in plan.shapes[1:]]
    z, kept = plan.forward(x, parameters)
    plan.backward(copied(z), x, kept, parameters[::2])
    plan.steps(x, copied(torch.randint(-1, dense[-1], (images,))), parameters, 1.0, take=draw.random() < 0.5)
    if images and image[0] == 1:
        descend(draw, plan, parameters)
    return "network"


def descend(draw: random.Random, plan: Plan, parameters: list[Tensor]) -> None:
    """Two steps on images that may be a part of larger ones."""
    count, (_, rows, columns) = plan.images + draw.randint(0, 4), plan.network.image
    margin = draw.choice([0, 0, 3])
    whole = copied(torch.randint(256, (count, 1, rows + margin, columns + margin), dtype=torch.uint8))
    images = whole[..., margin:, margin:] if draw.random() < 0.5 else whole[..., :rows, :columns]
    descent = Descent(plan, parameters, images, copied(torch.randint(plan.network.dense[-1], (count,))), 33.0, 78.0)
    descent.begin(torch.randperm(count))
    for first in (0, count - plan.images):
        descent.step(first, 1e-3)


def small_call(draw: random.Random) -> str:
    count, classes = draw.randint(1, 70), draw.randint(1, 40)
    z, y = (copied(torch.randn(count, classes)) for _ in range(2))
    labels = copied(torch.randint(-3, classes + 3, (count,)))
    results = [
        small_kernels.softmax_forward(z, -1),
        small_kernels.cross_entropy(z, y, draw.random() < 0.5),
        small_kernels.cross_entropy_backward(copied(torch.randn(count)), z, y),
        small_kernels.relu_backward(y, z, 0.5),
        small_kernels.labels_distribution(copied(labels.clamp(0, classes - 1)), z, classes, -100, True),
    ]
    assert all(result is not None for result in results), "a kernel was not used"
    small_kernels.labels_distribution(labels, z, classes, -1, True)
    large = copied(torch.randn(draw.randint(60_000, 140_000)))
    assert small_kernels.relu_backward(large, copied(large), 0.5) is not None
    return "small"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calls", type=int, nargs="?", default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overrun", choices=("before", "after"))
    parser.add_argument("--part", action="store_true", help="overruns a part of a piece of memory, not a tensor")
    options = parser.parse_args()
    if options.overrun:
        global guard_is_behind
        guard_is_behind = options.overrun == "after"
        if options.part:
            (_, first), total = guarded_offsets((20, 20))
            piece = guarded_parts(total, guarded_offsets((20, 20))[0], (20, 20))
            address = piece.data_ptr() + first
        else:
            piece = guarded(5)
            address = piece.data_ptr()
        ctypes.c_float.from_address(address).value  # noqa: B018
        print("inside is allowed", flush=True)
        ctypes.c_float.from_address(address + (20 if guard_is_behind else -4)).value  # noqa: B018
        print("nobody noticed")
        return
    workspace.new, workspace.like = guarded, lambda t: guarded(*t.shape)
    workspace.offsets, workspace.new_parts = guarded_offsets, guarded_parts
    draw = random.Random(options.seed)
    torch.manual_seed(options.seed)
    seen = [one_call(draw) for _ in range(options.calls)]
    convolution, network, small = map(seen.count, ("convolution", "network", "small"))
    print(
        f"{convolution} calls of the convolution's kernels, {network} of the network's and {small} of the small ones"
    )


if __name__ == "__main__":
    main()
