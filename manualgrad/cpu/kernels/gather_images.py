"""A batch of normalised float images from uint8 images.

x = (u − m) / s                   of bytes u, with m and s in the same units

A task gathers ``share`` images.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import task_range
from manualgrad.cpu.ir.values import BYTE, INT32, INT64
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import FLOAT32, INT, POINTER, kernel


@kernel(
    images=POINTER,  # (images, H, W) bytes; the pixels of a row are contiguous
    indices=POINTER,  # (N) int64: which image each row of x is
    x=POINTER,  # (N, H, W)
    batch_size=INT,
    share=INT,  # images per task
    height=INT,
    width=INT,
    image_stride=INT,  # of images, in bytes
    row_stride=INT,  # of images, in bytes
    mean=FLOAT32,
    std=FLOAT32,
)
def gather_images(emit: Emitter, a: Arguments) -> None:
    """Gather this task's images."""
    with emit.loop(*task_range(emit, a, a.batch_size)) as n:
        image = a.images + emit.load(a.indices + n * 8, INT64) * a.image_stride
        x = a.x + n * a.height * a.width * 4
        full = a.width - a.width % emit.lanes
        with emit.loop(0, a.height) as row:
            source, target = image + row * a.row_stride, x + row * a.width * 4
            with emit.loop(0, full, emit.lanes) as column:
                pixels = emit.sitofp(emit.zext(emit.load(source + column, emit.byte_vector), emit.int_vector))
                emit.store((pixels - emit.splat(a.mean)) / emit.splat(a.std), target + column * 4)
            with emit.loop(full, a.width) as column:
                pixel = emit.sitofp(emit.zext(emit.load(source + column, BYTE), INT32))
                emit.store((pixel - a.mean) / a.std, target + column * 4)
