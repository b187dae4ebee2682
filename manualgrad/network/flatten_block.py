"""F as a block of any device: the next block reads the images' memory as it lies."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from manualgrad.network.device import Activation, BlockBuffers, Split, Unsupported
from manualgrad.network.layers import Flatten


class FlattenBlock:
    """F: a view of the images' memory."""

    is_view = True

    def __init__(self, layer: Flatten, x: Activation) -> None:
        if x.is_flat:
            raise Unsupported("a flattened image is flattened again")
        self.out = x._replace(is_flat=True, channel_major=layer.channel_major)
        self.parameter_shapes: list[tuple[int, ...]] = []
        self.multiplications = self.partial_sums = 0
        self.forward_flags = self.pack_flags = self.unpack_flags = 0

    def saved_buffers(self) -> dict[str, int]:
        return {}

    def packed_buffers(self, split: Split) -> dict[str, int]:
        return {}

    def scratch_buffers(self, split: Split, needs_grad_x: bool) -> dict[str, int]:
        return {}

    def no_calls(self, at: BlockBuffers) -> list[Any]:
        """A view takes no kernel call."""
        return []

    pack_for_forward = pack_for_backward = forward = backward = parameter_grads = unpack_grads = no_calls

    def input_layouts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("a network begins with a convolution")
