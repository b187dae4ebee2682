"""The values that functions keep from call to call, saved at one time."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compare.gradients.source_changes.reached_objects import Reached, is_class_of_user, is_empty

MAX_ENTRIES = 2_000  # of all containers together: they are copied before each run
MAX_NUMBERS = 100_000  # of an array or a tensor
DICTS = (dict, OrderedDict, defaultdict, Counter)
SEQUENCES = (list, deque)
MISSING = object()


class SavedValues:
    """The values at one time.

    Tensors are the same objects after :meth:`restore`; one that was changed in place has its numbers again.
    """

    def __init__(self, reached: Reached, copies: dict[int, tuple[Tensor, int, Tensor | None]]) -> None:
        self._bindings = [(scope, name, scope.get(name, MISSING)) for scope, name in reached.stored.values()]
        self._cells = [(cell, MISSING if is_empty(cell) else cell.cell_contents) for cell in reached.cells]
        self._attributes = [(each, _data_of(each), each.__name__) for each in reached.classes]
        self._contents: list[tuple[Any, Any, str]] = []
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._tensors: list[tuple[Tensor, int, Tensor | None, str]] = []
        self._known: dict[int, Any] = {id(each): each for each in reached.classes}
        self._entries, self._copies = 0, copies
        for scope, name in reached.names.values():
            self._save(scope.get(name), name)
        for _, data, owner in list(self._attributes):
            for name, value in data.items():
                self._save(value, f"{owner}.{name}")
        for _, content in self._cells:
            self._save(content, "a variable of an outer function")
        for function in reached.functions:
            self._save_of(function)

    def covers(self, value: object) -> bool:
        """True if what is stored in a container, a class or an object is undone."""
        return id(value) in self._known

    @property
    def changed_tensors(self) -> list[str]:
        """Names of the tensors that were changed in place since."""
        return [name for tensor, version, _, name in self._tensors if tensor._version != version]

    def changed_and_used(self, others: Reached, values: SavedValues) -> list[str]:
        """Names of what was changed since, and is among the names and values of other functions, too."""
        bound = [(id(scope), name) for scope, name, value in self._bindings if scope.get(name, MISSING) is not value]
        names = [name for key, name in bound if (key, name) in others.names]
        for container, content, name in self._contents:
            if values.covers(container) and not _is_same(container, content):
                names.append(name)
        for owner, data, name in self._attributes:
            if values.covers(owner) and not _is_same(_data_of(owner), data):
                names.append(name)
        return names

    def restore(self) -> None:
        """Put everything back."""
        for scope, name, value in self._bindings:
            if value is MISSING:
                scope.pop(name, None)
            else:
                scope[name] = value
        for cell, value in self._cells:
            _set_cell(cell, value)
        for owner, data, _ in self._attributes:
            _set_attributes(owner, data)
        for container, content, _ in self._contents:
            if not _is_same(container, content):
                container.clear()
                container.update(content) if isinstance(container, (dict, set)) else container.extend(content)
        for array, numbers in self._arrays:
            array[...] = numbers
        for tensor, version, numbers, _ in self._tensors:
            if tensor._version != version and numbers is not None:
                with torch.no_grad():
                    tensor.copy_(numbers)

    def _save_of(self, function: FunctionType) -> None:
        if vars(function):
            self._attributes.append((function, dict(vars(function)), function.__name__))
            self._known[id(function)] = function
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._save(value, f"a default of {function.__name__}")
        for name, value in vars(function).items():
            self._save(value, f"{function.__name__}.{name}")

    def _save(self, value: Any, name: str) -> None:
        if value is None or isinstance(value, (int, float, str)) or id(value) in self._known:
            return
        kind = type(value)
        if kind in DICTS or kind in SEQUENCES or kind is set:
            self._entries += len(value)
            if self._entries > MAX_ENTRIES:
                self._entries -= len(value)
                return
            self._known[id(value)] = value
            self._contents.append((value, dict(value) if kind in DICTS else list(value), name))
            for each in value.values() if kind in DICTS else value:
                self._save(each, name)
        elif isinstance(value, tuple):
            for each in value:
                self._save(each, name)
        elif isinstance(value, Tensor):
            self._save_tensor(value, name)
        elif isinstance(value, np.ndarray):
            if value.size <= MAX_NUMBERS and value.flags.writeable and not value.dtype.hasobject:
                self._known[id(value)] = value
                self._arrays.append((value, value.copy()))
        elif _is_object_of_user(value):
            self._known[id(value)] = value
            self._attributes.append((value, dict(vars(value)), name))
            for attribute, each in vars(value).items():
                self._save(each, f"{name}.{attribute}")

    def _save_tensor(self, tensor: Tensor, name: str) -> None:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_inference():
            return
        self._known[id(tensor)] = None
        known, version, numbers = self._copies.get(id(tensor), (None, 0, None))
        if known is not tensor or version != tensor._version:
            is_copied = tensor.layout == torch.strided and tensor.numel() <= MAX_NUMBERS and 0 not in tensor.stride()
            numbers = tensor.detach().clone() if is_copied else None
            self._copies[id(tensor)] = tensor, tensor._version, numbers
        self._tensors.append((tensor, tensor._version, numbers, name))


def _is_same(container: Any, content: Any) -> bool:
    """True if a container has the same objects."""
    if len(container) != len(content):
        return False
    if isinstance(content, dict):
        return all(container.get(key, MISSING) is value for key, value in content.items())
    if isinstance(container, set):
        return all(value in container for value in content)
    return all(a is b for a, b in zip(container, content, strict=True))


def _data_of(each: Any) -> dict[str, Any]:
    """Attributes of an object; those of a class but for methods and what Python puts there."""
    if not isinstance(each, type):
        return dict(vars(each))
    return {
        name: value
        for name, value in vars(each).items()
        if not (name.startswith("__") or callable(value) or hasattr(value, "__get__"))
    }


def _is_object_of_user(value: object) -> bool:
    """True for an object whose attributes are all that it keeps."""
    if isinstance(value, (type, nn.Module, FunctionType, *DICTS, *SEQUENCES, set)):
        return False
    return isinstance(getattr(value, "__dict__", None), dict) and is_class_of_user(type(value))


def _set_attributes(owner: Any, data: dict[str, Any]) -> None:
    if not isinstance(owner, type):
        vars(owner).clear()
        vars(owner).update(data)
        return
    present = _data_of(owner)
    for name in present.keys() - data.keys():
        type.__delattr__(owner, name)
    for name, value in data.items():
        if present.get(name, MISSING) is not value:
            type.__setattr__(owner, name, value)


def _set_cell(cell: CellType, value: object) -> None:
    if value is not MISSING:
        cell.cell_contents = value
    elif not is_empty(cell):
        del cell.cell_contents
