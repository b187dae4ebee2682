"""Cases from a user's module or file."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from compare.case import Case
from compare.case_errors import CaseError, describe_exception, find_location

# Only these containers are searched, and their own methods iterate: a tensor, an iterator or a data frame in the
# user's file is left alone.
ITEMS = {
    list: list.__iter__,
    tuple: tuple.__iter__,
    set: set.__iter__,
    frozenset: frozenset.__iter__,
    dict: lambda value: iter(dict.values(value)),
}


def load_cases(name: str) -> list[Case]:
    """Return every :class:`Case` in a module or a ``.py`` file: global variables, and items of lists and dicts.

    Args:
        name: a module's name as ``import`` takes it, or the path of a file.

    Raises:
        CaseError: there is no such module, it raises when it is imported, it has no case, or two of one name.
    """
    module = _import(name)
    searched: set[int] = set()
    cases = [
        case
        for key, value in list(vars(module).items())
        if not key.startswith("_")
        for case in _find_cases(value, searched)
    ]
    if not cases:
        raise CaseError(f"{name} has no compare.Case; expected CASES = [compare.Case(...), ...]")
    names = [case.name for case in cases]
    if repeated := {n for n in names if names.count(n) > 1}:
        raise CaseError(f"{name} has several cases of the same name: {', '.join(sorted(repeated))}")
    return cases


def _find_cases(value: Any, searched: set[int]) -> Iterator[Case]:
    """Cases in ``value`` and in the containers in it, each once; ``searched`` has the ids of what was looked at."""
    if issubclass(type(value), Case):
        if id(value) not in searched:
            searched.add(id(value))
            yield value
        return
    for container, items in ITEMS.items():
        if issubclass(type(value), container) and id(value) not in searched:
            searched.add(id(value))
            for item in items(value):
                yield from _find_cases(item, searched)


def _import(name: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _import_file(name)
        if name.startswith("."):
            raise CaseError(f"{name} is no module; expected a module's name as import takes it, or a .py file")
        return importlib.import_module(name)
    except (CaseError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        if error.name == name.partition(".")[0] or error.name == name:
            raise CaseError(
                f"there is no module {name}; expected a module's name as import takes it, or a .py file"
            ) from error
        raise CaseError(f"{name} imports {error.name}, which is not installed") from error
    except BaseException as error:  # a user's file may raise anything, SystemExit included
        location = find_location(error)
        where = f" ({location})" if location else ""
        raise CaseError(f"{name} raises when it is imported{where}: {describe_exception(error)}") from error


def _import_file(name: str) -> ModuleType:
    """Import a file under a private module name, so that a file called torch.py replaces no module.

    The name is an identifier that is in ``sys.modules`` before the file runs, as dataclasses and pickle need it. The
    file's folder becomes the last one in which modules are looked for, so the file can import its neighbours.
    """
    path = Path(name)
    if not path.is_file():
        raise CaseError(f"there is no file {name}")
    path = path.resolve()
    identifier = re.sub(r"\W", "_", path.stem)
    module_name = f"_case_file_{identifier}_{zlib.crc32(str(path).encode(errors='surrogatepass')):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
