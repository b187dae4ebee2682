"""Calls that copy images in a plan: with a border of zeros or without, and with other numbers of channels."""

from __future__ import annotations

from manualgrad.cpu.conv2d_calls import Call
from manualgrad.cpu.signature import BufferRef, KernelCall

Size = tuple[int, int, int]  # height, width and channels of an image


def copy_images(
    call: Call, source: BufferRef, target: BufferRef, images: tuple[int, int], copied: Size, source_size: Size, *,
    origin: tuple[int, int] = (0, 0), border: tuple[int, int, int, int] = (0, 0, 0, 0), channels: int = 0,
) -> KernelCall:  # fmt: skip
    """Copy a part of each image, which begins at ``origin``, into an image with a border of zeros.

    Args:
        images: their number, and how many of them a task copies.
        copied: size of the part.
        source_size: size of an image of the source.
        border: rows and columns of zeros: top, bottom, left and right.
        channels: those of the target, of which the last are zeros; 0 if it has no more than are copied.
    """
    height, width, copied_channels = copied
    source_height, source_width, source_channels = source_size
    top, bottom, left, right = border
    channels = channels or copied_channels
    pixel_bytes = 4 * source_channels
    row_bytes = source_width * pixel_bytes
    pixels, run = width, copied_channels
    if copied_channels == channels == source_channels:
        pixels, run = 1, width * channels  # a row is one run of floats
    return call(
        "place_images", source=source + (origin[0] * row_bytes + origin[1] * pixel_bytes), target=target,
        images=images[0], share=images[1], planes=1, rows=top + height + bottom, top=top, source_rows=height,
        left=left * channels, pixels=pixels, copied=run, filled=channels - copied_channels, right=right * channels,
        source_image_bytes=source_height * row_bytes, source_plane_bytes=0, source_row_bytes=row_bytes,
        source_pixel_bytes=pixel_bytes,
    )  # fmt: skip


def copy_to_planes(
    call: Call, source: BufferRef, target: BufferRef, images: tuple[int, int], size: Size
) -> KernelCall:  # fmt: skip
    """Copy images (N, H, W, C) to (N, C, H, W)."""
    height, width, channels = size
    return call(
        "place_images", source=source, target=target, images=images[0], share=images[1], planes=channels, rows=height,
        top=0, source_rows=height, left=0, pixels=width, copied=1, filled=0, right=0,
        source_image_bytes=4 * height * width * channels, source_plane_bytes=4,
        source_row_bytes=4 * width * channels, source_pixel_bytes=4 * channels,
    )  # fmt: skip


def clear_border(
    call: Call, target: BufferRef, images: tuple[int, int], size: Size, border: tuple[int, int, int, int]
) -> KernelCall:
    """Fill the border of images of ``size`` with zeros."""
    (height, width, channels), (top, bottom, left, right) = size, border
    return call(
        "clear_border", target=target, images=images[0], share=images[1], top=top, rows=height, bottom=bottom,
        left=left * channels, inside=width * channels, right=right * channels,
    )  # fmt: skip


def clear(call: Call, target: BufferRef, images: tuple[int, int], size: Size) -> KernelCall:
    """Fill images with zeros."""
    return copy_images(call, target, target, images, (0, *size[1:]), size, border=(0, size[0], 0, 0))
