"""The modules that a plan can stand for, and the layer that each of them is.

``register`` adds a class. A plan computes what the class computed when it was registered; ``guards.py`` notices a
subclass, a patched ``forward`` and a changed attribute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn as torch_nn

from manualgrad import nn
from manualgrad.network.layers import Conv, Dense, Flatten, MaxPool, Pair, ReLU, UnfusedLayer


@dataclass(frozen=True)
class Kind:
    """A class of modules.

    Attributes:
        attributes: names of the attributes that decide what a module computes, besides its weight and bias.
        describe: returns the layer that a module is, or None if a plan knows none; None for a container of layers.
        has_parameters: True if a module has a weight and a bias.
        forward: the class's method when it was registered.
    """

    attributes: tuple[str, ...]
    describe: Callable[[Any], UnfusedLayer | None] | None
    has_parameters: bool
    forward: Callable[..., Any]


KINDS: dict[type[torch_nn.Module], Kind] = {}


def register(
    module_class: type[torch_nn.Module],
    describe: Callable[[Any], UnfusedLayer | None] | None,
    attributes: tuple[str, ...] = (),
    *,
    has_parameters: bool = False,
) -> None:
    """Let plans stand for modules of exactly this class; see :class:`Kind`."""
    KINDS[module_class] = Kind(attributes, describe, has_parameters, module_class.forward)


CONV_ATTRIBUTES = ("stride", "padding", "dilation", "groups")
POOL_ATTRIBUTES = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")


def describe_conv(module: Any) -> Conv:
    """The convolution of a module with the attributes of ``nn.Conv2d``, which may have ours too."""
    out_channels, in_channels, *kernel_size = module.weight.shape
    options = module.stride, module.padding, module.dilation, module.groups, getattr(module, "padding_mode", "zeros")
    return Conv(
        out_channels, in_channels, (kernel_size[0], kernel_size[1]), *options, getattr(module, "flip_kernel", False)
    )


def describe_pool(module: Any) -> MaxPool:
    """The pooling of a module with the attributes of ``nn.MaxPool2d``."""
    stride = module.kernel_size if module.stride is None else module.stride
    sizes = _as_pair(module.kernel_size), _as_pair(stride), _as_pair(module.padding), _as_pair(module.dilation)
    return MaxPool(*sizes, bool(module.ceil_mode), bool(module.return_indices))


def describe_dense(module: Any) -> Dense:
    """The dense layer of a module with a weight (out_features, in_features)."""
    return Dense(*module.weight.shape)


def _describe_conv_relu_pool(module: nn.ConvReLUMaxPool2d) -> Conv:
    conv, pool = describe_conv(module), MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False, False)
    return Conv(**{**vars(conv), "subgradient": module.subgradient, "pool": pool})


def _as_pair(size: int | Pair) -> Pair:
    return (size, size) if isinstance(size, int) else size


OUR_CONV = (*CONV_ATTRIBUTES, "flip_kernel")
register(nn.ConvReLUMaxPool2d, _describe_conv_relu_pool, (*OUR_CONV, "subgradient"), has_parameters=True)
register(nn.Conv2d, describe_conv, OUR_CONV, has_parameters=True)
register(nn.MaxPool2d, describe_pool, POOL_ATTRIBUTES)
register(nn.ReLU, lambda module: ReLU(module.subgradient), ("subgradient",))
register(nn.Flatten, lambda _: Flatten(channel_major=False))
register(nn.Dense, describe_dense, has_parameters=True)
register(torch_nn.Sequential, None)
