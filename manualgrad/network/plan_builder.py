r"""Buffers and kernel calls of a list of blocks: forward, loss, backward and update.

The calls stand in parallel regions. A region is split into tasks, which threads share. A task of the main region
takes some images through all blocks, so that a block's output is still in the cache when the next one reads it, and
then back from the last block to the first. The next region computes the gradients of the parameters, or adds up those
that the tasks have; the last stores those that are in an order of the kernels. ``cpu_blocks.py`` has the calls of
each block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from manualgrad.cpu.signature import BufferRef
from manualgrad.network.device import Activation, Block, BlockBuffers, Device, Unsupported
from manualgrad.network.layers import Conv, Dense, NetworkSpec

Region = tuple[int, list[Any]]  # a number of tasks, and the kernel calls of each


@dataclass(frozen=True)
class PixelFormat:
    """Layout and normalisation of a data set's uint8 images.

    Attributes:
        image_stride, row_stride: bytes from one image and from one row to the next.
        mean, std: the network's input is (pixel − mean) / std.
    """

    image_stride: int
    row_stride: int
    mean: float
    std: float


class PlanBuilder:
    """Buffers and kernel calls of one network on one device, for one batch size and one number of threads.

    Kernels refer to memory by name. For block n, "w{n}", "b{n}", "dw{n}" and "db{n}" are its parameters and their
    gradients, "out{n}" its output and "g{n}" the gradient of that. "x" is the network's input, and "x_backward" the
    input in the layout that backward reads. "z" and "g" are z^{L−1} and δ^{L−1}. The other names are those of the
    buffers, whose sizes in bytes ``*_buffers`` return: ``saved`` from forward to backward, ``packed`` weights for
    forward, ``scratch`` of backward, and ``loss``.

    Raises:
        Unsupported: the device has no kernel for one of the layers.
    """

    def __init__(self, device: Device, network: NetworkSpec, batch_size: int, threads: int) -> None:
        self.network, self.batch_size, self._call = network, batch_size, device.call
        if not isinstance(network.layers[0], Conv):
            raise Unsupported("the first layer is no convolution")
        channels, height, width = network.image_shape
        x, self.blocks = Activation((height, width, channels)), list[Block]()
        for layer in network.layers:
            self.blocks.append(device.block(layer, x, batch_size))
            x = self.blocks[-1].out
        if not isinstance(network.layers[-1], Dense) or network.layers[-1].subgradient is not None:
            raise Unsupported("the last layer is no dense layer, or ReLU follows it")
        multiplications = sum(block.multiplications for block in self.blocks)
        partial_sums = sum(block.partial_sums for block in self.blocks)
        self.split = device.split(batch_size, threads, multiplications, partial_sums)
        self.loss = device.loss(network.classes, batch_size)
        self.places = self._places()

    def _places(self) -> list[BlockBuffers]:
        """The buffers of each block. The output of a view is its input."""
        places: list[BlockBuffers] = []
        x, x_backward, grad_x = BufferRef("x"), BufferRef("x_backward"), None
        flags, forward_flags = 0, sum(map(self._num_flags, range(len(self.blocks))))
        for n, block in enumerate(self.blocks):
            is_last = n == len(self.blocks) - 1
            out = x if block.is_view else BufferRef("z" if is_last else f"out{n}")
            grad_out = grad_x if block.is_view and grad_x else BufferRef("g" if is_last else f"g{n}")
            nonfinite = [BufferRef("nonfinite", 4 * first) for first in (flags, forward_flags)]
            places.append(BlockBuffers(n, self.split, x, x_backward, out, grad_out, grad_x, *nonfinite))
            flags += self._num_flags(n)
            forward_flags += self.split.num_threads * block.forward_flags
            x, x_backward, grad_x = out, out, grad_out
        self.nonfinite_numel = forward_flags
        self.backward_flags, self.forward_flags = slice(0, flags), slice(flags, forward_flags)
        return places

    def _num_flags(self, n: int) -> int:
        """Floats of "nonfinite" that backward writes for block n; the first one's input needs no gradient."""
        block, threads = self.blocks[n], self.split.num_threads
        of_packing = threads * block.pack_flags if n else 0
        return self.split.num_tasks * bool(block.partial_sums) + of_packing + threads * block.unpack_flags

    @property
    def parameter_names(self) -> list[str]:
        """Names of weight and bias of each block in turn."""
        return [f"{name}{n}" for n, block in enumerate(self.blocks) if block.parameter_shapes for name in ("w", "b")]

    @property
    def parameter_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of weight and bias of each block in turn."""
        return [shape for block in self.blocks for shape in block.parameter_shapes]

    # ------------------------------------------------------------------------------------------- memory

    def saved_buffers(self) -> dict[str, int]:
        """Bytes of what backward needs from forward: outputs of blocks, and buffers of their own."""
        outs = {f"out{n}": nbytes for n, nbytes in self._inner_outputs().items()}
        return outs | self._numbered([block.saved_buffers() for block in self.blocks])

    def packed_buffers(self) -> dict[str, int]:
        """Bytes of the packed weights that forward reads, and of the flags."""
        packed = self._numbered([block.packed_buffers(self.split) for block in self.blocks])
        return packed | {"nonfinite": 4 * self.nonfinite_numel}

    def scratch_buffers(self) -> dict[str, int]:
        """Bytes of what backward writes besides gradients of parameters."""
        grads = {f"g{n}": nbytes for n, nbytes in self._inner_outputs().items()}
        own = [
            block.scratch_buffers(self.split, at.grad_x is not None)
            for block, at in zip(self.blocks, self.places, strict=True)
        ]
        return {"nonfinite": 4 * self.nonfinite_numel, **self._numbered(own), **grads}

    def loss_buffers(self) -> dict[str, int]:
        """Bytes of the logits, the targets, the gradient of the logits, and the losses."""
        numel = self.batch_size * self.network.classes
        return {"z": 4 * numel, "targets": 4 * numel, "g": 4 * numel, "losses": 4 * self.batch_size}

    def _inner_outputs(self) -> dict[int, int]:
        """Bytes of the output of each block but the last that is no view, by its number."""
        inner = enumerate(self.blocks[:-1])
        return {n: 4 * self.batch_size * math.prod(block.out.memory_shape) for n, block in inner if not block.is_view}

    def _numbered(self, buffers: list[dict[str, int]]) -> dict[str, int]:
        return {f"{name}{n}": nbytes for n, own in enumerate(buffers) for name, nbytes in own.items()}

    # ------------------------------------------------------------------------------------------ regions

    def forward_regions(self) -> list[Region]:
        """From x^0 to z^{L−1}."""
        return [
            (self.split.num_threads, self._calls("pack_for_forward")),
            (self.split.num_tasks, self._calls("forward")),
        ]

    def backward_regions(self) -> list[Region]:
        """From δ^{L−1} to all Δw and Δb."""
        return [
            (self.split.num_threads, self._calls("pack_for_backward")),
            (self.split.num_tasks, self._calls("backward", is_reversed=True)),
            (self.split.num_threads, self._calls("parameter_grads")),
            (self.split.num_threads, self._calls("unpack_grads")),
        ]

    def loss_and_grads_regions(self) -> list[Region]:
        """From x^0 and labels to the loss and all Δw and Δb."""
        (threads, pack), (tasks, forward) = self.forward_regions()
        (_, pack_again), (_, backward), (_, grads), unpack = self.backward_regions()
        return [
            (threads, [*pack, *pack_again, *self.loss.before(self.split)]),
            (tasks, [*forward, *self.loss.losses(self.split), *backward]),
            (threads, [*grads, *self.loss.after()]),
            unpack,
        ]

    def descent_regions(self, pixels: PixelFormat) -> list[Region]:
        """From uint8 images, the indices of a batch and its labels to w − η ∂J/∂w of all parameters."""
        before, (tasks, all_blocks), (threads, after), unpack = self.loss_and_grads_regions()
        _, height, width = self.network.image_shape
        gather = self._call(
            "gather_images", images=BufferRef("images"), indices=BufferRef("indices"), x=BufferRef("x"),
            batch_size=self.batch_size, share=self.split.images_per_task, height=height, width=width,
            image_stride=pixels.image_stride, row_stride=pixels.row_stride, mean=pixels.mean, std=pixels.std,
        )  # fmt: skip
        top1 = self._call(
            "top1_stats", probs=BufferRef("probabilities"), labels=BufferRef("labels"),
            label_probs=BufferRef("label_probs"), num_correct=BufferRef("num_correct"), rows=self.batch_size,
            classes=self.network.classes,
        )  # fmt: skip
        return [before, (tasks, [gather, *all_blocks]), (threads, [*after, top1]), unpack, self.update_region()]

    def update_region(self) -> Region:
        """w − η ∂J/∂w of all parameters, unless a label is no class or a gradient or the loss is not finite."""
        calls = []
        for name, shape in zip(self.parameter_names, self.parameter_shapes, strict=True):
            numel = math.prod(shape)
            update = self._call(
                "sgd_update", param=BufferRef(name), grad=BufferRef(f"d{name}"), numel=numel,
                share=-(-numel // self.split.num_threads), learning_rate=BufferRef("learning_rate"),
                counts=BufferRef("counts"), nonfinite=BufferRef("nonfinite"), nonfinite_numel=self.nonfinite_numel,
                loss=BufferRef("loss"),
            )  # fmt: skip
            calls.append(update)
        return self.split.num_threads, calls

    def _calls(self, method: str, *, is_reversed: bool = False) -> list[Any]:
        """The calls of one kind of all blocks, in their order or from the last to the first."""
        pairs = list(zip(self.blocks, self.places, strict=True))
        return [call for block, at in (pairs[::-1] if is_reversed else pairs) for call in getattr(block, method)(at)]
