"""Triton's kernels as a device of the planner: ``cuda_*_block.py`` have its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manualgrad.cuda.kernels import (
    max_pool2d,
    network_backward,
    network_conv_grad_input,
    network_first_grad_weight,
    network_forward,
    network_head,
    network_reduce,
)
from manualgrad.network.cuda_dense_block import DenseBlock
from manualgrad.network.cuda_launches import CUDAProgram, Launch
from manualgrad.network.cuda_pooled_conv_block import make_conv_block
from manualgrad.network.cuda_tiles import Tiles, tiles_for
from manualgrad.network.device import Activation, Split
from manualgrad.network.flatten_block import FlattenBlock
from manualgrad.network.layers import Conv, Flatten, Layer

MODULES = (
    network_forward, network_head, network_backward, network_conv_grad_input, network_first_grad_weight,
    network_reduce, max_pool2d,
)  # fmt: skip


class CUDADevice:
    """Triton's kernels for one batch size, with ``tiles`` in every layer if they are given."""

    def __init__(self, batch_size: int, tiles: Tiles | None = None) -> None:
        self.batch_size = batch_size
        self.tiles_for = tiles_for if tiles is None else lambda _: tiles
        self.tiles = self.tiles_for(batch_size)

    def block(self, layer: Layer, x: Activation, batch_size: int) -> Any:
        if isinstance(layer, Conv):
            return make_conv_block(self, layer, x)
        return FlattenBlock(layer, x) if isinstance(layer, Flatten) else DenseBlock(self, layer, x)

    def loss(self, classes: int, batch_size: int) -> Any:
        return None  # cuda_head.py

    def split(self, batch_size: int, threads: int, multiplications: int, partial_sums: int) -> Split:
        return Split(1, 1, batch_size)

    def call(self, kernel: str, /, programs: tuple[int, ...] = (), **arguments: Any) -> Launch:
        return Launch(next(getattr(m, kernel) for m in MODULES if hasattr(m, kernel)), programs, arguments)

    def program(self, num_threads: int, regions: Sequence[Any], names: Sequence[str]) -> CUDAProgram:
        return CUDAProgram(call for _, calls in regions for call in calls)
