"""A dense layer on CUDA: its buffers and launches.

A dense layer with ReLU stores z; the layer behind it applies R as it reads. ``cuda_head.py`` has the last layers.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from manualgrad.network.cuda_launches import Launch, N
from manualgrad.network.cuda_reduce import reduce_call
from manualgrad.network.cuda_tiles import Tiles, padded
from manualgrad.network.device import Activation, BlockBuffers, Split, Unsupported
from manualgrad.network.layers import Dense

MAX_GRAD_PROGRAMS = 1024  # of a weight gradient: more parts than that need too much memory


class DenseBlock:
    """D, or R∘D, of which z is the output in memory."""

    is_view, multiplications, partial_sums = False, 0, 0
    forward_flags = pack_flags = unpack_flags = 0

    def __init__(self, device: Any, layer: Dense, x: Activation) -> None:
        self.in_features, self.out_features = math.prod(x.shape), layer.out_features
        if not x.is_flat or self.in_features != layer.in_features:
            raise Unsupported(f"a dense layer of {layer.in_features} features does not fit the layer before it")
        self._call = device.call
        self.batch_size: int = device.batch_size
        self.tiles: Tiles = device.tiles
        self.subgradient = layer.subgradient
        self.x_subgradient: float | None = None  # R'(0) of the dense layer before this one, whose z is the input
        self.parameter_shapes: list[tuple[int, ...]] = [
            (layer.out_features, layer.in_features), (layer.out_features,)
        ]  # fmt: skip
        self.out = Activation((layer.out_features,), is_flat=True)
        self.is_last = self.is_hidden_of_head = self.is_last_of_head = False

    def saved_buffers(self) -> dict[str, int]:
        return {}

    def packed_buffers(self, split: Split | None = None) -> dict[str, int]:
        if not self.is_hidden_of_head:
            return {}
        return {"z_parts": 4 * self.tiles.dense[2] * self.batch_size * self.out_features}

    def scratch_buffers(self, split: Split, needs_grad_x: bool) -> dict[str, int]:
        if self._num_parts == 1:
            return {}
        return {"dense_parts": 4 * self._num_parts * (self.in_features + 1) * self.out_features}

    @property
    def _grad_tile(self) -> tuple[int, int]:
        rows = padded(self.out_features, 32)
        return rows, padded(self.in_features, 128 if rows == 16 else 64)

    @property
    def _grad_tiles(self) -> int:
        rows, columns = self._grad_tile
        return -(-self.out_features // rows) * -(-self.in_features // columns)

    @property
    def _num_parts(self) -> int:
        """Parts of the weight gradient."""
        return max(1, min(self.tiles.dense_parts, MAX_GRAD_PROGRAMS // self._grad_tiles))

    def pack_for_forward(self, at: BlockBuffers) -> list[Launch]:
        return []

    pack_for_backward = pack_for_forward

    def forward(self, at: BlockBuffers) -> list[Launch]:
        if self.is_last_of_head:
            return []
        rows, columns, parts = self.tiles.dense
        if not self.is_hidden_of_head:
            parts = 1
        call = self._call(
            "dense_forward", (-(-self.batch_size // rows), -(-self.out_features // columns), parts),
            out=at.own("z_parts") if self.is_hidden_of_head else at.out, x=at.x, weight=at.own("w"),
            bias=at.own("b"), N=N, IN=self.in_features, OUT=self.out_features,
            RELU_X=self.x_subgradient is not None, HAS_BIAS=not self.is_hidden_of_head, PARTS=parts, BM=rows,
            BN=columns, BK=16, PRECISION="tf32x3", num_warps=4, num_stages=3,
        )  # fmt: skip
        return [call]  # eq. (16), (17)

    def backward(self, at: BlockBuffers) -> list[Launch]:
        grad_weight = self._grad_weight(at)  # eq. (18), (21); it may update the weight, so it is the last
        if not at.grad_x or self.is_hidden_of_head or self.is_last_of_head:
            return [grad_weight]
        return [self.grad_input(at), grad_weight]

    def grad_input(self, at: BlockBuffers) -> Launch:
        rows, columns, _ = self.tiles.dense
        launch: Launch = self._call(
            "dense_grad_input", (-(-self.batch_size // rows), -(-self.in_features // columns)), grad_x=at.grad_x,
            grad_out=at.grad_out, weight=at.own("w"), z=at.x, N=N, IN=self.in_features, OUT=self.out_features,
            HAS_RELU=self.x_subgradient is not None, SUBGRADIENT=self.x_subgradient or 0.0, BM=rows, BN=columns,
            BK=16, PRECISION="tf32x3", num_warps=4, num_stages=3,
        )  # fmt: skip
        return launch  # eq. (20)

    def _grad_weight(self, at: BlockBuffers) -> Launch:
        prefix, parts = "last" if self.is_last else "dense", self._num_parts
        rows, columns = self._grad_tile
        programs = self._grad_tiles * parts
        grad_weight = "dense_grad_weight_" if prefix == "dense" else "last_grad_weight"
        tensors = {grad_weight: at.own("dw"), f"{prefix}_grad_bias": at.own("db"), f"{prefix}_weight": at.own("w"),
                   f"{prefix}_bias": at.own("b"), f"{prefix}_grad_out": at.grad_out, f"{prefix}_x": at.x}  # fmt: skip
        if parts > 1:
            tensors[f"{prefix}_parts"] = at.own("dense_parts")
        sizes = {"PROGRAMS": programs, "IN": self.in_features, "OUT": self.out_features,
                 "RELU_X": self.x_subgradient is not None, "BO": rows, "BI": columns}  # fmt: skip
        constants = {f"{prefix.upper()}_{name}": value for name, value in sizes.items()}
        launch: Launch = self._call(
            "backward", (programs,), **tensors, **constants, N=N, DENSE_PARTS=parts, BB=16, UPDATE=False,
            DENSE_PRECISION="ieee", num_warps=4, num_stages=2,
        )  # fmt: skip
        return launch

    def parameter_grads(self, at: BlockBuffers) -> list[Launch]:
        if self._num_parts == 1:
            return []
        size = (self.in_features + 1) * self.out_features
        return [
            reduce_call(self._call, self.tiles, at, "dense_parts", size, PARTS=self._num_parts,
                        ROWS=self.in_features, COLUMNS=self.out_features, C_IN=0, FLIP=False)
        ]  # fmt: skip

    def unpack_grads(self, at: BlockBuffers) -> list[Any]:
        return []

    def input_layouts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("a network begins with a convolution")
