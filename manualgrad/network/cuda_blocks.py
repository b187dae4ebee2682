"""Blocks on CUDA: the launches of a convolution with ReLU and pooling, of F, of a dense layer, and of the end.

A dense layer with ReLU stores z; the layer behind it applies R as it reads. ``cuda_head.py`` has the last layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from manualgrad.cpu.signature import BufferRef
from manualgrad.cuda.kernels import network_backward, network_col2im, network_forward, network_head, network_reduce
from manualgrad.network.cuda_launches import CUDAProgram, Launch
from manualgrad.network.cuda_tiles import Tiles, padded, tiles_for
from manualgrad.network.device import Activation, BlockBuffers, Split, Unsupported
from manualgrad.network.flatten_block import FlattenBlock
from manualgrad.network.layers import Conv, Dense, Flatten, Layer, MaxPool

POOL = MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False, False)
MODULES = (network_forward, network_head, network_backward, network_col2im, network_reduce)
N = BufferRef("N")  # the number of images


class CUDADevice:
    """Triton's kernels for one batch size."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.tiles = batch_size, tiles_for(batch_size)

    def block(self, layer: Layer, x: Activation, batch_size: int) -> Any:
        if isinstance(layer, Conv):
            return ConvReLUPoolBlock(self, layer, x)
        return FlattenBlock(layer, x) if isinstance(layer, Flatten) else DenseBlock(self, layer, x)

    def loss(self, classes: int, batch_size: int) -> Any:
        return None  # cuda_head.py

    def split(self, batch_size: int, threads: int, multiplications: int, partial_sums: int) -> Split:
        return Split(1, 1, batch_size)

    def call(self, kernel: str, /, programs: tuple[int, ...] = (), **arguments: Any) -> Launch:
        return Launch(next(getattr(m, kernel) for m in MODULES if hasattr(m, kernel)), programs, arguments)

    def program(self, num_threads: int, regions: Sequence[Any], names: Sequence[str]) -> CUDAProgram:
        return CUDAProgram(call for _, calls in regions for call in calls)


