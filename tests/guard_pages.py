"""Random calls of every kernel with no memory around any tensor: one step outside and the processor ends the process.

    python tests/guard_pages.py 10000            # so many calls
    python tests/guard_pages.py --overrun after  # reads one number too many, to show that it would be noticed

Each tensor, whether given to a kernel or made for it, lies against a page that nobody may touch: before its first
byte, or behind its last. ``tests/test_kernel_memory.py`` runs a short round of it."""

from __future__ import annotations

import argparse
import ctypes
import math
import mmap
import random
import weakref

import torch
from torch import Tensor

from manualgrad.kernels import compiled, conv_pool, machine, memory, rows

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE = mmap.PAGESIZE
guard_is_behind = True  # or before


def guarded(*shape: int, dtype: torch.dtype = torch.float32, zeros: bool = False) -> Tensor:
    """In place of ``memory.new``: anything but zeros is NaN, or 255."""
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


def copied(t: Tensor, channels_last: bool = False) -> Tensor:
    if channels_last:
        return copied(t.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
    return guarded(*t.shape, dtype=t.dtype).copy_(t)


def one_call(draw: random.Random) -> str:
    """Forward and backward of the convolution, or one of the small kernels, on random sizes; its name."""
    global guard_is_behind
    guard_is_behind = draw.random() < 0.5
    torch.set_num_threads(draw.randint(1, 3))
    machine.choose(draw.choice(compiled.instruction_sets()))
    if draw.random() < 0.3:
        return small_call(draw)
    kernel = (5, 5) if draw.random() < 0.3 else (draw.randint(1, 7), draw.randint(1, 11))
    images, channels = draw.choice([0, 1, 2, 3, 5]), draw.choice([1, 1, 2, 3, 4, 5, 8, 16, 20, 32])
    outputs = draw.choice([1, 3, 8, 15, 16, 24, 32, 40, 64, 72, 130])
    size = [k + draw.randint(1, 9) for k in kernel]
    x, w = torch.randn(images, channels, *size), torch.randn(outputs, channels, *kernel)
    x, w, b = copied(x, draw.random() < 0.5), copied(w), copied(torch.randn(outputs)) if draw.random() < 0.7 else None
    if draw.random() < 0.1 and x.numel():
        x[tuple(draw.randrange(n) for n in x.shape)] = math.inf
    flip, subgradient = draw.random() < 0.5, draw.choice([0, 0.5])
    pooled, codes = conv_pool.forward(machine.in_use(), x, w, b, flip)
    if draw.random() < 0.3:
        codes = torch.randint(256, codes.shape, dtype=torch.uint8)  # no forward ever made these
    g, codes = (copied(t, channels_last=True) for t in (pooled, codes))
    for_x, for_w = draw.choice([(True, True), (True, False), (False, True)])
    shapes = (x.shape, w.shape)
    arguments = (g, x if for_w else None, w if for_x else None, codes, shapes, flip, subgradient)
    conv_pool.backward(machine.in_use(), *arguments)
    return "convolution"


def small_call(draw: random.Random) -> str:
    count, classes = draw.randint(1, 70), draw.randint(1, 40)
    z, y = (copied(torch.randn(count, classes)) for _ in range(2))
    labels = copied(torch.randint(-3, classes + 3, (count,)))
    results = [
        rows.softmax_values(z, -1),
        rows.cross_entropy(z, y, draw.random() < 0.5),
        rows.logits_gradient(copied(torch.randn(count)), z, y),
        rows.rectified_gradient(y, z, 0.5),
        rows.labels_distribution(copied(labels.clamp(0, classes - 1)), z, classes, -100, True),
    ]
    assert all(result is not None for result in results), "a kernel was not used"
    rows.labels_distribution(labels, z, classes, -1, True)
    large = copied(torch.randn(draw.randint(60_000, 140_000)))
    assert rows.rectified_gradient(large, copied(large), 0.5) is not None
    return "small"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calls", type=int, nargs="?", default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overrun", choices=("before", "after"))
    options = parser.parse_args()
    if options.overrun:
        global guard_is_behind
        guard_is_behind = options.overrun == "after"
        t = guarded(5)
        ctypes.c_float.from_address(t.data_ptr() + (20 if guard_is_behind else -4)).value  # noqa: B018
        print("nobody noticed")
        return
    memory.new = guarded
    draw = random.Random(options.seed)
    torch.manual_seed(options.seed)
    seen = [one_call(draw) for _ in range(options.calls)]
    print(
        f"{seen.count('convolution')} calls of the convolution's kernels and {seen.count('small')} of the small ones"
    )


if __name__ == "__main__":
    main()
