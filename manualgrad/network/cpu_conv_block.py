"""A convolution of any stride, padding and dilation, then ReLU and a pooling if there are any, as a block of the CPU.

    z = C(x, w) + b, y = R(z), out = P(y)   ``conv2d``, ``relu_forward``, ``max_pool2d_forward``
    δ = P⁻¹(grad_out) R'(z)                 ``max_pool2d_backward``, ``relu_backward``
    grad_x, Δw, Δb from δ                   ``conv2d`` again, ``conv2d_grad_weight``

``conv2d`` itself applies R if R'(0) = 0: then y tells R'(z) as well as z does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manualgrad.cpu.conv2d_calls import Call, GridCalls, ResultStrides, WeightOrder, WindowSplit
from manualgrad.cpu.conv2d_grids import forward_grid, grad_input_grids
from manualgrad.cpu.conv_pool import to_contiguous
from manualgrad.cpu.conv_pool_sizes import split_work
from manualgrad.cpu.max_pool2d import source_tables
from manualgrad.cpu.signature import BufferRef, KernelCall
from manualgrad.network.cpu_images import clear, clear_border, copy_images
from manualgrad.network.device import Activation, BlockBuffers, Split
from manualgrad.network.layers import Conv
from manualgrad.ops.conv2d_geometry import Conv2dGeometry
from manualgrad.ops.max_pool2d_geometry import MaxPool2dGeometry


class ConvBlock:
    """C, R∘C, P∘C or P∘R∘C."""

    is_view, partial_sums = False, 0

    def __init__(
        self, call: Call, lanes: int, layer: Conv, geometry: Conv2dGeometry, pooling: MaxPool2dGeometry | None,
        x: Activation, batch_size: int,
    ) -> None:  # fmt: skip
        self._call, self.batch_size, self.subgradient = call, batch_size, layer.subgradient
        self.in_size, self.pooling = x.shape, pooling
        self._tables = [source_tables(pooling, n) for n in range(2)] if pooling else []  # calls have their addresses
        channels, (height, width) = layer.in_channels, geometry.input_size
        shape = layer.out_channels, channels, *layer.kernel_size
        self.parameter_shapes: list[tuple[int, ...]] = [shape, (layer.out_channels,)]
        self.conv_size = (*geometry.windows.output_size(height, width), layer.out_channels)
        out_size = pooling.output_size if pooling else self.conv_size[:2]
        self.out = Activation((*out_size, layer.out_channels))
        self.multiplications = batch_size * math.prod(self.conv_size) * math.prod(shape[1:])

        strides = tuple(math.prod(shape[n + 1 :]) for n in range(4))
        grid, kw_bytes, self.margin = forward_grid((batch_size, channels, height, width), strides, geometry)
        positions = math.prod(layer.kernel_size)
        order = WeightOrder(0, 4 * strides[0], kw_bytes, 4 * strides[1], positions)
        self.calls = GridCalls(lanes, grid, order, 1, layer.out_channels)
        self.copies_x = any(self.margin) or self.calls.grid.slack > 0

        (s1, s2), pixel = geometry.windows.stride, 4 * channels
        grids = grad_input_grids((batch_size, layer.out_channels, *self.conv_size[:2]), strides, geometry)
        order = WeightOrder(0, 4 * strides[1], 0, 4 * strides[0], positions)
        self.backward_calls = [GridCalls(lanes, grid, order, 1, channels) for _, _, grid in grids]
        self.backward_offsets = [(i * width + j) * pixel for i, j, _ in grids]
        self.backward_strides = ResultStrides(height * width * pixel, s1 * width * pixel, s2 * pixel)
        self.is_partial = len(grids) < min(s1, height) * min(s2, width)  # pixels that no window has
        # flags of the weights and sums that are not multiplied with all zeros outside the image
        self.forward_flags, self.pack_flags = int(grid.has_border), len(grids)
        self.unpack_flags = int(grid.can_leave_out_pixels)

    # ------------------------------------------------------------------------------------------- memory

    @property
    def _conv_numel(self) -> int:
        return self.batch_size * math.prod(self.conv_size)

    @property
    def can_have_border(self) -> bool:
        """True if the output could have a border of zeros in memory."""
        return self.subgradient == 0 and not self.pooling

    @property
    def _has_border(self) -> bool:
        return any(self.out.border)

    @property
    def _has_separate_relu(self) -> bool:
        return bool(self.subgradient)

    def _own_outputs(self) -> tuple[dict[str, int], dict[str, int]]:
        """Outputs of single layers that backward needs, and the others."""
        z = {"z": 4 * self._conv_numel} if self._has_separate_relu else {}
        y = {"y": 4 * self._conv_numel} if self.pooling else {}
        return (z | y, {}) if self.subgradient == 0 else (z, y)

    def saved_buffers(self) -> dict[str, int]:
        buffers = self._own_outputs()[0]
        if self.copies_x:
            height, width, channels = self.in_size
            buffers["x_copy"] = 4 * (self.batch_size * height * (width + sum(self.margin)) * channels)
            buffers["x_copy"] += 4 * self.calls.grid.slack
        if self.pooling:
            buffers["pool_index"] = self.batch_size * math.prod(self.out.shape)
        return buffers

    def packed_buffers(self, split: Split) -> dict[str, int]:
        chunk = self._chunk(self.calls, split)
        return self._own_outputs()[1] | {
            "packed": self.calls.packed_bytes,
            "pack_scratch": split.num_threads * self.calls.scratch_bytes,
            "flags": 4 * split.num_threads,  # of a weight that is multiplied with all of them
            "table": split.num_tasks * self.calls.table_bytes(chunk),
            "sums": split.num_tasks * self.calls.panel_bytes(chunk),
        }

    def scratch_buffers(self, split: Split, needs_grad_x: bool) -> dict[str, int]:
        chunk = self._grad_chunk
        buffers = {
            "lists": split.num_threads * self.calls.lists_bytes(chunk),
            "unpack_scratch": split.num_threads * self.calls.scratch_bytes,
            "unpack_flags": 4 * split.num_threads,
            "sums_weight": self.calls.units * self.calls.unit_bytes,
            "grads": split.num_threads * self.calls.panel_bytes(chunk),
        }
        if self.pooling:
            buffers["grad_y"] = 4 * self._conv_numel
        if self._has_border:
            buffers["grad_z"] = 4 * self._conv_numel
        if needs_grad_x:
            offsets = self._input_offsets(split)[-1]
            buffers |= dict(zip(("packed_input", "table_input", "sums_input", "scratch_input"), offsets, strict=True))
        return buffers

    def _input_offsets(self, split: Split) -> list[tuple[int, int, int, int]]:
        """Offsets of each grid's packed weight, tables, sums and scratch memory, and the end of the last.

        Tasks compute different grids at the same time, so each grid has memory of its own."""
        offsets = [(0, 0, 0, 0)]
        for calls in self.backward_calls:
            chunk, (packed, table, sums, scratch) = self._chunk(calls, split), offsets[-1]
            table += split.num_tasks * calls.table_bytes(chunk)
            sums += split.num_tasks * calls.panel_bytes(chunk)
            scratch += split.num_threads * calls.scratch_bytes
            offsets.append((packed + calls.packed_bytes, table, sums, scratch))
        return offsets

    def _chunk(self, calls: GridCalls, split: Split) -> int:
        return calls.grid.chunk(calls.lanes, max(1, self._windows_per_task(calls, split)))

    def _windows_per_task(self, calls: GridCalls, split: Split) -> int:
        return split.images_per_task * calls.grid.rows * calls.grid.columns

    @property
    def _grad_chunk(self) -> int:
        return self.calls.grid.grad_weight_chunk(self.calls.lanes)

    # ------------------------------------------------------------------------------------------- weights

    def pack_for_forward(self, at: BlockBuffers) -> list[KernelCall]:
        call = self.calls.pack(
            self._call, split_work(self.calls.panels, at.split.num_threads)[1], weight=at.own("w"), bias=at.own("b"),
            packed=at.own("packed"), nonfinite=at.nonfinite_forward if self.forward_flags else at.own("flags"),
            scratch=at.own("pack_scratch"),
        )  # fmt: skip
        return [call]

    def pack_for_backward(self, at: BlockBuffers) -> list[KernelCall]:
        if not at.grad_x:
            return []
        threads, packs = at.split.num_threads, []
        for n, (calls, (packed, _, _, scratch)) in enumerate(
            zip(self.backward_calls, self._input_offsets(at.split), strict=False)
        ):
            pack = calls.pack(
                self._call, split_work(calls.panels, threads)[1], weight=at.own("w"), bias=None,
                packed=at.own("packed_input") + packed, nonfinite=at.nonfinite + 4 * n * threads,
                scratch=at.own("scratch_input") + scratch,
            )  # fmt: skip
            packs.append(pack)
        return packs

    # --------------------------------------------------------------------------------- forward, backward

    def forward(self, at: BlockBuffers) -> list[KernelCall]:
        calls, x = list[KernelCall](), self._x(at)
        if self.copies_x:
            border = 0, 0, *self.margin
            calls.append(copy_images(self._call, at.x, x, self._images(at), *2 * (self._in_size,), border=border))
        y = at.own("y") if self.pooling else at.out
        z = at.own("z") if self._has_separate_relu else y
        inside, strides = self._result_places
        if self._has_border:
            calls.append(clear_border(self._call, at.out, self._images(at), self.conv_size, self.out.border))
        conv = self.calls.conv2d(
            self._call, self._split(self.calls, at.split), self._chunk(self.calls, at.split),
            strides, x=x, packed=at.own("packed"), out=z + inside,
            table=at.own("table"), sums=at.own("sums"), has_relu=self.subgradient == 0,
        )  # fmt: skip
        calls.append(conv)  # eq. (17)
        if self._has_separate_relu:
            calls.append(self._call("relu_forward", z=z, out=y, **self._numels(at.split)))
        if self.pooling:
            calls.append(self._pool("max_pool2d_forward", at, 0, x=y, out=at.out))
        return calls  # eq. (16)

    @property
    def _result_places(self) -> tuple[int, ResultStrides]:
        """Bytes from the beginning of the output to its first pixel that is no border, and its strides."""
        (height, width, channels), (top, _, left, _) = self.out.memory_shape, self.out.border
        if self.pooling:
            height, width = self.conv_size[:2]
        pixel = 4 * channels
        return (top * width + left) * pixel, ResultStrides(height * width * pixel, width * pixel, pixel)

    def _images(self, at: BlockBuffers) -> tuple[int, int]:
        return self.batch_size, at.split.images_per_task

    @property
    def _in_size(self) -> tuple[int, int, int]:
        height, width, channels = self.in_size
        return height, width, channels

    def _x(self, at: BlockBuffers) -> BufferRef:
        return at.own("x_copy") if self.copies_x else at.x

    def _split(self, calls: GridCalls, split: Split) -> WindowSplit:
        """Each task computes all panels of its images."""
        return WindowSplit(max(1, self._windows_per_task(calls, split)), split.num_tasks, calls.panels)

    def _numels(self, split: Split) -> dict[str, int]:
        return {"numel": self._conv_numel, "share": split.images_per_task * math.prod(self.conv_size)}

    def _pool(self, kernel: str, at: BlockBuffers, table: int, **images: BufferRef) -> KernelCall:
        assert self.pooling is not None
        rows, columns = self._tables[table]
        (height, width), (out_height, out_width) = self.pooling.input_size, self.pooling.output_size
        target_height = height if table else out_height
        return self._call(
            kernel, pool_index=at.own("pool_index"), row_sources=rows.data_ptr(), column_sources=columns.data_ptr(),
            target_rows=self.batch_size * target_height, share=at.split.images_per_task * target_height,
            height=height, width=width, out_height=out_height, out_width=out_width, channels=self.conv_size[2],
            **images,
        )  # fmt: skip

    def backward(self, at: BlockBuffers) -> list[KernelCall]:
        calls, grad_z = list[KernelCall](), self._grad_z(at)
        if self.pooling:
            calls.append(self._pool("max_pool2d_backward", at, 1, grad_out=at.grad_out, grad_x=grad_z))
        if self._has_border:
            calls.append(self._relu_backward_inside(at))
        elif self.subgradient is not None:
            y = at.own("y") if self.pooling else at.out
            relu = self._call(
                "relu_backward", grad_out=grad_z, z=at.own("z") if self._has_separate_relu else y, grad_z=grad_z,
                has_subgradient=self.subgradient != 0, subgradient=float(self.subgradient), **self._numels(at.split),
            )  # fmt: skip
            calls.append(relu)
        if not at.grad_x:
            return calls
        if self.is_partial:
            calls.append(clear(self._call, at.grad_x, self._images(at), self._in_size))
        places = zip(self.backward_calls, self.backward_offsets, self._input_offsets(at.split), strict=False)
        for grid_calls, offset, (packed, table, sums, _) in places:
            conv = grid_calls.conv2d(
                self._call, self._split(grid_calls, at.split), self._chunk(grid_calls, at.split),
                self.backward_strides, x=grad_z, packed=at.own("packed_input") + packed, out=at.grad_x + offset,
                table=at.own("table_input") + table, sums=at.own("sums_input") + sums,
            )  # fmt: skip
            calls.append(conv)
        return calls  # eq. (20)

    def _grad_z(self, at: BlockBuffers) -> BufferRef:
        if self._has_border:
            return at.own("grad_z")
        return at.own("grad_y") if self.pooling else at.grad_out

    def _relu_backward_inside(self, at: BlockBuffers) -> KernelCall:
        """Compute the gradient of z without the border that its result and the gradient of that have."""
        height, width, channels = self.conv_size
        inside, strides = self._result_places
        images, share = self._images(at)
        return self._call(
            "relu_backward_inside", grad_out=at.grad_out + inside, out=at.out + inside, grad_z=self._grad_z(at),
            images=images, share=share, rows=height, row_numel=width * channels,
            image_bytes=strides.out_image_bytes, row_bytes=strides.out_row_bytes,
        )  # fmt: skip

    def parameter_grads(self, at: BlockBuffers) -> list[KernelCall]:
        grad_z, threads = self._grad_z(at), at.split.num_threads
        weight = self.calls.grad_weight(
            self._call, split_work(self.calls.units, threads)[1], self._grad_chunk, x=self._x(at), grad_out=grad_z,
            lists=at.own("lists"), sums=at.own("sums_weight"), packed_grads=at.own("grads"),
            lists_zeros=not self.unpack_flags, grad_bias=at.own("db"),
        )  # fmt: skip
        return [weight]  # eq. (18), (21)

    def unpack_grads(self, at: BlockBuffers) -> list[KernelCall]:
        threads = at.split.num_threads
        flags = at.nonfinite + 4 * threads * (self.pack_flags if at.grad_x else 0)
        unpack = self.calls.unpack(
            self._call, split_work(self.calls.panels, threads)[1], sums=at.own("sums_weight"),
            grad_weight=at.own("dw"), scratch=at.own("unpack_scratch"),
            nonfinite=flags if self.unpack_flags else at.own("unpack_flags"),
        )  # fmt: skip
        return [unpack]

    def input_layouts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = to_contiguous(x, torch.channels_last)
        return x, x