class ConvReLUPoolBlock:
    """P∘R∘C with stride 1, no padding and windows of 2×2."""

    is_view, multiplications, partial_sums = False, 0, 0

    def __init__(self, device: CUDADevice, layer: Conv, x: Activation) -> None:
        _check_conv(layer, x)
        self.layer, self._call, self.batch_size, self.tiles = layer, device.call, device.batch_size, device.tiles
        self.subgradient = layer.subgradient or 0.0
        self.height, self.width, self.channels = x.shape
        kernel_height, kernel_width = layer.kernel_size
        self.z_size = self.height - kernel_height + 1, self.width - kernel_width + 1
        self.parameter_shapes: list[tuple[int, ...]] = [
            (layer.out_channels, self.channels, kernel_height, kernel_width), (layer.out_channels,)
        ]  # fmt: skip
        self.out = Activation((self.z_size[0] // 2, self.z_size[1] // 2, layer.out_channels))
        self.rows = self.channels * kernel_height * kernel_width  # of the weight as a matrix of C_OUT columns
        self.next: ConvReLUPoolBlock | None = None  # the convolution behind this one
        self.is_first = False

    @property
    def uses_columns(self) -> bool:
        """True if one kernel computes the first convolution's weight gradient from the columns of the next one."""
        if not self.is_first or self.next is None:
            return False
        is_even = not any(size % 2 for size in self.z_size)  # no position of z lies outside of the pooling windows
        return (
            is_even and padded(self.rows + 1) <= 32 and padded(self.layer.out_channels) == 16
            and padded(math.prod(self.next.layer.kernel_size)) <= 32
        )  # fmt: skip

    def _sizes(self) -> dict[str, Any]:
        kernel_height, kernel_width = self.layer.kernel_size
        return {
            "H": self.height, "W": self.width, "C_IN": self.channels, "C_OUT": self.layer.out_channels,
            "KH": kernel_height, "KW": kernel_width,
        }  # fmt: skip

    # ------------------------------------------------------------------------------------------- memory

    def saved_buffers(self) -> dict[str, int]:
        return {"pool_index": self.batch_size * math.prod(self.out.shape)}

    def packed_buffers(self) -> dict[str, int]:
        return {} if self.is_first else {"packed": 4 * self.rows * self.layer.out_channels}

    def scratch_buffers(self, split: Split, needs_grad_x: bool) -> dict[str, int]:
        buffers = {"conv_parts": 4 * self._num_parts * (self.rows + 1) * self.layer.out_channels}
        columns = {"columns": 4 * self.batch_size * math.prod(self.z_size) * self.rows} if needs_grad_x else {}
        return buffers | columns

    @property
    def _num_parts(self) -> int:
        """Parts of the weight gradient."""
        if self.uses_columns:
            pieces = -(-math.prod(self.out.shape[:2]) // self.tiles.first_windows)
            return min(self.tiles.first_parts, self.batch_size * pieces)
        pieces = -(-math.prod(self.z_size) // self.tiles.positions)
        return min(self.tiles.grad_parts, self.batch_size * pieces)

    # ------------------------------------------------------------------------------------------ launches

    def pack_for_forward(self, at: BlockBuffers) -> list[Launch]:
        if self.is_first:
            return []
        call = self._call(
            "prepare", (-(-self.rows * self.layer.out_channels // 1024),), packed=at.own("packed"),
            weight=at.own("w"), C_OUT=self.layer.out_channels, C_IN=self.channels,
            TAPS=math.prod(self.layer.kernel_size), FLIP=self.layer.flip_kernel, N=N, BLOCK=1024,
        )  # fmt: skip
        return [call]

    pack_for_backward = pack_for_forward

    def forward(self, at: BlockBuffers) -> list[Launch]:
        t, is_first = self.tiles, self.is_first
        windows, channels = t.image_windows if is_first else t.windows, padded(self.layer.out_channels, 64)
        num_windows = self.batch_size * math.prod(self.out.shape[:2])
        programs = -(-num_windows // windows), -(-self.layer.out_channels // channels)
        call = self._call(
            "conv_relu_pool_forward", programs, out=at.out, pool_index=at.own("pool_index"), x=at.x,
            weight=at.own("w" if is_first else "packed"), bias=at.own("b"), N=N, **self._sizes(),
            FLIP=self.layer.flip_kernel, IS_IMAGE=is_first, WINDOWS=windows, BC=channels, BK=32 if is_first else 16,
            STAGES=1 if is_first else 3, PRECISION="ieee" if is_first else "tf32x3",
            num_warps=t.image_warps if is_first else t.conv_warps,
        )  # fmt: skip
        return [call]  # eq. (16), (17)

    def backward(self, at: BlockBuffers) -> list[Launch]:
        if self.uses_columns:
            assert self.next is not None
            return [self._first_grad_weight(at, self.next)]
        t, sizes = self.tiles, math.prod(self.z_size)
        channels = padded(self.layer.out_channels, 64)
        tiles = (self.rows + 64) // 64 * -(-self.layer.out_channels // channels)
        programs = {"CONV_PROGRAMS": tiles * self._num_parts}
        arguments: dict[str, Any] = {}
        if at.grad_x:
            positions = padded(sizes, 64)
            programs["COLUMN_PROGRAMS"] = self.batch_size * -(-sizes // positions) * t.columns[1]
            arguments = {"columns": at.own("columns"), "conv_packed": at.own("packed"), "COLUMN_BN": t.columns[0],
                         "COLUMN_PARTS": t.columns[1], "POSITIONS": positions}  # fmt: skip
        call = self._call(
            "backward", (sum(programs.values()),), **arguments, **programs, conv_parts=at.own("conv_parts"),
            conv_grad_out=at.grad_out, conv_pool_index=at.own("pool_index"), conv_x=at.x, N=N, **self._sizes(),
            SUBGRADIENT=self.subgradient, IS_IMAGE=self.is_first, CONV_PARTS=self._num_parts, BT=64, BC=channels,
            BP=t.positions, STAGES=1, CONV_PRECISION="tf32x3", num_warps=4, num_stages=2,
        )  # fmt: skip
        return [call]  # eq. (18), (20), (21)

    def grad_input(self, at: BlockBuffers, grad_x: BufferRef) -> Launch:
        """The sum of the columns, into ``grad_x``."""
        channels, positions = padded(self.channels, 64), 32
        programs = -(-self.batch_size * self.height * self.width // positions), -(-self.channels // channels)
        s = self._sizes()
        return self._call(
            "col2im", programs, grad_x=grad_x, columns=at.own("columns"), N=N, H=s["H"], W=s["W"], C=self.channels,
            KH=s["KH"], KW=s["KW"], BP=positions, BC=channels,
        )  # fmt: skip

    def _first_grad_weight(self, at: BlockBuffers, after: ConvReLUPoolBlock) -> Launch:
        next_height, next_width = after.layer.kernel_size
        return self._call(
            "first_grad_weight", (self._num_parts,), parts=at.own("conv_parts"),
            columns=BufferRef(f"columns{at.number + 1}"), pool_index=at.own("pool_index"), x=at.x, N=N,
            **self._sizes(), NEXT_KH=next_height, NEXT_KW=next_width, SUBGRADIENT=self.subgradient,
            PARTS=self._num_parts, ROWS=padded(self.rows + 1), BP=self.tiles.first_windows,
            BC=padded(self.layer.out_channels), TAPS=padded(next_height * next_width), PRECISION="ieee",
            num_warps=2, num_stages=2,
        )  # fmt: skip

    def parameter_grads(self, at: BlockBuffers) -> list[Launch]:
        size = (self.rows + 1) * self.layer.out_channels
        return [
            reduce_call(self._call, self.tiles, at, "conv_parts", size, PARTS=self._num_parts, ROWS=self.rows,
                        COLUMNS=self.layer.out_channels, C_IN=self.channels, FLIP=self.layer.flip_kernel)
        ]  # fmt: skip

    def input_layouts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        return x, x


def _check_conv(layer: Conv, x: Activation) -> None:
    """Raise Unsupported unless the kernels compute ``layer``."""
    if x.is_flat or len(x.shape) != 3 or x.shape[2] != layer.in_channels:
        raise Unsupported(f"a convolution of {layer.in_channels} channels does not fit the layer before it")
    if (layer.stride, layer.padding, layer.dilation, layer.groups) != ((1, 1), (0, 0), (1, 1), 1):
        raise Unsupported("no kernel computes a convolution with a stride, padding, dilation or groups")
    if layer.subgradient is None or layer.pool != POOL:
        raise Unsupported("no kernel computes a convolution that ReLU and 2x2 max pooling do not follow")
    if any((size - kernel + 1) // 2 < 1 for size, kernel in zip(x.shape, layer.kernel_size, strict=False)):
        raise Unsupported("the image is too small for the convolutions")


class DenseBlock:
    """D, or R∘D, of which z is the output in memory."""

    is_view, multiplications, partial_sums = False, 0, 0

    def __init__(self, device: CUDADevice, layer: Dense, x: Activation) -> None:
        self.in_features, self.out_features = math.prod(x.shape), layer.out_features
        if not x.is_flat or self.in_features != layer.in_features:
            raise Unsupported(f"a dense layer of {layer.in_features} features does not fit the layer before it")
        if x.channel_major and min(math.prod(x.shape[:-1]), x.shape[-1]) > 1:
            raise Unsupported("no kernel for CUDA computes a dense layer behind torch.nn.Flatten's order of channels")
        self._call, self.batch_size, self.tiles = device.call, device.batch_size, device.tiles
        self.subgradient = layer.subgradient
        self.x_subgradient: float | None = None  # R'(0) of the dense layer before this one, whose z is the input
        self.parameter_shapes: list[tuple[int, ...]] = [
            (layer.out_features, layer.in_features), (layer.out_features,)
        ]  # fmt: skip
        self.out = Activation((layer.out_features,), is_flat=True)
        self.is_last = self.is_hidden_of_head = self.is_last_of_head = False

    def saved_buffers(self) -> dict[str, int]:
        return {}

    def packed_buffers(self) -> dict[str, int]:
        if not self.is_hidden_of_head:
            return {}
        return {"z_parts": 4 * self.tiles.dense[2] * self.batch_size * self.out_features}

    def scratch_buffers(self, split: Split, needs_grad_x: bool) -> dict[str, int]:
        if self.tiles.dense_parts == 1:
            return {}
        return {"dense_parts": 4 * self.tiles.dense_parts * (self.in_features + 1) * self.out_features}

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
        rows, columns, _ = self.tiles.dense
        grad_x = self._call(
            "dense_grad_input", (-(-self.batch_size // rows), -(-self.in_features // columns)), grad_x=at.grad_x,
            grad_out=at.grad_out, weight=at.own("w"), z=at.x, N=N, IN=self.in_features, OUT=self.out_features,
            HAS_RELU=self.x_subgradient is not None, SUBGRADIENT=self.x_subgradient or 0.0, BM=rows, BN=columns,
            BK=16, PRECISION="tf32x3", num_warps=4, num_stages=3,
        )  # fmt: skip
        return [grad_x, grad_weight]  # eq. (20)

    def _grad_weight(self, at: BlockBuffers) -> Launch:
        prefix, parts = "last" if self.is_last else "dense", self.tiles.dense_parts
        rows = padded(self.out_features, 32)
        columns = padded(self.in_features, 128 if rows == 16 else 64)
        programs = -(-self.out_features // rows) * -(-self.in_features // columns) * parts
        grad_weight = "dense_grad_weight_" if prefix == "dense" else "last_grad_weight"
        tensors = {grad_weight: at.own("dw"), f"{prefix}_grad_bias": at.own("db"), f"{prefix}_weight": at.own("w"),
                   f"{prefix}_bias": at.own("b"), f"{prefix}_grad_out": at.grad_out, f"{prefix}_x": at.x}  # fmt: skip
        if parts > 1:
            tensors[f"{prefix}_parts"] = at.own("dense_parts")
        sizes = {"PROGRAMS": programs, "IN": self.in_features, "OUT": self.out_features,
                 "RELU_X": self.x_subgradient is not None, "BO": rows, "BI": columns}  # fmt: skip
        constants = {f"{prefix.upper()}_{name}": value for name, value in sizes.items()}
        return self._call(
            "backward", (programs,), **tensors, **constants, N=N, DENSE_PARTS=parts, BB=16, UPDATE=False,
            DENSE_PRECISION="ieee", num_warps=4, num_stages=2,
        )  # fmt: skip

    def parameter_grads(self, at: BlockBuffers) -> list[Launch]:
        if self.tiles.dense_parts == 1:
            return []
        size = (self.in_features + 1) * self.out_features
        return [
            reduce_call(self._call, self.tiles, at, "dense_parts", size, PARTS=self.tiles.dense_parts,
                        ROWS=self.in_features, COLUMNS=self.out_features, C_IN=0, FLIP=False)
        ]  # fmt: skip

    def input_layouts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("a network begins with a convolution")


def reduce_call(call: Any, tiles: Tiles, at: BlockBuffers, parts: str, size: int, **constants: Any) -> Launch:
    """The sum of a layer's partial gradients."""
    block, sums = tiles.reduce
    launch: Launch = call(
        "reduce", (-(-size // block),), parts=at.own(parts), grad_weight=at.own("dw"), grad_bias=at.own("db"),
        weight=at.own("w"), bias=at.own("b"), PROGRAMS=-(-size // block), UPDATE=False, BLOCK=block, BS=sums,
        num_warps=4, **constants,
    )  # fmt: skip
    return launch
