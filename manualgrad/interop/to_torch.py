"""``to_torch``: our layers become PyTorch's, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from manualgrad import nn as ours
from manualgrad.interop import layers
from manualgrad.interop.copies import copied
from manualgrad.interop.report import Left, Replaced, Report, name_of
from manualgrad.interop.tracing import traced_from
from manualgrad.models import DocumentCNN

OUR_OWN = ("flip_kernel", "subgradient")  # attributes that no native layer has
FLIPPED = "the kernel is flipped: weights and their gradients are mirrored"
NOTES = {
    ours.Flatten: "the document's order, (row, column, channel), by a permutation before it",
    DocumentCNN: "it gives the logits; cost and probabilities are gone",
}


def to_torch(
    module: nn.Module, *, copy_parameters: bool = True, any_subgradient: bool = False, report: bool = False
) -> Any:
    """A copy of ``module`` in which every layer of ours is PyTorch's: the inverse of :func:`from_torch`.

    After ``from_torch``, types, parameters, buffers and attributes are what they were. Layers with the document's
    conventions become native ones that compute the same: a convolution's kernel is flipped, :class:`Flatten` moves
    channels last before it flattens, :class:`ConvReLUMaxPool2d` becomes three layers, and :class:`DocumentCNN` an
    ``nn.Sequential`` that gives the logits, with the same names of parameters. A ReLU whose derivative at 0 is not 0
    has no native equal and stays, unless ``any_subgradient``.

    Args:
        module: any module; it is not changed.
        copy_parameters: True copies parameters; False shares the very same objects. Buffers are always copied.
        any_subgradient: every ReLU becomes ``nn.ReLU``, which differs at exactly 0.
        report: whether to return a :class:`~manualgrad.interop.report.Report` too.

    Returns:
        the copy, or (copy, report).

    Raises:
        TypeError: a ``module`` that is none.
        ValueError: a kernel to be flipped that is shared, with ``module`` or with a layer that does not flip it;
            hooks on a ``ConvReLUMaxPool2d`` of a ``DocumentCNN``, which no single native layer could keep.
    """
    made, told = copied("to_torch", module, copy_parameters), Report()
    names = {layer: name for name, layer in made.named_modules()}
    _flip_kernels(names, copy_parameters)
    entries: list[tuple[nn.Module, Replaced | Left]] = []
    for layer, name in reversed(names.items()):  # inner layers first: DocumentCNN looks at what became of its own
        entries = _convert(name, layer, any_subgradient) + entries
    names = {layer: name for name, layer in made.named_modules()}
    for layer, entry in entries:
        entry = replace(entry, name=names.get(layer, entry.name))
        (told.replaced if isinstance(entry, Replaced) else told.left).append(entry)
    return (made, told) if report else made


def _convert(name: str, layer: nn.Module, any_subgradient: bool) -> list[tuple[nn.Module, Replaced | Left]]:
    kind, flipped = type(layer), getattr(layer, "flip_kernel", False)
    if kind is ours.ConvReLUMaxPool2d:
        return _take_apart(name, layer, any_subgradient)
    if traced_from(layer):
        layer.__class__ = traced_from(layer)
        return [(layer, Replaced(name, "its forward, traced", name_of(type(layer))))]
    if kind not in NATIVE:
        if isinstance(layer, tuple(NATIVE)):
            return [(layer, Left(name, name_of(kind), "a subclass, or parametrized: its forward may be its own"))]
        return []
    why = _why_not(layer, any_subgradient)
    if why:
        return [(layer, Left(name, name_of(kind), why))]
    NATIVE[kind](layer)
    for attribute in OUR_OWN:
        vars(layer).pop(attribute, None)
    note = FLIPPED if flipped else NOTES.get(kind, "")
    return [(layer, Replaced(name, name_of(kind), name_of(type(layer)), note))]


def _why_not(layer: nn.Module, any_subgradient: bool) -> str | None:
    if isinstance(layer, ours.ReLU) and layer.subgradient != 0 and not any_subgradient:
        return f"nn.ReLU has the derivative 0 at 0, this has {layer.subgradient}; any_subgradient=True overlooks that"
    if isinstance(layer, (ours.Conv2d, ours.Dense)) and layer._parameters.get("weight") is None:
        return "its weight is no parameter but is computed by a hook, as pruning and weight_norm do"
    return None


def _become(layer: nn.Module, native: nn.Module) -> None:
    """``layer`` takes ``native``'s class, and those of its attributes that it does not have."""
    vars(layer).update({name: value for name, value in vars(native).items() if name not in vars(layer)})
    layer.__class__ = type(native)


