"""``from_torch``: a model's layers become ours, one by one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from manualgrad import nn as ours
from manualgrad.interop import layers
from manualgrad.interop.copies import copied
from manualgrad.interop.report import Left, Replaced, Report, name_of
from manualgrad.interop.tracing import replace_calls

# Each native layer, ours, and what ours has that it has not.
COUNTERPARTS: dict[type, tuple[type, dict[str, Any]]] = {
    nn.Conv2d: (layers.Conv2d, {"flip_kernel": False}),
    nn.MaxPool2d: (layers.MaxPool2d, {}),
    nn.Flatten: (layers.Flatten, {}),
    nn.Linear: (ours.Dense, {}),
    nn.ReLU: (layers.ReLU, {"subgradient": 0.0}),
    nn.Softmax: (layers.Softmax, {}),
    nn.CrossEntropyLoss: (ours.SoftmaxCrossEntropyLoss, {}),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def from_torch(
    module: nn.Module,
    *,
    copy_parameters: bool = True,
    functional: bool = False,
    subclasses: Collection[type] = (),
    report: bool = False,
) -> Any:
    """A copy of ``module`` in which every layer that we have is ours, with PyTorch's conventions.

    ``Conv2d`` (any ``padding_mode``; the kernel is not flipped), ``MaxPool2d``, ``ReLU`` (``inplace`` too; 0 is the
    derivative at 0), ``Linear``, ``Softmax``, ``CrossEntropyLoss`` and ``Flatten`` (in PyTorch's order). Names of
    parameters and buffers are the same, so state dicts load in both directions; what is shared stays shared; training
    mode, dtype, device, memory format, ``requires_grad``, hooks and attributes are kept.

    A layer of another type stays native, and so does one that is a subclass, parametrized, pruned, replaced in part,
    or of a dtype that we don't have. The report says why.

    Args:
        module: any module; it is not changed.
        copy_parameters: True copies parameters; False shares the very same objects. Buffers are always copied.
        functional: also replace calls such as ``F.relu`` and ``torch.flatten`` inside the ``forward`` of each module
            that ``torch.fx`` can trace. Numbers and flags that such a forward reads from its module are fixed by
            that, but for ``training``: it is traced in both modes.
        subclasses: subclasses of native layers to be taken for the layers that they extend.
        report: whether to return a :class:`~manualgrad.interop.report.Report` too.

    Returns:
        the copy, or (copy, report).

    Raises:
        TypeError: a ``module`` that is none.
        ValueError: a lazy layer without parameters; a subclass with a ``forward`` of its own in ``subclasses``; with
            ``functional=True`` and without a report, a forward that cannot be traced.
    """
    for kind in subclasses:
        _check_subclass(kind)
    made, told = copied("from_torch", module, copy_parameters), Report()
    for name, layer in list(made.named_modules()):
        _convert(name, layer, subclasses, told)
    if functional:
        untraced = replace_calls(made, told)
        if untraced and not report:
            raise ValueError(
                "from_torch: functional=True, but not every forward can be traced; report=True accepts that and "
                "lists them:\n" + "\n".join(f"  {entry}" for entry in untraced)
            )
    return (made, told) if report else made


def _convert(name: str, layer: nn.Module, subclasses: Collection[type], told: Report) -> None:
    """``layer`` becomes ours by a change of its class: whoever refers to it, refers to ours; all it holds is kept."""
    kind = type(layer)
    native = kind if kind in COUNTERPARTS else next((base for base in kind.__mro__ if base in COUNTERPARTS), None)
    if native is None:
        if _has_work_of_its_own(name, layer):
            told.left.append(Left(name, name_of(kind), "manualgrad has no such layer"))
        return
    why = _why_not(layer, native, kind in subclasses)
    if why:
        told.left.append(Left(name, name_of(kind), why))
        return
    replacement, more = COUNTERPARTS[native]
    layer.__class__ = replacement
    vars(layer).update(more)
    told.replaced.append(Replaced(name, name_of(kind), name_of(replacement)))


def _has_work_of_its_own(name: str, layer: nn.Module) -> bool:
    """Whether it is a layer: no container, none of ours, no part of a parametrization."""
    inside = ".parametrizations." in f".{name}."
    return not (
        inside or isinstance(layer, CONTAINERS) or type(layer).__module__.startswith("manualgrad.")
    ) and not any(layer.children())


def _why_not(layer: nn.Module, native: type, asked: bool) -> str | None:
    """Why ours cannot take the place of ``layer``, or None if it can."""
    if parametrize.is_parametrized(layer):
        return "parametrized: its weight is computed anew at every call"
    if type(layer) is not native and not asked:
        return f"a subclass of {name_of(native)}; subclasses={{{type(layer).__name__}}} takes it for one"
    if "forward" in vars(layer) or "_conv_forward" in vars(layer):
        return "this one has a forward of its own"
    if native in (nn.Conv2d, nn.Linear):
        weight = layer._parameters.get("weight")
        if weight is None:
            return "its weight is no parameter but is computed by a hook, as pruning and weight_norm do"
        if type(weight) is not nn.Parameter or weight.layout != torch.strided:
            return f"its weight is a {type(weight).__name__} of layout {weight.layout}"
        if weight.dtype not in DTYPES:
            return f"its weight is of {weight.dtype}"
        if weight.numel() == 0 and native is nn.Conv2d:
            return "its weight is empty"
    if native is nn.Softmax and layer.dim is None:
        return "dim=None chooses a dimension by the number of them, which PyTorch has deprecated"
    return None


def _check_subclass(kind: type) -> None:
    base = next((base for base in getattr(kind, "__mro__", ()) if base in COUNTERPARTS), None)
    if base is None:
        raise ValueError(f"from_torch: subclasses must extend a layer that manualgrad has, got {kind!r}")
    for method in ("forward", "_conv_forward", "__call__"):
        if getattr(kind, method, None) is not getattr(base, method, None):
            raise ValueError(
                f"from_torch: {kind.__name__} has a {method} of its own, which {name_of(base)}'s counterpart would "
                "not run"
            )
