"""Cases out of anybody's file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from compare.case import Case, CaseError


def load_cases(name: str) -> list[Case]:
    """Every :class:`Case` that a module or a ``.py`` file has: in lists and tuples such as ``CASES``, and by itself.

    Args:
        name: as ``import`` takes it, or the path of a file.

    Raises:
        CaseError: no such module, one that fails when it is imported, or one without a case.
    """
    module = _module(name)
    found: dict[int, Case] = {}
    for key, value in vars(module).items():
        if key.startswith("_"):
            continue
        for case in value if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else (value,):
            if isinstance(case, Case):
                found.setdefault(id(case), case)
            elif not isinstance(value, (list, tuple)):
                break
    if not found:
        raise CaseError(f"{name} has no compare.Case; write CASES = [compare.Case(...), ...] in it")
    names = [case.name for case in found.values()]
    if twice := {n for n in names if names.count(n) > 1}:
        raise CaseError(f"{name} has several cases of the same name: {', '.join(sorted(twice))}")
    return list(found.values())


def _module(name: str) -> ModuleType:
    path = Path(name)
    try:
        if path.suffix == ".py":
            if not path.is_file():
                raise CaseError(f"there is no file {name}")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
            return module
        return importlib.import_module(name)
    except CaseError:
        raise
    except ModuleNotFoundError as error:
        if error.name == name.partition(".")[0] or error.name == name:
            raise CaseError(f"there is no module {name}; give its name as import takes it, or a .py file") from error
        raise CaseError(f"{name} imports {error.name}, which is not installed") from error
    except (
        Exception,
        SystemExit,
    ) as error:  # anything that anybody's file may raise, told with the line where it was
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(at.filename).name}, line {at.lineno}"
        raise CaseError(f"{name} fails when it is imported ({where}): {type(error).__name__}: {error}") from error
