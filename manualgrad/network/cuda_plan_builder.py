"""The planner's walk over a list of blocks, as launches on CUDA: forward, loss, backward and update."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from manualgrad.cpu.signature import BufferRef
from manualgrad.cuda.launch import MAX_GRID
from manualgrad.network.cuda_blocks import CUDADevice
from manualgrad.network.cuda_conv_block import ConvBlock
from manualgrad.network.cuda_dense_block import DenseBlock
from manualgrad.network.cuda_head import IGNORE_INDEX, make_head
from manualgrad.network.cuda_launches import Launch, N
from manualgrad.network.cuda_tiles import Tiles
from manualgrad.network.device import Unsupported
from manualgrad.network.layers import NetworkSpec
from manualgrad.network.plan_builder import PlanBuilder, Region

MAX_NUMEL = 2**31 - 2**16  # kernels have 32-bit offsets, and round numbers of rows up


class CUDAPlanBuilder(PlanBuilder):
    """Buffers and launches of one network for one batch size. Each region is a list of launches, in order.

    Names are those of :class:`PlanBuilder`, where "out{n}" of a dense layer with ReLU is its z, and "probs",
    "losses", "num_labels" and "factor" belong to the loss.

    Raises:
        Unsupported: the device has no kernel for one of the layers, a tensor is too large for 32-bit offsets, or a
            launch has too many programs.
    """

    def __init__(self, network: NetworkSpec, batch_size: int, tiles: Tiles | None = None) -> None:
        self.device = CUDADevice(batch_size, tiles)
        super().__init__(self.device, network, batch_size, threads=1)
        self._connect()
        self.head = make_head(self.device, self.places, self.blocks)
        self._check_sizes()
        self._check_grids()

    def _check_sizes(self) -> None:
        sizes = self.saved_buffers() | self.packed_buffers() | self.scratch_buffers()
        sizes["x"] = 4 * self.batch_size * math.prod(self.network.image_shape)
        sizes |= {name: 4 * math.prod(s) for name, s in zip(self.parameter_names, self.parameter_shapes, strict=True)}
        name = max(sizes, key=lambda name: sizes[name])
        if sizes[name] // 4 >= MAX_NUMEL:
            raise Unsupported(
                f"the kernels for CUDA have 32-bit offsets, too few for {self.batch_size} images ({name})"
            )

    def _check_grids(self) -> None:
        regions = self.forward_regions() + self.backward_regions() + self.loss_and_grads_regions()
        for launch in (call for _, calls in regions for call in calls):
            if max(launch.programs[1:], default=0) > MAX_GRID:
                raise Unsupported(
                    f"a layer is too large for a launch of {launch.kernel.fn.__name__}, of "
                    f"{' x '.join(map(str, launch.programs))} programs"
                )

    def _connect(self) -> None:
        """Tell each block what it has to know of its neighbours."""
        convs = [block for block in self.blocks if isinstance(block, ConvBlock)]
        convs[0].is_first = True
        for block, following in pairwise(convs):
            block.next = following
            following.stores_columns = block.uses_columns
        for before, after in pairwise(self.blocks):
            if isinstance(before, ConvBlock):
                before.is_channel_major = after.out.channel_major
            elif isinstance(before, DenseBlock) and isinstance(after, DenseBlock):
                after.x_subgradient = before.subgradient

    def loss_buffers(self) -> dict[str, int]:
        """Bytes of the buffers of the loss."""
        numel = self.batch_size * self.network.classes
        return {"z": 4 * numel, "g": 4 * numel, "losses": 4 * self.batch_size, "num_labels": 4}

    def forward_regions(self) -> list[Region]:
        """From x^0 to z^{L−1}."""
        return [(1, [*self._calls("pack_for_forward"), *self._calls("forward"), *self.head.forward()])]

    def backward_regions(self) -> list[Region]:
        """From δ^{L−1} to all Δw and Δb."""
        return [(1, [*self._calls("pack_for_backward"), *self.head.backward(), *self._backward_calls()])]

    def loss_and_grads_regions(self) -> list[Region]:
        """From x^0 and labels to the loss and all Δw and Δb."""
        call = self.device.call
        pack = self._calls("pack_for_forward")
        first = pack.pop(0) if pack else call("prepare", (1,), BLOCK=1024, N=N)
        count = {"labels": BufferRef("labels"), "num_labels": BufferRef("num_labels"), "HAS_LABELS": True,
                 "IGNORE_INDEX": IGNORE_INDEX}  # fmt: skip
        first = replace(first, arguments={**first.arguments, **count})
        loss = call(
            "reduce", (1,), losses=BufferRef("losses"), num_labels=BufferRef("num_labels"), loss=BufferRef("loss"),
            N=N, LOSS_PROGRAMS=1,
        )  # fmt: skip
        return [(1, [first, *pack, *self._calls("forward"), *self.head.loss(), *self._backward_calls(), loss])]

    def step_calls(self, **constants: bool) -> list[Launch]:
        """The launches of :meth:`loss_and_grads_regions`, where ``constants`` replace those that a kernel has.

        UPDATE adds Δw and Δb to the parameters; with FACTOR_IN_MEMORY the factor is a tensor."""
        calls = [call for _, calls in self.loss_and_grads_regions() for call in calls]
        return [
            replace(call, arguments={**call.arguments, **{k: v for k, v in constants.items() if k in call.arguments}})
            for call in calls
        ]

    def first_grad_call(self) -> Launch | None:
        """The launch that computes the gradient of the first pooled output, if backward does not store it."""
        first, at = self.blocks[0], self.places[1]
        return (
            first.next.grad_input(at) if isinstance(first, ConvBlock) and first.uses_columns and first.next else None
        )

    def _backward_calls(self) -> list[Launch]:
        """From the last block to the first; then the sums of partial gradients."""
        calls = [
            call
            for block, at in zip(self.blocks[::-1], self.places[::-1], strict=True)
            for call in block.backward(at)
        ]
        return calls + self._calls("parameter_grads")
