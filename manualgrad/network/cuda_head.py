"""The end of a network on CUDA: logits, loss, and the gradients that go back from there."""

from __future__ import annotations

from typing import Any

from manualgrad.cpu.signature import BufferRef
from manualgrad.network.cuda_blocks import CUDADevice
from manualgrad.network.cuda_dense_block import DenseBlock
from manualgrad.network.cuda_launches import Launch, N
from manualgrad.network.cuda_tiles import padded
from manualgrad.network.device import BlockBuffers, Unsupported

IGNORE_INDEX = -100  # the label of an image that does not count
MAX_CLASSES = 1024


def make_head(device: CUDADevice, places: list[BlockBuffers], blocks: list[Any]) -> FusedHead | UnfusedHead:
    """The head of a network with these blocks; tells the dense blocks that it computes what they leave out.

    Raises:
        Unsupported: there are too many classes."""
    hidden, last = blocks[-2], blocks[-1]
    last.is_last = True
    if last.out_features > MAX_CLASSES:
        raise Unsupported(f"no kernel for CUDA computes more than {MAX_CLASSES} classes")
    can_fuse = isinstance(hidden, DenseBlock) and hidden.subgradient is not None and hidden.x_subgradient is None
    if not can_fuse or hidden.out_features > 128 or last.out_features > 16:
        return UnfusedHead(device, last)
    hidden.is_hidden_of_head = last.is_last_of_head = True
    return FusedHead(device, hidden, last, places[-2], places[-1])


class FusedHead:
    """The last two dense layers, S and J in one kernel: up to 128 features and 16 classes."""

    def __init__(
        self, device: CUDADevice, hidden: DenseBlock, last: DenseBlock, at_hidden: BlockBuffers, at_last: BlockBuffers
    ) -> None:
        self._call, self.hidden, self.last, self.batch_size = device.call, hidden, last, device.batch_size
        self.at_hidden, self.at_last, self.tiles = at_hidden, at_last, device.tiles

    def _head(self, mode: str, **tensors: BufferRef) -> Launch:
        rows, columns, features = self.tiles.head
        has_one = mode == "logits" or not columns
        programs = -(-self.batch_size // rows), 1 if has_one else -(-self.hidden.in_features // columns)
        return self._call(
            "head", programs, z=self.at_hidden.out, weight=self.at_last.own("w"), **tensors, N=N,
            IN=self.hidden.in_features, HIDDEN=self.hidden.out_features, CLASSES=self.last.out_features,
            PARTS=self.tiles.dense[2], MODE=mode, SUBGRADIENT=float(self.hidden.subgradient or 0.0),
            IGNORE_INDEX=IGNORE_INDEX, FACTOR_IN_MEMORY=False, BM=rows, BN=columns,
            BH=padded(self.hidden.out_features, features), BC=padded(self.last.out_features), PRECISION="ieee",
            num_warps=4, num_stages=2,
        )  # fmt: skip

    def _forward_tensors(self) -> dict[str, BufferRef]:
        hidden, last = self.at_hidden, self.at_last
        return {"z_parts": hidden.own("z_parts"), "x_bias": hidden.own("b"), "bias": last.own("b")}

    def _grad_tensors(self) -> dict[str, BufferRef]:
        assert self.at_hidden.grad_x is not None
        return {"x_weight": self.at_hidden.own("w"), "grad_logits": self.at_last.grad_out,
                "grad_z": self.at_hidden.grad_out, "grad_x": self.at_hidden.grad_x}  # fmt: skip

    def forward(self) -> list[Launch]:
        """Launches that write the logits."""
        return [self._head("logits", logits=self.at_last.out, **self._forward_tensors())]  # eq. (16), (17)

    def loss(self) -> list[Launch]:
        """Launches that write losses, probabilities, and the gradients down to the last convolution."""
        tensors = {name: BufferRef(name) for name in ("labels", "num_labels", "factor", "probs", "losses")}
        tensors |= self._forward_tensors() | self._grad_tensors()
        return [self._head("loss", **tensors), *self._grad_input()]  # eq. (11) to (20)

    def backward(self) -> list[Launch]:
        """Launches that write those gradients from a gradient of the logits."""
        return [self._head("backward", **self._grad_tensors()), *self._grad_input()]  # eq. (20)

    def _grad_input(self) -> list[Launch]:
        """The launch for grad_x, if the tiles leave it out of ``head``."""
        return [] if self.tiles.head[1] else [self.hidden.grad_input(self.at_hidden)]


class UnfusedHead:
    """S and J of the logits; the dense blocks compute the rest."""

    def __init__(self, device: CUDADevice, last: DenseBlock) -> None:
        self._call, self.classes, self.batch_size = device.call, last.out_features, device.batch_size

    def forward(self) -> list[Launch]:
        """No launch: the dense blocks write the logits."""
        return []

    backward = forward

    def loss(self) -> list[Launch]:
        """Launch that writes losses, probabilities and the gradient of the logits."""
        classes = padded(self.classes)
        rows = max(1, 1024 // classes)
        call = self._call(
            "softmax_cross_entropy_rows", (-(-self.batch_size // rows),), logits=BufferRef("z"),
            labels=BufferRef("labels"), num_labels=BufferRef("num_labels"), factor=BufferRef("factor"),
            probs=BufferRef("probs"), losses=BufferRef("losses"), grad_logits=BufferRef("g"), N=N,
            CLASSES=self.classes, IGNORE_INDEX=IGNORE_INDEX, FACTOR_IN_MEMORY=False, BM=rows, BC=classes,
            num_warps=4,
        )  # fmt: skip
        return [call]  # eq. (11) to (15), (19)
