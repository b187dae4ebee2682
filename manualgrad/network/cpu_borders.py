"""Outputs of a convolution with the border of zeros that the next one needs, so that no image is copied."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from manualgrad.network.cpu_conv_block import ConvBlock
from manualgrad.network.cpu_conv_pool_block import ConvReLUPoolBlock
from manualgrad.network.device import Block


def share_borders(blocks: Sequence[Block]) -> None:
    """Let each block that can do so write its output with the border of the block behind it."""
    for before, after in pairwise(blocks):
        if (
            isinstance(before, ConvBlock)
            and isinstance(after, ConvReLUPoolBlock)
            and before.can_have_border
            and after.takes_border
        ):
            before.out = before.out._replace(border=after.padding)
            after.has_border_in_x = True