def _conv2d(layer: nn.Module) -> None:
    shape = (layer.in_channels, layer.out_channels, layer.kernel_size)
    places = (layer.stride, layer.padding, layer.dilation, layer.groups)
    _become(layer, nn.Conv2d(*shape, *places, device="meta"))


def _max_pool2d(layer: nn.Module) -> None:
    if layer.stride is None:
        layer.stride = layer.kernel_size
    _become(layer, nn.MaxPool2d(layer.kernel_size))


def _flatten(layer: nn.Module) -> None:
    """(B, K, I, J) to (B, I, J, K), and flattened: equation (5). One image without a batch is not taken."""
    from torchvision.ops import Permute  # here alone: torchvision takes a second to import

    _become(layer, nn.Sequential())
    layer.add_module("rows_first", Permute([0, 2, 3, 1]).train(layer.training))
    layer.add_module("flatten", nn.Flatten().train(layer.training))


def _document_cnn(network: nn.Module) -> None:
    """A ``Sequential`` of its layers, where a convolution, its ReLU and its pooling stand side by side."""
    side_by_side: dict[str, nn.Module] = {}
    for name, layer in network.named_children():
        if not name.startswith("conv") or isinstance(layer, nn.Conv2d):
            side_by_side[name] = layer
            continue
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            raise ValueError(f"to_torch: {name} has hooks, but convolution, ReLU and pooling are three native layers")
        for part, single in layer.named_children():
            side_by_side[name.replace("conv", part)] = single
    vars(network)["_modules"] = side_by_side
    _become(network, nn.Sequential())


def _take_apart(name: str, layer: nn.Module, any_subgradient: bool) -> list[tuple[nn.Module, Replaced | Left]]:
    """P∘R∘C as a ``Sequential`` of three, which hold its parameters; hooks and mode stay with the whole."""
    convolution = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    relu = ours.ReLU(subgradient=layer.subgradient)
    convolution._parameters = layer._parameters
    vars(layer)["_parameters"] = {}
    _become(layer, nn.Sequential())
    for attribute in OUR_OWN:
        vars(layer).pop(attribute)
    for part, single in (("conv", convolution), ("relu", relu), ("pool", nn.MaxPool2d(2))):
        layer.add_module(part, single.train(layer.training))
    note = f"conv, relu and pool; {FLIPPED}"
    whole = Replaced(name, name_of(ours.ConvReLUMaxPool2d), name_of(nn.Sequential), note)
    return [(layer, whole), *_convert(f"{name}.relu".lstrip("."), relu, any_subgradient)]


NATIVE: dict[type, Callable[[nn.Module], None]] = {
    ours.Conv2d: _conv2d,
    layers.Conv2d: _conv2d,
    ours.MaxPool2d: _max_pool2d,
    layers.MaxPool2d: _max_pool2d,
    ours.Flatten: _flatten,
    layers.Flatten: lambda layer: _become(layer, nn.Flatten()),
    ours.Dense: lambda layer: _become(layer, nn.Linear(1, 1, device="meta")),
    ours.ReLU: lambda layer: _become(layer, nn.ReLU()),
    layers.ReLU: lambda layer: _become(layer, nn.ReLU()),
    ours.Softmax: lambda layer: _become(layer, nn.Softmax()),
    layers.Softmax: lambda layer: _become(layer, nn.Softmax()),
    ours.SoftmaxCrossEntropyLoss: lambda layer: _become(layer, nn.CrossEntropyLoss()),
    DocumentCNN: _document_cnn,
}


def _flip_kernels(names: dict[nn.Module, str], copy_parameters: bool) -> None:
    """Mirrors each kernel once, in its place, however many layers share it."""
    flipped: dict[nn.Parameter, str] = {}
    others: dict[nn.Parameter, str] = {}
    for layer, name in names.items():
        flips = type(layer) in (*NATIVE, ours.ConvReLUMaxPool2d) and getattr(layer, "flip_kernel", False)
        for which, parameter in layer._parameters.items():
            if parameter is not None:
                (flipped if flips and which == "weight" else others)[parameter] = f"{name}.{which}".lstrip(".")
    for parameter, name in flipped.items():
        if not copy_parameters:
            raise ValueError(f"to_torch: {name} is flipped for PyTorch, so it cannot be shared; copy_parameters=True")
        if parameter in others:
            raise ValueError(
                f"to_torch: {name} is flipped for PyTorch, but is also {others[parameter]}, which is not"
            )
        with torch.no_grad():
            parameter.copy_(parameter.flip(2, 3))
