"""Conditions under which the layers of a DocumentCNN may run as one plan.

The plan computes what the layers compute as :class:`DocumentCNN` made them. A layer that was replaced, reconfigured,
patched or hooked since then is noticed here, and the model runs layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manualgrad._torch_compat import (
    child_modules,
    has_global_hooks,
    has_hooks,
    is_forward_mode_active,
    own_parameters,
)
from manualgrad.network.plan import Plan, get_plan
from manualgrad.network.plan_builder import NetworkSpec
from manualgrad.nn import ConvReLUMaxPool2d, Dense, Flatten, ReLU
from manualgrad.ops.differentiable import is_grad_recorded
from manualgrad.ops.precision import is_autocast_enabled
from manualgrad.tensor_checks import in_plain_eager_mode

if TYPE_CHECKING:
    from manualgrad.models import DocumentCNN

# Attributes of each layer class that decide what it computes, besides its weight and bias.
_CONFIG_ATTRIBUTES: dict[type[nn.Module], tuple[str, ...]] = {
    ConvReLUMaxPool2d: ("stride", "padding", "dilation", "groups", "flip_kernel", "subgradient"),
    Flatten: (),
    Dense: (),
    ReLU: ("subgradient",),
}
# The methods at import, to notice a class that is patched later.
_ORIGINAL_FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {kind: kind.forward for kind in _CONFIG_ATTRIBUTES}
_ORIGINAL_CALL = nn.Module.__call__

MAX_CACHED_NETWORKS = 256
_network_cache: dict[tuple[Any, ...], NetworkSpec | None] = {}
_NOT_CACHED: Any = object()


def find_plan(model: DocumentCNN, x: Tensor) -> tuple[Plan, list[Tensor]] | None:
    """The plan for ``x``, (N, C_in, H, W), with the weights and biases that it reads, in the order of the layers.

    None if the layers have to run one by one: x or a parameter is no plain float32 tensor on the CPU, a convolution
    has a stride, a layer was replaced or changed, or kernels are off.
    """
    if not isinstance(x, Tensor) or not in_plain_eager_mode() or x.dim() != 4:
        return None
    network_and_parameters = _describe(model, x.shape[1:])
    if network_and_parameters is None:
        return None
    network, parameters = network_and_parameters
    plan = get_plan(network, x.shape[0])
    return (plan, parameters) if plan is not None and plan.supports(x, parameters) else None


def has_no_hooks(model: nn.Module) -> bool:
    """Return True if no layer of ``model`` has a hook, and none is registered for all modules."""
    layers = child_modules(model).values()
    return not has_global_hooks() and not any(has_hooks(layer) for layer in layers if layer is not None)


def wants_all_parameter_grads_or_none(x: Tensor, parameters: list[Tensor]) -> bool:
    """Return True if reverse mode has to compute the gradient of every parameter and of nothing else, or no gradient.

    False in forward mode and under autocast.
    """
    if is_forward_mode_active() or is_autocast_enabled(x):
        return False
    return not is_grad_recorded() or (not x.requires_grad and all(p.requires_grad for p in parameters))


def guard_values(model: DocumentCNN) -> list[Any]:
    """The objects that the result of :func:`find_plan` depends on, for a comparison by identity.

    The result stays valid for as long as all of them are the same objects.
    """
    values: list[Any] = [model.num_conv_blocks, model.subgradient, nn.Module.__call__]
    for layer in child_modules(model).values():
        if layer is None:
            continue
        kind, attributes = type(layer), vars(layer)
        values += (layer, kind, kind.forward, attributes.get("forward"))
        values += [attributes.get(name) for name in _CONFIG_ATTRIBUTES.get(kind, ())]
        if kind is ConvReLUMaxPool2d or kind is Dense:
            values += own_parameters(layer).values()
    return values


def _describe(model: DocumentCNN, image_shape: torch.Size) -> tuple[NetworkSpec, list[Tensor]] | None:
    """The network that the layers make, and their weights and biases; None if they make no network of a plan.

    Everything that the network depends on is read at each call. It is the key under which the network is cached.
    """
    parameters: list[Tensor] = []
    key_parts: list[Any] = [image_shape, model.num_conv_blocks, model.subgradient]
    for layer in child_modules(model).values():
        if layer is None or type(layer) not in _CONFIG_ATTRIBUTES:
            return None
        kind, attributes = type(layer), vars(layer)
        if kind.forward is not _ORIGINAL_FORWARDS[kind] or "forward" in attributes:
            return None
        config = [attributes.get(name) for name in _CONFIG_ATTRIBUTES[kind]]
        if not all(map(_is_plain_constant, config)):
            return None
        key_parts += (kind, *config)
        if kind is ConvReLUMaxPool2d or kind is Dense:
            weight, bias = own_parameters(layer).get("weight"), own_parameters(layer).get("bias")
            if weight is None or bias is None:
                return None
            parameters += (weight, bias)
            key_parts += (weight.shape, bias.shape)
    if nn.Module.__call__ is not _ORIGINAL_CALL or not _is_plain_constant(model.subgradient):
        return None
    key = tuple(key_parts)
    network = _network_cache.get(key, _NOT_CACHED)
    if network is _NOT_CACHED:
        if len(_network_cache) >= MAX_CACHED_NETWORKS:
            _network_cache.clear()
        network = _network_cache[key] = _make_network_spec(model, image_shape)
    return None if network is None else (network, parameters)


def _is_plain_constant(value: object) -> bool:
    """Return True for a Python number or a tuple of ints, whose equality means the same computation.

    A tensor or an instance of a subclass could equal a number and behave differently.
    """
    if type(value) is tuple:
        return all(type(item) is int for item in value)
    return type(value) in (bool, int, float)


def _make_network_spec(model: DocumentCNN, image_shape: torch.Size) -> NetworkSpec | None:
    """None if the layers are not P∘R∘C, F, D, R, D in this order, or if a layer does not fit the one before it."""
    layers, num_convs, subgradient = list(child_modules(model).values()), model.num_conv_blocks, model.subgradient
    convs = [layer for layer in layers if type(layer) is ConvReLUMaxPool2d]
    dense_layers = [layer for layer in layers if type(layer) is Dense]
    kinds = [ConvReLUMaxPool2d] * num_convs + [Flatten, Dense] + [ReLU, Dense] * (len(dense_layers) - 1)
    if list(map(type, layers)) != kinds:
        return None
    flips = {conv.flip_kernel for conv in convs}
    if not 0 <= subgradient <= 1 or len(flips) != 1 or not flips <= {True, False}:
        return None
    if any(layer.subgradient != subgradient for layer in layers if isinstance(layer, (ConvReLUMaxPool2d, ReLU))):
        return None
    channels, height, width = image_shape
    for conv in convs:
        if conv.weight.dim() != 4:
            return None
        out_channels, in_channels, kernel_height, kernel_width = conv.weight.shape
        height, width = (height - kernel_height + 1) // 2, (width - kernel_width + 1) // 2
        options = conv.stride, conv.padding, conv.dilation, conv.groups
        if options != ((1, 1), (0, 0), (1, 1), 1) or in_channels != channels or min(height, width) < 1:
            return None
        if conv.bias is None or conv.bias.shape != (out_channels,):
            return None
        channels = out_channels
    features = channels * height * width
    for dense in dense_layers:
        if dense.bias is None or dense.bias.shape != dense.weight.shape[:1] or dense.weight.shape[1:] != (features,):
            return None
        features = len(dense.weight)
    conv_shapes = tuple((conv.weight.shape[0], *conv.weight.shape[2:]) for conv in convs)
    dense_features = tuple(len(dense.weight) for dense in dense_layers)
    return NetworkSpec(
        (image_shape[0], image_shape[1], image_shape[2]),
        conv_shapes,
        dense_features,
        bool(flips.pop()),
        float(subgradient),
    )
