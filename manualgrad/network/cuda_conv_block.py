"""A convolution on CUDA, with ReLU and 2×2 pooling where they follow it: its buffers and launches.

``cuda_pooled_conv_block.py`` has those with other poolings.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from manualgrad.cpu.signature import BufferRef
from manualgrad.network.cuda_launches import Launch, N
from manualgrad.network.cuda_reduce import reduce_call
from manualgrad.network.cuda_tiles import Tiles, padded
from manualgrad.network.device import Activation, BlockBuffers, Split, Unsupported
from manualgrad.network.layers import Conv
from manualgrad.ops import checks
from manualgrad.ops.conv2d_geometry import as_padding
from manualgrad.ops.windows import Windows

MAX_COLUMN_POSITIONS = 1024  # of z in an image; columns of larger images would take too much memory
MAX_GRAD_PROGRAMS = 2048  # of a weight gradient: more parts than that need too much memory


class ConvBlock:
    """C, R∘C, P∘C or P∘R∘C with windows of 2×2; without pooling the kernels' windows are 1×1."""

    is_view, multiplications, partial_sums = False, 0, 0
    forward_flags = pack_flags = unpack_flags = 0
    index_name = "pool_index"  # the buffer of what backward has to know of pooling and ReLU

    def __init__(self, device: Any, layer: Conv, x: Activation) -> None:
        self.windows = _check_conv(layer, x)
        self.layer, self._call, self._tiles_for = layer, device.call, device.tiles_for
        self.batch_size: int = device.batch_size
        self.pool = 1 if layer.pool is None else 2
        self.height, self.width, self.channels = x.shape
        self.z_size = self.windows.output_size(self.height, self.width)
        if min(self.z_size) < self.pool:
            raise Unsupported("the image is too small for the convolutions")
        self.parameter_shapes: list[tuple[int, ...]] = [
            (layer.out_channels, self.channels, *layer.kernel_size), (layer.out_channels,)
        ]  # fmt: skip
        self.conv_out = self.z_size[0] // self.pool, self.z_size[1] // self.pool, layer.out_channels
        self.out = Activation(self.conv_out)
        self.rows = self.channels * math.prod(layer.kernel_size)  # of the weight as a matrix of C_OUT columns
        self.is_first = False
        self.is_channel_major = False  # in memory the output is (N, C, H, W), for torch.nn.Flatten
        self.next: ConvBlock | None = None  # the convolution behind this one
        self.stores_columns = False  # for the weight gradient of the first convolution

    @property
    def tiles(self) -> Tiles:
        """The tiles of ``DocumentCNN()`` for as many positions of z; an image of its layers has 576 and 64."""
        tiles: Tiles = self._tiles_for(self.batch_size * math.prod(self.z_size) // (576 if self.is_first else 64))
        return tiles

    @property
    def uses_columns(self) -> bool:
        """True if one kernel computes the first convolution's weight gradient from the columns of the next one."""
        if not self.is_first or self.next is None:
            return False
        is_even = not any(size % 2 for size in self.z_size)  # no position of z lies outside of the pooling windows
        are_plain = all(b.windows == Windows(b.windows.kernel_size) for b in (self, self.next))
        return (
            self.pool == 2 and is_even and are_plain and math.prod(self.next.z_size) <= MAX_COLUMN_POSITIONS
            and padded(self.rows + 1) <= 32 and padded(self.layer.out_channels) == 16
            and padded(math.prod(self.next.layer.kernel_size)) <= 32
        )  # fmt: skip

    def _sizes(self) -> dict[str, Any]:
        """Sizes of the convolution and of its windows, as the kernels call them."""
        windows = self.windows
        top, _, left, _ = windows.padding
        return {
            "H": self.height, "W": self.width, "C_IN": self.channels, "C_OUT": self.layer.out_channels,
            "KH": windows.kernel_size[0], "KW": windows.kernel_size[1], "Z_H": self.z_size[0],
            "Z_W": self.z_size[1], "STRIDE_H": windows.stride[0], "STRIDE_W": windows.stride[1], "TOP": top,
            "LEFT": left, "DILATION_H": windows.dilation[0], "DILATION_W": windows.dilation[1], "POOL": self.pool,
            "CHANNEL_MAJOR": self.is_channel_major,
        }  # fmt: skip

    @property
    def _subgradient(self) -> float:
        return self.layer.subgradient or 0.0

    # ------------------------------------------------------------------------------------------- memory

    def saved_buffers(self) -> dict[str, int]:
        return {self.index_name: self.batch_size * math.prod(self.conv_out)}

    def packed_buffers(self, split: Split | None = None) -> dict[str, int]:
        return {} if self.is_first else {"packed": 4 * self.rows * self.layer.out_channels}

    def scratch_buffers(self, split: Split, needs_grad_x: bool) -> dict[str, int]:
        buffers = {"conv_parts": 4 * self._num_parts * (self.rows + 1) * self.layer.out_channels}
        if self.stores_columns:
            buffers["columns"] = 4 * self.batch_size * math.prod(self.z_size) * self.rows
        return buffers

    @property
    def _grad_tiles(self) -> int:
        """Tiles of 64 rows of the weight gradient."""
        return (self.rows + 64) // 64 * -(-self.layer.out_channels // padded(self.layer.out_channels, 64))

    @property
    def _num_parts(self) -> int:
        """Parts of the weight gradient."""
        if self.uses_columns:
            pieces = -(-math.prod(self.conv_out[:2]) // self.tiles.first_windows)
            return min(self.tiles.first_parts, self.batch_size * pieces)
        pieces = -(-math.prod(self.z_size) // self.tiles.positions)
        return max(1, min(self.tiles.grad_parts, self.batch_size * pieces, MAX_GRAD_PROGRAMS // self._grad_tiles))

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
        t, is_first, places = self.tiles, self.is_first, self.pool**2
        rows, channels = 4 * (t.image_windows if is_first else t.windows), padded(self.layer.out_channels, 64)
        num_windows = self.batch_size * math.prod(self.conv_out[:2])
        programs = -(-num_windows * places // rows), -(-self.layer.out_channels // channels)
        is_small = is_first and self.rows <= 64  # multiply-adds are quicker than tensor cores then
        split = 1 if is_first else t.conv_split
        warps = max(t.image_warps if is_first else t.conv_warps, rows * channels // 2048) if split == 1 else split
        call = self._call(
            "conv_relu_pool_forward", programs, out=at.out, pool_index=at.own(self.index_name), x=at.x,
            weight=at.own("w" if is_first else "packed"), bias=at.own("b"), N=N, **self._sizes(),
            IS_PADDED=any(self.windows.padding), HAS_RELU=self.layer.subgradient is not None,
            FLIP=self.layer.flip_kernel, IS_IMAGE=is_first, WINDOWS=rows // places, BC=channels,
            BK=32 if is_small else 16, SPLIT=split, STAGES=1 if is_first else 3,
            PRECISION="ieee" if is_small else "tf32x3", num_warps=warps,
        )  # fmt: skip
        return [call]  # eq. (16), (17)

    def backward(self, at: BlockBuffers) -> list[Launch]:
        if self.uses_columns:
            assert self.next is not None
            return [self._first_grad_weight(at, self.next)]
        t, channels = self.tiles, padded(self.layer.out_channels, 64)
        programs = {"CONV_PROGRAMS": self._grad_tiles * self._num_parts}
        arguments: dict[str, Any] = {}
        if self.stores_columns:
            sizes = math.prod(self.z_size)
            positions = padded(sizes, 64)
            programs["COLUMN_PROGRAMS"] = self.batch_size * -(-sizes // positions) * t.columns[1]
            arguments = {"columns": at.own("columns"), "conv_packed": at.own("packed"), "COLUMN_BN": t.columns[0],
                         "COLUMN_PARTS": t.columns[1], "POSITIONS": positions}  # fmt: skip
        call = self._call(
            "backward", (sum(programs.values()),), **arguments, **programs, conv_parts=at.own("conv_parts"),
            conv_grad_out=at.grad_out, conv_pool_index=at.own(self.index_name), conv_x=at.x, N=N, **self._sizes(),
            IS_PADDED=any(self.windows.padding), SUBGRADIENT=self._subgradient, IS_IMAGE=self.is_first,
            CONV_PARTS=self._num_parts, BT=64, BC=channels, BP=t.positions, STAGES=1, CONV_PRECISION="tf32x3",
            num_warps=4, num_stages=2,
        )  # fmt: skip
        needs_grad_x = at.grad_x is not None and not self.stores_columns
        return [call, self.grad_input(at)] if needs_grad_x else [call]  # eq. (18), (20), (21)

    def grad_input(self, at: BlockBuffers) -> Launch:
        assert at.grad_x is not None
        pixels, channels = 4 * self.tiles.windows, padded(self.channels, 64)
        programs = -(-self.batch_size * self.height * self.width // pixels), -(-self.channels // channels)
        launch: Launch = self._call(
            "conv_grad_input", programs, grad_x=at.grad_x, grad_out=at.grad_out, pool_index=at.own(self.index_name),
            packed=at.own("packed"), N=N, **self._sizes(), SUBGRADIENT=self._subgradient, BP=pixels, BC=channels,
            BK=16, PRECISION="tf32x3", num_warps=self.tiles.conv_warps,
        )  # fmt: skip
        return launch

    def _first_grad_weight(self, at: BlockBuffers, after: ConvBlock) -> Launch:
        next_height, next_width = after.layer.kernel_size
        sizes, taps = self._sizes(), padded(next_height * next_width)
        launch: Launch = self._call(
            "first_grad_weight", (self._num_parts,), parts=at.own("conv_parts"),
            columns=BufferRef(f"columns{at.number + 1}"), pool_index=at.own(self.index_name), x=at.x, N=N,
            **{name: sizes[name] for name in ("H", "W", "C_IN", "C_OUT", "KH", "KW")}, NEXT_KH=next_height,
            NEXT_KW=next_width, SUBGRADIENT=self._subgradient, PARTS=self._num_parts, ROWS=padded(self.rows + 1),
            BP=self.tiles.first_windows, BC=padded(self.layer.out_channels), TAPS=taps,
            BT=min(taps, self.tiles.first_taps), PRECISION="ieee", num_warps=2, num_stages=2,
        )  # fmt: skip
        return launch

    def parameter_grads(self, at: BlockBuffers) -> list[Launch]:
        size = (self.rows + 1) * self.layer.out_channels
        return [
            reduce_call(self._call, self.tiles, at, "conv_parts", size, PARTS=self._num_parts, ROWS=self.rows,
                        COLUMNS=self.layer.out_channels, C_IN=self.channels, FLIP=self.layer.flip_kernel)
        ]  # fmt: skip

    def unpack_grads(self, at: BlockBuffers) -> list[Any]:
        return []

    def input_layouts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        return x, x


def _check_conv(layer: Conv, x: Activation) -> Windows:
    """The windows of the convolution on x; raise Unsupported unless the kernels compute it."""
    if x.is_flat or len(x.shape) != 3 or x.shape[2] != layer.in_channels * layer.groups:
        raise Unsupported(f"a convolution of {layer.in_channels} channels does not fit the layer before it")
    if layer.groups != 1:
        raise Unsupported("no kernel of a network computes a convolution with groups")
    try:
        stride = checks.as_pair("conv2d", "stride", layer.stride, minimum=1)
        dilation = checks.as_pair("conv2d", "dilation", layer.dilation, minimum=1)
        windows = Windows(layer.kernel_size, stride, dilation=dilation)
        windows = replace(windows, padding=as_padding(layer.padding, windows))
    except ValueError as error:  # the layer raises it
        raise Unsupported(str(error)) from error
    if any(windows.padding) and layer.padding_mode != "zeros":
        raise Unsupported(f"no kernel computes a padding of {layer.padding_mode}")
    return windows
