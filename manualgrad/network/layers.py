"""Layers of a network as a plan sees them: what they compute, without modules, tensors or kernels.

A network is a list of layers. ``fuse`` puts a ReLU and a pooling into the layer before them, since kernels compute
these together. The blocks of a device (``cpu_blocks.py``) decide which layers have a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeGuard

Pair = tuple[int, int]


@dataclass(frozen=True)
class MaxPool:
    """Max pooling P of equation (4)."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool
    return_indices: bool


POOL = MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False, False)  # the formula sheet's


@dataclass(frozen=True)
class ReLU:
    """ReLU R of equation (9), with R'(0) = ``subgradient``."""

    subgradient: float


@dataclass(frozen=True)
class Conv:
    """Convolution C of equation (1), or a correlation, with a bias; then R, and then P, unless they are None."""

    out_channels: int
    in_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Pair | str
    dilation: Pair
    groups: int
    padding_mode: str
    flip_kernel: bool
    subgradient: float | None = None
    pool: MaxPool | None = None

    @property
    def is_conv_relu_pool(self) -> bool:
        """True for P∘R∘C with strides and dilation 1 and windows of 2×2."""
        return self.subgradient is not None and (self.stride, self.dilation, self.pool) == ((1, 1), (1, 1), POOL)


@dataclass(frozen=True)
class Flatten:
    """F of equation (5): (row, column, channel) order, or with ``channel_major`` PyTorch's (channel, row, column)."""

    channel_major: bool


@dataclass(frozen=True)
class Dense:
    """D of equation (6) with a bias; then R, unless ``subgradient`` is None."""

    out_features: int
    in_features: int
    subgradient: float | None = None


Layer = Conv | Flatten | Dense
UnfusedLayer = Layer | ReLU | MaxPool


@dataclass(frozen=True)
class NetworkSpec:
    """A network from images to logits.

    Attributes:
        image_shape: (C_in, H, W).
        layers: the last is a dense layer without ReLU.
    """

    image_shape: tuple[int, int, int]
    layers: tuple[Layer, ...]

    @cached_property
    def _hash(self) -> int:
        return hash((self.image_shape, self.layers))

    def __hash__(self) -> int:
        return self._hash  # every call looks its plan up

    @property
    def classes(self) -> int:
        """Number of logits: the output features of the last layer."""
        last = self.layers[-1]
        assert isinstance(last, Dense)
        return last.out_features

    @cached_property
    def subgradients(self) -> frozenset[float | None]:
        """R'(0) of all layers but the last; None for a layer without ReLU."""
        return frozenset(layer.subgradient for layer in self.layers[:-1] if not isinstance(layer, Flatten))

    @cached_property
    def is_fused(self) -> bool:
        """True if each convolution has stride 1 and no padding, with ReLU and 2×2 pooling behind it."""
        convs = [layer for layer in self.layers if isinstance(layer, Conv)]
        return all(conv.is_conv_relu_pool and conv.padding == (0, 0) for conv in convs)


def fuse(layers: list[UnfusedLayer]) -> list[Layer] | str:
    """Put each ReLU and pooling into the layer before it; or return why that cannot be done."""
    fused: list[Layer] = []
    for layer in layers:
        last = fused[-1] if fused else None
        if isinstance(layer, (Conv, Flatten, Dense)):
            fused.append(layer)
        elif isinstance(layer, ReLU) and _accepts_relu(last):
            fused[-1] = replace(last, subgradient=layer.subgradient)
        elif isinstance(layer, MaxPool) and isinstance(last, Conv) and last.pool is None:
            fused[-1] = replace(last, pool=layer)
        else:
            return f"no kernel computes {type(layer).__name__} after {type(last).__name__ if last else 'the input'}"
    return fused


def _accepts_relu(last: Layer | None) -> TypeGuard[Conv | Dense]:
    """Return True if a ReLU behind ``last`` becomes a part of it; behind a pooling it does not."""
    return isinstance(last, (Conv, Dense)) and last.subgradient is None and getattr(last, "pool", None) is None
