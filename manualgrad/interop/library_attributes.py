"""Native functions that modules of PyTorch hold in attributes, such as ``activation`` of a transformer's layer."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

from torch import nn

from manualgrad.interop.known_values import is_library
from manualgrad.interop.native_calls import FUNCTIONS, is_replaceable, replacement_of, without_partials
from manualgrad.interop.report import Left, Replaced, Report, type_name
from manualgrad.interop.source_code import nested_codes

ORIGINAL_ATTRIBUTES = "_manualgrad_original_attributes"


def replace(name: str, module: nn.Module, report: Report) -> None:
    """Replace functions in attributes that code of PyTorch calls, and list them in ``report``."""
    kind: Any = type(module)
    for attribute, value in list(vars(module).items()):
        native = without_partials(value)
        if not is_replaceable(native) or not _is_called(kind, attribute, by_library=True):
            continue
        native_name, ours = FUNCTIONS[native]
        if _is_called(kind, attribute, by_library=False):
            why = f"its {attribute} is read by the model's own code too, which may compare it"
            report.left.append(Left(name, type_name(kind), why))
            continue
        vars(module).setdefault(ORIGINAL_ATTRIBUTES, {})[attribute] = value
        vars(module)[attribute] = replacement_of(value)
        ours_name = f"manualgrad.interop.operations.{ours.__name__}"
        report.replaced.append(Replaced(name, f"{native_name} in its {attribute}", ours_name))


def restore(module: nn.Module) -> None:
    """Undo :func:`replace`."""
    vars(module).update(vars(module).pop(ORIGINAL_ATTRIBUTES, {}))


@functools.lru_cache(maxsize=512)
def _is_called(kind: Any, attribute: str, by_library: bool) -> bool:
    """Return True if a method of a class of PyTorch, or else of the model's code, names the attribute."""
    methods = [
        member
        for base in kind.__mro__
        if is_library(base) == by_library and base not in (nn.Module, object)
        for name, member in vars(base).items()
        if isinstance(member, FunctionType) and name not in ("__init__", "__setstate__")
    ]
    return any(attribute in code.co_names for method in methods for code in nested_codes(method.__code__))
