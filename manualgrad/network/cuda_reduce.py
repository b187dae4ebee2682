"""The sum of a layer's partial gradients on CUDA."""

from __future__ import annotations

from typing import Any

from manualgrad.network.cuda_launches import Launch
from manualgrad.network.cuda_tiles import Tiles
from manualgrad.network.device import BlockBuffers


def reduce_call(call: Any, tiles: Tiles, at: BlockBuffers, parts: str, size: int, **constants: Any) -> Launch:
    """The sum of a layer's partial gradients."""
    block, sums = tiles.reduce
    launch: Launch = call(
        "reduce", (-(-size // block),), parts=at.own(parts), grad_weight=at.own("dw"), grad_bias=at.own("db"),
        weight=at.own("w"), bias=at.own("b"), PROGRAMS=-(-size // block), UPDATE=False, BLOCK=block, BS=sums,
        num_warps=4, **constants,
    )  # fmt: skip
    return launch
