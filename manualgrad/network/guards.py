"""When the layers of a DocumentCNN may run as one program of kernels: when they are as they were made, and nobody
listens to what goes on between them. Of the model it is asked for its layers, ``stages`` and ``subgradient``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from manualgrad.cpu.tensor_checks import in_plain_eager_mode
from manualgrad.network.plan import Network, Plan, plan_for
from manualgrad.nn import ConvReLUMaxPool2d, Dense, Flatten, ReLU
from manualgrad.ops.precision import autocast_is_on

MOST_FOUND = 256  # networks that are kept
_found: dict[tuple[Any, ...], Network | None] = {}
_UNKNOWN: Any = object()


def plan_of(model: nn.Module, x: Tensor) -> tuple[Plan, list[Tensor]] | None:
    """The program for ``x`` (B, C, H, W), and the weights and biases that it takes, layer for layer; None where the
    layers have to run one by one.

    That is: other tensors than plain float32 ones on the CPU, another shape, a stride, a layer that was replaced or
    changed, or no kernels."""
    if not isinstance(x, Tensor) or not in_plain_eager_mode() or x.dim() != 4:
        return None
    described = _described(model, x.shape[1:])
    if described is None:
        return None
    network, parameters = described
    plan = plan_for(network, x.shape[0])
    return (plan, parameters) if plan is not None and plan.takes(x, parameters) else None


def has_no_hooks(model: nn.Module) -> bool:
    """Whether no layer has a hook, and no hook is there for all modules."""
    return not nn.modules.module._has_any_global_hook() and not any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in model._modules.values()
    )


def wants_all_parameter_grads_or_none(x: Tensor, parameters: list[Tensor]) -> bool:
    """Whether nothing is asked for but every parameter's gradient, or no gradient at all; and in one way."""
    if forward_ad._current_level >= 0 or autocast_is_on(x):
        return False
    return not torch.is_grad_enabled() or (not x.requires_grad and all(p.requires_grad for p in parameters))


def _described(model: nn.Module, image: torch.Size) -> tuple[Network, list[Tensor]] | None:
    """What the layers are, and their weights and biases. All that it depends on is looked at each time, and what
    follows from that is kept."""
    parameters: list[Tensor] = []
    seen: list[Any] = [image, model.stages, model.subgradient]
    for layer in model._modules.values():
        kind = type(layer)
        if kind not in _NUMBERS or kind.forward is not _FORWARDS[kind] or "forward" in layer.__dict__:
            return None
        numbers = [layer.__dict__.get(name) for name in _NUMBERS[kind]]
        if not all(map(_is_exact, numbers)):
            return None
        seen += (kind, *numbers)
        if kind is ConvReLUMaxPool2d or kind is Dense:
            weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
            if weight is None or bias is None:
                return None
            parameters += (weight, bias)
            seen += (weight.shape, bias.shape)
    if nn.Module.__call__ is not _CALL or not _is_exact(model.subgradient):
        return None
    key = tuple(seen)
    network = _found.get(key, _UNKNOWN)
    if network is _UNKNOWN:
        if len(_found) >= MOST_FOUND:
            _found.clear()
        network = _found[key] = _network(model, image)
    return None if network is None else (network, parameters)


def guard_values(model: nn.Module) -> list[Any]:
    """All that a program depends on, as the very objects that the model holds: where they are the same, it still is
    what :func:`plan_of` made of them."""
    parts: list[Any] = [model.stages, model.subgradient, nn.Module.__call__]
    for layer in model._modules.values():
        if layer is None:
            continue
        kind, own = type(layer), layer.__dict__
        parts += (layer, kind, kind.forward, own.get("forward"), *[own.get(name) for name in _NUMBERS.get(kind, ())])
        if kind is ConvReLUMaxPool2d or kind is Dense:
            parts += layer._parameters.values()
    return parts


def _is_exact(number: object) -> bool:
    """Whether it equals nothing but what means the same, and is what a layer takes."""
    if type(number) is tuple:
        return all(type(one) is int for one in number)
    return type(number) in (bool, int, float)


# What a layer of each kind has besides its weight and bias; and what it does, unless somebody has changed that.
_NUMBERS: dict[type[nn.Module], tuple[str, ...]] = {
    ConvReLUMaxPool2d: ("stride", "padding", "dilation", "groups", "flip_kernel", "subgradient"),
    Flatten: (),
    Dense: (),
    ReLU: ("subgradient",),
}
_FORWARDS = {kind: kind.forward for kind in _NUMBERS}
_CALL = nn.Module.__call__


def _network(model: nn.Module, image: torch.Size) -> Network | None:
    """None where the layers are not C∘P∘R, F, D, R, D in this order, or one does not take what the one before it
    gives."""
    layers, stages, half = list(model._modules.values()), model.stages, model.subgradient
    convolutions, products = [c for c in layers if type(c) is ConvReLUMaxPool2d], layers[stages + 1 :: 2]
    kinds = [ConvReLUMaxPool2d] * stages + [Flatten, Dense] + [ReLU, Dense] * (len(products) - 1)
    flips = {layer.flip_kernel for layer in convolutions}
    if list(map(type, layers)) != kinds or not 0 <= half <= 1 or len(flips) != 1 or not flips <= {True, False}:
        return None
    if any(layer.subgradient != half for layer in layers if hasattr(layer, "subgradient")):
        return None
    channels, rows, columns = image
    for layer in convolutions:
        plain = layer.stride, layer.padding, layer.dilation, layer.groups
        k, r, p, q = layer.weight.shape if layer.weight.dim() == 4 else (0, 0, 0, 0)
        rows, columns = (rows - p + 1) // 2, (columns - q + 1) // 2
        if (
            plain != ((1, 1), (0, 0), (1, 1), 1)
            or r != channels
            or layer.bias.shape != (k,)
            or min(rows, columns) < 1
        ):
            return None
        channels = k
    features = channels * rows * columns
    for layer in products:
        if layer.weight.shape[1:] != (features,) or layer.bias.shape != layer.weight.shape[:1]:
            return None
        features = len(layer.weight)
    shapes = tuple((layer.weight.shape[0], *layer.weight.shape[2:]) for layer in convolutions)
    dense = tuple(len(layer.weight) for layer in products)
    return Network(tuple(image), shapes, dense, bool(flips.pop()), float(half))
