"""Copies of images with a border of zeros, without a part of their border, or with other numbers of channels.

A task copies ``share`` images. A row of the target is ``left`` zeros, ``pixels`` times ``copied`` floats of the
source and ``filled`` zeros, and then ``right`` zeros. Where source and target have the same channels, a whole row
counts as one pixel. An image may be divided into planes: from (N, H, W, C) to (N, C, H, W) there are C of them.
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import float_tiles, task_range
from manualgrad.cpu.ir.values import INT64, Value, Variable
from manualgrad.cpu.ir.vectors import Arguments, Emitter
from manualgrad.cpu.signature import INT, POINTER, kernel


@kernel(
    source=POINTER,
    target=POINTER,  # (images, planes, rows, floats of a row)
    images=INT,
    share=INT,  # images per task
    planes=INT,
    rows=INT,  # of the target
    top=INT,  # rows of zeros before those of the source
    source_rows=INT,
    left=INT,
    pixels=INT,
    copied=INT,
    filled=INT,
    right=INT,
    source_image_bytes=INT,
    source_plane_bytes=INT,
    source_row_bytes=INT,
    source_pixel_bytes=INT,
)
def place_images(emit: Emitter, a: Arguments) -> None:
    """Copy this task's images."""
    row_numel = a.left + a.pixels * (a.copied + a.filled) + a.right
    start, stop = task_range(emit, a, a.images)
    target = emit.variable(a.target + start * (a.planes * a.rows * row_numel * 4))
    with emit.loop(start, stop) as image, emit.loop(0, a.planes) as plane:
        source = a.source + (image * a.source_image_bytes + plane * a.source_plane_bytes)
        _fill(emit, target, a.top * row_numel)
        with emit.loop(0, a.source_rows) as row:
            _fill(emit, target, a.left)
            with emit.loop(0, a.pixels) as pixel:
                _copy(emit, source + (row * a.source_row_bytes + pixel * a.source_pixel_bytes), target, a.copied)
                _fill(emit, target, a.filled)
            _fill(emit, target, a.right)
        _fill(emit, target, (a.rows - a.top - a.source_rows) * row_numel)


@kernel(
    target=POINTER,  # (images, top + rows + bottom, left + inside + right)
    images=INT,
    share=INT,  # images per task
    top=INT,
    rows=INT,
    bottom=INT,
    left=INT,  # floats, as the next two
    inside=INT,
    right=INT,
)
def clear_border(emit: Emitter, a: Arguments) -> None:
    """Fill the border of this task's images with zeros."""
    row_numel = a.left + a.inside + a.right
    start, stop = task_range(emit, a, a.images)
    target = emit.variable(a.target + start * ((a.top + a.rows + a.bottom) * row_numel * 4))
    with emit.loop(start, stop):
        _fill(emit, target, a.top * row_numel)
        with emit.loop(0, a.rows):
            _fill(emit, target, a.left)
            target.set(target.get() + a.inside * 4)
            _fill(emit, target, a.right)
        _fill(emit, target, a.bottom * row_numel)


def _fill(emit: Emitter, target: Variable, numel: Value) -> None:
    """Store ``numel`` zeros, and move ``target`` behind them."""
    for n, type_ in float_tiles(emit, emit.constant(INT64, 0), numel):
        emit.store(emit.constant(type_, 0), target.get() + n * 4)
    target.set(target.get() + numel * 4)


def _copy(emit: Emitter, source: Value, target: Variable, numel: Value) -> None:
    """Copy ``numel`` floats, and move ``target`` behind them."""
    for n, type_ in float_tiles(emit, emit.constant(INT64, 0), numel):
        emit.store(emit.load(source + n * 4, type_), target.get() + n * 4)
    target.set(target.get() + numel * 4)
