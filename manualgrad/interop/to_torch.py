"""``to_torch``: a copy of a model in which our layers are replaced by PyTorch's, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import nn

from manualgrad import nn as ours
from manualgrad._torch_compat import FX_LEAF, has_hooks, move_parameters, own_parameters, set_child_modules
from manualgrad.interop import library_attributes
from manualgrad.interop.copies import copy_module
from manualgrad.interop.layers import COUNTERPARTS
from manualgrad.interop.report import Left, Replaced, Report, type_name
from manualgrad.interop.rewritten_class import original_class, restore_methods
from manualgrad.models import DocumentCNN
from manualgrad.sequential import Sequential

OUR_ATTRIBUTES = ("flip_kernel", "subgradient", FX_LEAF)  # attributes that no native layer has
FLIPPED = "the kernel is flipped: weights and their gradients are mirrored"
NOTES = {
    ours.Flatten: "in (row, column, channel) order, by a permutation before it",
    DocumentCNN: "it returns the logits and has no cost and no probabilities",
}
Entries = list[tuple[nn.Module, Replaced | Left]]


@overload
def to_torch(
    module: nn.Module, *, copy_parameters: bool = ..., any_subgradient: bool = ..., report: Literal[False] = ...
) -> nn.Module: ...
@overload
def to_torch(
    module: nn.Module, *, copy_parameters: bool = ..., any_subgradient: bool = ..., report: Literal[True]
) -> tuple[nn.Module, Report]: ...
@overload
def to_torch(
    module: nn.Module, *, copy_parameters: bool = ..., any_subgradient: bool = ..., report: bool
) -> nn.Module | tuple[nn.Module, Report]: ...
def to_torch(
    module: nn.Module, *, copy_parameters: bool = True, any_subgradient: bool = False, report: bool = False
) -> nn.Module | tuple[nn.Module, Report]:
    """Copy ``module`` and replace every layer of ours in the copy by PyTorch's: the inverse of :func:`from_torch`.

    After ``from_torch``, types, parameters, buffers and attributes are what they were before it. Layers with the
    conventions of the formula sheet (docs/equations.md) become native ones that compute the same:

    - the kernel of a convolution is flipped;
    - :class:`~manualgrad.nn.Flatten` permutes its input before it flattens;
    - :class:`~manualgrad.nn.ConvReLUMaxPool2d` becomes three layers;
    - :class:`~manualgrad.models.DocumentCNN` becomes an ``nn.Sequential`` that returns the logits, with the same
      names of parameters.

    No native layer equals a ReLU whose derivative at 0 is not 0. It is left unless ``any_subgradient``.

    Args:
        module: any module; it is not changed.
        copy_parameters: True copies parameters; False gives the copy the same parameter objects. Buffers are always
            copied.
        any_subgradient: replace every ReLU by ``nn.ReLU``, also where the derivative at 0 differs.
        report: also return a :class:`~manualgrad.interop.report.Report`.

    Returns:
        The copy, or (copy, report).

    Raises:
        TypeError: ``module`` is not a module.
        ValueError: a lazy layer has no parameters yet; a kernel that must be flipped is shared, with ``module`` or
            with a layer that does not flip it; a ``ConvReLUMaxPool2d`` of a ``DocumentCNN`` has hooks, and no single
            native layer could keep them.
    """
    converted, full_report = copy_module("to_torch", module, copy_parameters), Report()
    names = {layer: name for name, layer in converted.named_modules()}
    _flip_kernels(names, copy_parameters)
    entries: Entries = []
    for layer, name in reversed(names.items()):  # children first: DocumentCNN takes its converted children
        entries = _convert_layer(name, layer, any_subgradient) + entries
    names = {layer: name for name, layer in converted.named_modules()}
    for layer, entry in entries:
        entry = replace(entry, name=names.get(layer, entry.name))
        if isinstance(entry, Replaced):
            full_report.replaced.append(entry)
        else:
            full_report.left.append(entry)
    return (converted, full_report) if report else converted


def _convert_layer(name: str, layer: nn.Module, any_subgradient: bool) -> Entries:
    library_attributes.restore(layer)
    kind, is_flipped = type(layer), getattr(layer, "flip_kernel", False)
    if isinstance(layer, ours.ConvReLUMaxPool2d) and kind is ours.ConvReLUMaxPool2d:
        return _split_fused_layer(name, layer, any_subgradient)
    if original := original_class(layer):
        restore_methods(layer)
        return [(layer, Replaced(name, "its forward, rewritten", type_name(original)))]
    if kind not in CONVERTERS:
        if isinstance(layer, tuple(CONVERTERS)):
            return [(layer, Left(name, type_name(kind), "a subclass, or parametrized: its forward may differ"))]
        return []
    reason = _reason_to_keep(layer, any_subgradient)
    if reason:
        return [(layer, Left(name, type_name(kind), reason))]
    CONVERTERS[kind](layer)
    for attribute in OUR_ATTRIBUTES:
        vars(layer).pop(attribute, None)
    note = FLIPPED if is_flipped else NOTES.get(kind, "")
    return [(layer, Replaced(name, type_name(kind), type_name(type(layer)), note))]


def _reason_to_keep(layer: nn.Module, any_subgradient: bool) -> str | None:
    if isinstance(layer, ours.ReLU) and layer.subgradient != 0 and not any_subgradient:
        return (
            f"its derivative at 0 is {layer.subgradient}, and nn.ReLU's is 0; any_subgradient=True replaces it anyway"
        )
    if isinstance(layer, (ours.Conv2d, ours.Dense)) and own_parameters(layer).get("weight") is None:
        return "its weight is not a parameter but computed by a hook, as pruning and weight_norm do"
    return None


def _become(layer: nn.Module, native: nn.Module) -> None:
    """Give ``layer`` the class of ``native``, and the attributes of ``native`` that it lacks."""
    vars(layer).update({name: value for name, value in vars(native).items() if name not in vars(layer)})
    layer.__class__ = type(native)


def _restore_native(layer: nn.Module) -> None:
    layer.__class__ = next(base for base in type(layer).__mro__ if base in COUNTERPARTS)


def _convert_conv2d(layer: ours.Conv2d) -> None:
    native = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.groups, device="meta",
    )  # fmt: skip
    _become(layer, native)


def _convert_max_pool2d(layer: ours.MaxPool2d) -> None:
    if layer.stride is None:
        layer.stride = layer.kernel_size
    _become(layer, nn.MaxPool2d(layer.kernel_size))


def _convert_flatten(layer: ours.Flatten) -> None:
    """Permute (N, C, H, W) to (N, H, W, C) and flatten, which is equation (5). Unbatched images are not supported."""
    from torchvision.ops import Permute  # imported here, because torchvision takes a second to import

    _become(layer, nn.Sequential())
    layer.add_module("rows_first", Permute([0, 2, 3, 1]).train(layer.training))
    layer.add_module("flatten", nn.Flatten().train(layer.training))


def _convert_sequential(layer: nn.Module) -> None:
    layer.__class__ = nn.Sequential


def _convert_document_cnn(network: DocumentCNN) -> None:
    """Make ``network`` a ``Sequential`` with convolution, ReLU and pooling as layers of their own."""
    children: dict[str, nn.Module | None] = {}
    for name, layer in network.named_children():
        if not name.startswith("conv") or isinstance(layer, nn.Conv2d):
            children[name] = layer
            continue
        if has_hooks(layer):
            raise ValueError(
                f"to_torch: the hooks of {name} cannot be kept, because convolution, ReLU and pooling become three "
                "layers; remove them first"
            )
        for part_name, part in layer.named_children():
            children[name.replace("conv", part_name)] = part
    set_child_modules(network, children)
    _become(network, nn.Sequential())


def _split_fused_layer(name: str, layer: ours.ConvReLUMaxPool2d, any_subgradient: bool) -> Entries:
    """Make ``layer`` a ``Sequential`` of three layers that has its parameters, hooks and training mode."""
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    relu = ours.ReLU(subgradient=layer.subgradient)
    move_parameters(layer, conv)
    _become(layer, nn.Sequential())
    for attribute in OUR_ATTRIBUTES:
        vars(layer).pop(attribute, None)
    for part_name, part in (("conv", conv), ("relu", relu), ("pool", nn.MaxPool2d(2))):
        layer.add_module(part_name, part.train(layer.training))
    note = f"conv, relu and pool; {FLIPPED}"
    entry = Replaced(name, type_name(ours.ConvReLUMaxPool2d), type_name(nn.Sequential), note)
    return [(layer, entry), *_convert_layer(f"{name}.relu".lstrip("."), relu, any_subgradient)]


# Our layer: the function that makes an instance of it native.
CONVERTERS: dict[type[nn.Module], Callable[[Any], None]] = {
    ours.Conv2d: _convert_conv2d,
    ours.MaxPool2d: _convert_max_pool2d,
    ours.Flatten: _convert_flatten,
    Sequential: _convert_sequential,
    ours.Dense: lambda layer: _become(layer, nn.Linear(1, 1, device="meta")),
    ours.ReLU: lambda layer: _become(layer, nn.ReLU()),
    ours.Softmax: lambda layer: _become(layer, nn.Softmax()),
    ours.SoftmaxCrossEntropyLoss: lambda layer: _become(layer, nn.CrossEntropyLoss()),
    DocumentCNN: _convert_document_cnn,
    **dict.fromkeys(COUNTERPARTS.values(), _restore_native),
}


def _flip_kernels(names: dict[nn.Module, str], copy_parameters: bool) -> None:
    """Flip each kernel in place, once for all layers that share it."""
    flipped: dict[nn.Parameter, str] = {}
    others: dict[nn.Parameter, str] = {}
    for layer, name in names.items():
        flips = type(layer) in (*CONVERTERS, ours.ConvReLUMaxPool2d) and getattr(layer, "flip_kernel", False)
        for parameter_name, parameter in own_parameters(layer).items():
            if parameter is not None:
                full_name = f"{name}.{parameter_name}".lstrip(".")
                (flipped if flips and parameter_name == "weight" else others)[parameter] = full_name
    for parameter, name in flipped.items():
        if not copy_parameters:
            raise ValueError(
                f"to_torch: {name} is flipped for PyTorch, so it cannot be shared; use copy_parameters=True"
            )
        if parameter in others:
            raise ValueError(
                f"to_torch: {name} is flipped for PyTorch, but is also {others[parameter]}, which is not"
            )
        with torch.no_grad():
            parameter.copy_(parameter.flip(2, 3))
