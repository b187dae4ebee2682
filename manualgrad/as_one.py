"""When the layers of a DocumentCNN may run as one program of kernels: when they are as they were made, and nobody
listens to what goes on between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from manualgrad.functions.precision import autocast_is_on
from manualgrad.kernels.network import Network, Plan, plan_for
from manualgrad.kernels.plain import is_served
from manualgrad.nn import ConvReLUMaxPool2d, Dense, Flatten, ReLU

if TYPE_CHECKING:
    from manualgrad.models import DocumentCNN

Parts = tuple[Plan, list[Tensor]]


def plan_of(model: DocumentCNN, x: Tensor) -> Parts | None:
    """The program for ``x`` (B, C, H, W), and the weights and biases that it takes, layer for layer; None where the
    layers have to run one by one.

    That is: other tensors than plain float32 ones on the CPU, another shape, a stride, a layer that was replaced or
    changed, or no kernels."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.dim() != 4:
        return None
    described = _described(model, x)
    if described is None:
        return None
    network, parameters = described
    if not is_served(x, *parameters) or not all(t.is_contiguous() and not t.is_neg() for t in parameters):
        return None
    plan = plan_for(network, x.shape[0])
    return None if plan is None else (plan, parameters)


def nobody_listens(model: DocumentCNN) -> bool:
    """Whether no layer has a hook, and no hook is there for all modules."""
    return not nn.modules.module._has_any_global_hook() and not any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in model._modules.values()
    )


def is_differentiated_as_one(x: Tensor, parameters: list[Tensor]) -> bool:
    """Whether nothing is asked for but every parameter's gradient, or no gradient at all; and in one way."""
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active() or autocast_is_on(x):
        return False
    return not torch.is_grad_enabled() or (not x.requires_grad and all(p.requires_grad for p in parameters))


def _described(model: DocumentCNN, x: Tensor) -> tuple[Network, list[Tensor]] | None:
    """What the layers are, and their weights and biases; None where they are not C∘P∘R, F, D, R, D in this order."""
    layers = list(model._modules.values())
    stages, image, half = model.stages, tuple(x.shape[1:]), model.subgradient
    kinds = [ConvReLUMaxPool2d] * stages + [Flatten, Dense] + [ReLU, Dense] * ((len(layers) - stages - 2) // 2)
    if list(map(type, layers)) != kinds or any("forward" in layer.__dict__ for layer in layers):
        return None
    parameters: list[Tensor] = []
    convolutions, dense, flips = [], [], set()
    for layer in layers:
        if type(layer) is ReLU:
            if layer.subgradient != half:
                return None
        elif type(layer) is not Flatten:
            weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
            if weight is None or bias is None or bias.shape != weight.shape[:1]:
                return None
            parameters += [weight, bias]
            if type(layer) is Dense:
                dense.append(weight.shape)
            elif _is_plain(layer) and layer.subgradient == half:
                convolutions.append(weight.shape)
                flips.add(bool(layer.flip_kernel))
            else:
                return None
    if len(flips) != 1 or not _fit(image, convolutions, dense):
        return None
    shapes = tuple((k, p, q) for k, _, p, q in convolutions)
    return Network(image, shapes, tuple(j for j, _ in dense), flips.pop(), float(half)), parameters


def _is_plain(layer: ConvReLUMaxPool2d) -> bool:
    return (layer.stride, layer.padding, layer.dilation, layer.groups) == ((1, 1), (0, 0), (1, 1), 1)


def _fit(image: tuple[int, ...], convolutions: list[torch.Size], dense: list[torch.Size]) -> bool:
    """Whether each layer takes what comes out of the one before."""
    channels, rows, columns = image
    for shape in convolutions:
        if len(shape) != 4 or shape[1] != channels:
            return False
        channels, rows, columns = shape[0], (rows - shape[2] + 1) // 2, (columns - shape[3] + 1) // 2
        if rows < 1 or columns < 1:
            return False
    features = channels * rows * columns
    for shape in dense:
        if len(shape) != 2 or shape[1] != features:
            return False
        features = shape[0]
    return True
