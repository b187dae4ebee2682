"""Tiles of the CUDA kernels of a network: how much of each layer a program computes, by the batch size.

They were measured on an H100 for ``DocumentCNN()``, in CUDA graphs, at 64, 512 and 4,096 images.
``python -m scripts.cuda_tiles 64 512 4096`` looks for faster ones on the GPU that is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tiles:
    """Sizes of tiles, in the names of the kernels' arguments.

    Attributes:
        image_windows, image_warps: pooling windows and warps of a program of the first convolution.
        windows, conv_warps: those of the others.
        conv_split: parts of each sum in a program of theirs, in forward; several parts take a warp each.
        dense: BM, BN, PARTS of a dense layer's forward, which PARTS programs share.
        head: BM, BN, BH; with BN = 0 the gradient of its input is a product of its own.
        columns: BN, PARTS of a convolution's columns.
        grad_parts, positions: parts of a convolution's weight gradient, and positions that a program adds at a time.
        first_parts, first_windows: those of the first convolution.
        first_taps: columns of a pooled number that it adds up at a time; fewer take fewer registers.
        dense_parts: parts of a dense layer's weight gradient.
        reduce: BLOCK, BS of the sum of the parts.
    """

    image_windows: int = 16
    image_warps: int = 2
    windows: int = 4
    conv_warps: int = 2
    conv_split: int = 1
    dense: tuple[int, int, int] = (16, 32, 8)
    head: tuple[int, int, int] = (16, 16, 128)
    columns: tuple[int, int] = (64, 7)
    grad_parts: int = 64
    positions: int = 16
    first_parts: int = 576
    first_windows: int = 16
    first_taps: int = 32
    dense_parts: int = 1
    reduce: tuple[int, int] = (16, 256)


SMALL = Tiles()
MEDIUM = replace(
    SMALL, image_windows=32, windows=32, conv_warps=4, dense=(64, 64, 1), head=(16, 0, 32), columns=(64, 1),
    grad_parts=112, first_parts=2112, dense_parts=8, reduce=(64, 32),
)  # fmt: skip
LARGE = replace(MEDIUM, grad_parts=224, positions=32, first_parts=528, first_windows=32, first_taps=8, dense_parts=16)


def tiles_for(batch_size: int) -> Tiles:
    """The tiles for a batch."""
    return SMALL if batch_size <= 256 else MEDIUM if batch_size < 2048 else LARGE


def padded(size: int, maximum: int = 1 << 30) -> int:
    """The power of two, from 16 to ``maximum``, that is not smaller than ``size`` where there is one."""
    return min(max(16, 1 << (size - 1).bit_length()), maximum)
