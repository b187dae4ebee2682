"""Sizes of the tiles of a convolution's products, fixed for each precision: no tuning at run time.

Those of the prototype lost least over the convolutions of resnet18 and vgg11 on an H100, 2 to 6 % of the best tile's
time for each. Not measured: depthwise, large tiles for 16-bit numbers, the parts of TF32, and the batch-last weight
gradient of few 16-bit channels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Tile:
    """``rows`` by ``columns`` of the result, ``depth`` terms of the sum at a time.

    ``parts`` is the number of programs that share the sum of a tile. For a weight's gradient, ``waves`` is the
    number of programs wanted for each multiprocessor."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    parts: int = 1
    waves: int = 1

    def clipped(self, rows: int, columns: int) -> Tile:
        """This tile, no larger than a matrix of ``rows`` by ``columns``, but at least what a tensor core takes."""
        return replace(self, rows=_clip(self.rows, rows), columns=_clip(self.columns, columns))


def _clip(size: int, limit: int) -> int:
    return min(size, max(16, next_power_of_2(limit)))


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is not less than n ≥ 1."""
    return 1 << (n - 1).bit_length()


_FORWARD = {
    "3xtf32": Tile(64, 64, 32, 4, 3),
    "tf32": Tile(64, 128, 32, 4, 4),
    "half": Tile(64, 128, 64, 4, 4),
}
_FEW_PROGRAMS = {"3xtf32": Tile(64, 64, 32, 4, 3, parts=3), "tf32": Tile(128, 128, 32, 8, 4, parts=2)}
_MANY_PROGRAMS = {"half": Tile(128, 128, 64, 4, 3)}
# Few programs: less than this many for each multiprocessor, and at least this many blocks of the sum.
_FEW = {"3xtf32": (1.6, 64), "tf32": (1.0, 128)}

_BATCH_LAST = {
    "3xtf32": Tile(64, 64, 32, 4, 3, waves=3),
    "tf32": Tile(128, 128, 32, 8, 4, waves=2),
    "half": Tile(128, 128, 32, 8, 4, waves=2),
}
_DIRECT = {
    "3xtf32": Tile(64, 64, 32, 4, 3, waves=2),
    "tf32": Tile(64, 64, 32, 4, 3, waves=2),
    "half": Tile(128, 64, 64, 4, 3, waves=3),
}
_DIRECT_ONE_CHANNEL = {
    "3xtf32": Tile(64, 64, 64, 4, 2, waves=2),
    "tf32": Tile(64, 64, 32, 4, 3, waves=2),
    "half": Tile(64, 64, 128, 4, 2, waves=2),
}


def gather_tile(precision: str, positions: int, channels: int, terms: int, multiprocessors: int) -> Tile:
    """The tile of ``conv2d_gather_gemm`` for a result of ``positions`` by ``channels``, each a sum of ``terms``."""
    tile = _FORWARD[precision]
    if channels <= 32:
        return Tile(128, 32, 32, 4, tile.num_stages).clipped(128, channels)
    programs = _num_tiles(tile.clipped(tile.rows, channels), positions, channels)
    if precision in _FEW:
        limit, blocks = _FEW[precision]
        if programs < limit * multiprocessors and terms >= blocks * tile.depth:
            tile = _FEW_PROGRAMS[precision]
    elif _num_tiles(_MANY_PROGRAMS[precision], positions, channels) >= 3 * multiprocessors:
        tile = _MANY_PROGRAMS[precision]
    return tile.clipped(tile.rows, channels)


def grad_weight_tile(precision: str, batch_last: bool, rows: int, columns: int, channels: int) -> Tile:
    """The tile of a weight's gradient, (rows, columns), with ``channels`` input channels."""
    if batch_last:
        tile = _BATCH_LAST[precision]
    else:
        tile = (_DIRECT_ONE_CHANNEL if channels == 1 else _DIRECT)[precision]
    return tile.clipped(rows, columns)


def wants_batch_last(precision: str, batch: int, channels: int, taps: int) -> bool:
    """Return True if copies with the batch last are worth their time for the gradient of a weight.

    The sum runs along the batch, so that a few images do not fill a block. Half types can be read in any order; they
    gain only if few channels and a large kernel would have each number's address computed."""
    if batch <= 8 or channels == 1:
        return False
    return precision != "half" or (channels <= 16 and taps >= 25)


def _num_tiles(tile: Tile, rows: int, columns: int) -> int:
    return -(-rows // tile.rows) * -(-columns // tile.columns)


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of the GPU; on the CPU, where kernels are interpreted or compiled only, an H100's."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
