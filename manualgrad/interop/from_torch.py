"""``from_torch``: a copy of a model in which layers of ``torch.nn`` (native layers) are replaced by ours."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Literal, overload

import torch
from torch import nn
from torch.nn.utils import parametrize

from manualgrad._torch_compat import CONV_FORWARD, own_parameters, set_fx_leaf
from manualgrad.interop.copies import copy_module
from manualgrad.interop.functional_calls import replace_functional_calls, rewrite_chains
from manualgrad.interop.layers import COUNTERPARTS
from manualgrad.interop.report import NO_SUCH_LAYER, Left, Replaced, Report, type_name
from manualgrad.interop.rewritten_class import original_class
from manualgrad.interop.type_comparisons import find_type_comparisons
from manualgrad.network import guards
from manualgrad.network.call_chains import has_chain
from manualgrad.sequential import Sequential

SUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
FAST_PATH = (
    "in evaluation without gradients PyTorch computes it as a whole, without its layers; "
    "torch.backends.mha.set_fastpath_enabled(False) prevents that"
)
ModuleTypes = Collection[type[nn.Module]]


@overload
def from_torch(
    module: nn.Module,
    *,
    copy_parameters: bool = ...,
    functional: bool = ...,
    subclasses: ModuleTypes = ...,
    report: Literal[False] = ...,
) -> nn.Module: ...
@overload
def from_torch(
    module: nn.Module,
    *,
    copy_parameters: bool = ...,
    functional: bool = ...,
    subclasses: ModuleTypes = ...,
    report: Literal[True],
) -> tuple[nn.Module, Report]: ...
@overload
def from_torch(
    module: nn.Module,
    *,
    copy_parameters: bool = ...,
    functional: bool = ...,
    subclasses: ModuleTypes = ...,
    report: bool,
) -> nn.Module | tuple[nn.Module, Report]: ...
def from_torch(
    module: nn.Module,
    *,
    copy_parameters: bool = True,
    functional: bool = False,
    subclasses: ModuleTypes = (),
    report: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """Return a copy of ``module`` in which manualgrad's layers replace those of ``torch.nn``, where they exist.

    They are subclasses of the layers that they replace, with another forward and PyTorch's conventions. There are
    counterparts of ``Conv2d`` (any ``padding_mode``; the kernel is not flipped), ``MaxPool2d``, ``ReLU`` (``inplace``
    too; the derivative at 0 is 0), ``Linear``, ``Softmax``, ``CrossEntropyLoss`` and ``Flatten`` (PyTorch's order).

    An ``nn.Sequential`` becomes :class:`manualgrad.Sequential` if kernels can run its layers as one program, or if
    there is a ``ReLU`` behind a ``Conv2d`` or a ``Linear`` in it, or before a ``MaxPool2d``, which are then computed
    together. A module whose methods call such layers one after the other gets a subclass of its class, with the same
    name, that computes them together. Where a hook or anything else could see the layers' results, they are called.

    Parameters and buffers keep their names, so state dicts load in both directions. Shared layers and tied weights
    stay shared. Training mode, dtype, device, memory format, ``requires_grad``, hooks and attributes are kept.

    A layer of another type stays native. So does a subclass that ``subclasses`` does not list, a parametrized or
    pruned layer, one whose forward was replaced, one with an empty or unusual weight or an unsupported dtype, and
    ``Softmax(dim=None)``. The report gives the reason for each.

    Args:
        module: any module; it is not changed.
        copy_parameters: True copies parameters; False gives the copy the same parameter objects. Buffers are always
            copied.
        functional: also replace calls such as ``F.relu`` and ``torch.flatten`` inside the methods of each module,
            and inside the functions of the model's code that they call. The source of these methods is rewritten in
            the calls only, so each call decides anew about branches, options, modes and random numbers.
        subclasses: subclasses of native layers to replace as well, as if they were their base class.
        report: also return a :class:`~manualgrad.interop.report.Report`.

    Returns:
        The copy, or (copy, report).

    Raises:
        TypeError: ``module`` is not a module, or ``subclasses`` no set or other collection of classes.
        ValueError: a lazy layer is uninitialized; a class in ``subclasses`` extends no layer that manualgrad
            implements, or overrides ``forward``, ``_conv_forward`` or ``__call__``; a method with calls to replace
            cannot be rewritten, with ``functional=True`` and ``report=False``.
    """
    if isinstance(subclasses, type):
        name = subclasses.__name__
        raise TypeError(f"from_torch: subclasses must be a set of classes, got the class {name}; write {{{name}}}")
    for subclass in subclasses:
        _check_subclass(subclass)
    converted, full_report = copy_module("from_torch", module, copy_parameters), Report()
    for name, layer in list(converted.named_modules()):
        _convert_layer(name, layer, subclasses, full_report)
    for layer in converted.modules():
        if type(layer) is nn.Sequential and (has_chain(layer.children()) or guards.may_have_plan(layer)):
            layer.__class__ = Sequential
    if functional:
        unchanged = replace_functional_calls(converted, full_report)
        rewritten = {name for name, layer in converted.named_modules() if original_class(layer)}
        full_report.left[:] = [
            entry for entry in full_report.left if entry.why != NO_SUCH_LAYER or entry.name not in rewritten
        ]
        if unchanged and not report:
            raise ValueError(
                "from_torch: functional=True, but not every call can be replaced; pass report=True to leave these "
                "as they are and list them:\n" + "\n".join(f"  {entry}" for entry in unchanged)
            )
    else:
        rewrite_chains(converted)
    layers = zip(module.modules(), converted.modules(), strict=True)
    changed: set[type] = {type(native) for native, ours in layers if type(native) is not type(ours)}
    comparisons = find_type_comparisons(converted, changed) if changed else []
    full_report.left.extend(comparisons)
    if comparisons and not report:
        warnings.warn(
            "from_torch: the model may compute something else, because its code compares the exact types of layers "
            "(report=True lists all such places):\n" + "\n".join(f"  {entry}" for entry in comparisons[:5]),
            stacklevel=2,
        )
    return (converted, full_report) if report else converted


def _convert_layer(name: str, layer: nn.Module, subclasses: ModuleTypes, report: Report) -> None:
    """Replace ``layer`` in place by setting its ``__class__``, or add the reason why not to ``report``.

    References to the layer and its attributes are kept.
    """
    kind = type(layer)
    if kind in COUNTERPARTS.values():
        return
    native = next((base for base in kind.__mro__ if base in COUNTERPARTS), None)
    if native is None:
        if _is_unsupported_leaf(name, layer):
            report.left.append(Left(name, type_name(kind), NO_SUCH_LAYER))
        elif isinstance(layer, nn.TransformerEncoderLayer):
            report.left.append(Left(name, type_name(kind), FAST_PATH))
        return
    reason = _reason_to_keep(layer, native, kind in subclasses)
    if reason:
        report.left.append(Left(name, type_name(kind), reason))
        return
    layer.__class__ = COUNTERPARTS[native]
    set_fx_leaf(layer, native)
    report.replaced.append(Replaced(name, type_name(kind), type_name(COUNTERPARTS[native])))


def _is_unsupported_leaf(name: str, layer: nn.Module) -> bool:
    """Return True for a module without children that computes something, is not ours and no parametrization."""
    in_parametrization = ".parametrizations." in f".{name}."
    is_ours = type(layer).__module__.startswith("manualgrad.")
    has_layers = any(layer.children()) and not isinstance(layer, nn.MultiheadAttention)
    return not (in_parametrization or is_ours or isinstance(layer, (*CONTAINERS, nn.Identity)) or has_layers)


def _reason_to_keep(layer: nn.Module, native: type[nn.Module], is_listed_subclass: bool) -> str | None:
    """Reason why our counterpart of ``native`` cannot replace ``layer``, or None."""
    if parametrize.is_parametrized(layer):
        return "parametrized: its weight is computed in every call"
    if type(layer) is not native and not is_listed_subclass:
        return f"a subclass of {type_name(native)}; subclasses={{{type(layer).__name__}}} replaces it too"
    if "forward" in vars(layer) or CONV_FORWARD in vars(layer):
        return "this instance has a forward of its own"
    if native in (nn.Conv2d, nn.Linear):
        weight = own_parameters(layer).get("weight")
        if weight is None:
            return "its weight is not a parameter but computed by a hook, as pruning and weight_norm do"
        if type(weight) is not nn.Parameter or weight.layout != torch.strided:
            return f"its weight is a {type(weight).__name__} of layout {weight.layout}"
        if weight.dtype not in SUPPORTED_DTYPES:
            return f"its weight is of {weight.dtype}"
        if weight.numel() == 0 and native is nn.Conv2d:
            return "its weight is empty"
    if native is nn.Softmax and layer.dim is None:
        return "dim=None is deprecated: the dimension would depend on the number of dimensions of the input"
    return None


def _check_subclass(subclass: type[nn.Module]) -> None:
    base = next((base for base in getattr(subclass, "__mro__", ()) if base in COUNTERPARTS), None)
    if base is None:
        raise ValueError(f"from_torch: subclasses must extend a layer that manualgrad has, got {subclass!r}")
    for method in ("forward", CONV_FORWARD, "__call__"):
        if getattr(subclass, method, None) is not getattr(base, method, None):
            raise ValueError(
                f"from_torch: {subclass.__name__} in subclasses has a {method} of its own, which our counterpart of "
                f"{type_name(base)} would not call"
            )
