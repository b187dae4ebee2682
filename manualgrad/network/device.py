"""A device as the planner sees it: the blocks that compute layers there, and their kernel calls.

A block is one layer of a network on a device. It declares the buffers that it needs and its kernel calls: forward,
backward and for the gradients of its parameters. ``cpu_blocks.py`` has those of the CPU. A layer that gets a kernel
needs a block that accepts it, and no change in the planner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from manualgrad.cpu.signature import BufferRef
from manualgrad.network.layers import Layer


class Unsupported(Exception):
    """No kernel of the device computes the layer; the message says why."""


class Activation(NamedTuple):
    """Tensor between two layers, of one image.

    Attributes:
        shape: (H, W, C) as it lies in memory, or (features,).
        channel_major: True if the next layer's weight counts the numbers in (C, H, W) order all the same.
        border: rows and columns of zeros around the image in memory: top, bottom, left and right.
    """

    shape: tuple[int, ...]
    is_flat: bool = False
    channel_major: bool = False
    border: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def memory_shape(self) -> tuple[int, ...]:
        """Shape with the border."""
        if not any(self.border):
            return self.shape
        (height, width, channels), (top, bottom, left, right) = self.shape, self.border
        return top + height + bottom, left + width + right, channels


class Split(NamedTuple):
    """Division of the work.

    Attributes:
        num_threads: tasks of a region that works on weights.
        num_tasks, images_per_task: tasks of a region that works on images.
    """

    num_threads: int
    num_tasks: int
    images_per_task: int


@dataclass(frozen=True)
class BlockBuffers:
    """Buffers of one block.

    Attributes:
        number: the block's place in the list.
        x, x_backward: its input, as forward and as backward read it.
        out, grad_out: its output, and the gradient of that, which backward may overwrite.
        grad_x: the gradient of its input; None if nothing needs it.
        nonfinite: one float for each task with partial sums, ``pack_flags`` for each thread, and ``unpack_flags`` for
            each thread, which become NaN if a skipped product could hide a NaN.
        nonfinite_forward: the same, ``forward_flags`` for each thread.
    """

    number: int
    split: Split
    x: BufferRef
    x_backward: BufferRef
    out: BufferRef
    grad_out: BufferRef
    grad_x: BufferRef | None
    nonfinite: BufferRef
    nonfinite_forward: BufferRef

    def own(self, name: str) -> BufferRef:
        """The block's buffer ``name``: a declared one, or "w", "b", "dw" or "db" of its parameters."""
        return BufferRef(f"{name}{self.number}")


class Block(Protocol):
    """One layer on a device.

    Attributes:
        parameter_shapes: shapes of weight and bias; empty without parameters.
        out: its output. A view has the memory of its input, and neither buffers nor calls.
        multiplications: those of forward, for the whole batch.
        partial_sums: floats of parameter gradients that each task has of its own.
        forward_flags, pack_flags: floats that each thread writes when it packs the weight for forward and backward.
        unpack_flags: floats that each thread writes when it unpacks the gradient of the weight.
    """

    parameter_shapes: list[tuple[int, ...]]
    out: Activation
    is_view: bool
    multiplications: int
    partial_sums: int
    forward_flags: int
    pack_flags: int
    unpack_flags: int

    def saved_buffers(self) -> dict[str, int]:
        """Bytes of what backward needs from forward, besides the output."""
        ...

    def packed_buffers(self, split: Split) -> dict[str, int]:
        """Bytes of what ``pack_for_forward`` writes."""
        ...

    def scratch_buffers(self, split: Split, needs_grad_x: bool) -> dict[str, int]:
        """Bytes of what ``pack_for_backward`` and backward write, besides gradients of input and parameters."""
        ...

    def pack_for_forward(self, at: BlockBuffers) -> list[Any]:
        """Calls that pack the weight for forward."""
        ...

    def pack_for_backward(self, at: BlockBuffers) -> list[Any]:
        """Calls that pack the weight for backward."""
        ...

    def forward(self, at: BlockBuffers) -> list[Any]:
        """Calls that write the output."""
        ...

    def backward(self, at: BlockBuffers) -> list[Any]:
        """Calls that write the gradient of the input, if it is needed, and partial sums of the parameters'."""
        ...

    def parameter_grads(self, at: BlockBuffers) -> list[Any]:
        """Calls that write the gradients of the parameters, or add up their partial sums."""
        ...

    def unpack_grads(self, at: BlockBuffers) -> list[Any]:
        """Calls after all of those, which bring packed gradients into the layout of the parameters."""
        ...

    def input_layouts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x``, the network's input (N, C_in, H, W), in the layouts that forward and backward read."""
        ...


class Loss(Protocol):
    """Softmax cross-entropy of the logits on a device."""

    def before(self, split: Split) -> list[Any]:
        """Calls before forward, such as those that write the targets."""
        ...

    def losses(self, split: Split) -> list[Any]:
        """Calls after forward that write each loss and the gradient of the logits."""
        ...

    def after(self) -> list[Any]:
        """Calls at the end that write the mean loss."""
        ...


class Device(Protocol):
    """A device: its blocks, its kernel calls and its programs."""

    def block(self, layer: Layer, x: Activation, batch_size: int) -> Block:
        """Return the block for ``layer`` on inputs ``x``; raise Unsupported if no kernel computes it."""
        ...

    def loss(self, classes: int, batch_size: int) -> Loss:
        """Return softmax cross-entropy of logits (N, classes)."""
        ...

    def split(self, batch_size: int, threads: int, multiplications: int, partial_sums: int) -> Split:
        """Divide the batch among tasks and threads."""
        ...

    def call(self, kernel: str, /, **arguments: Any) -> Any:
        """A call of ``kernel`` for a program."""
        ...

    def program(self, num_threads: int, regions: Sequence[Any], names: Sequence[str]) -> Any:
        """A program of ``regions``, pairs of a number of tasks and kernel calls, for buffers of these names."""
        ...
