"""Cases from a user's module or file."""

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
    """Return every :class:`Case` in a module or a ``.py`` file: global variables, and items of lists and tuples.

    Args:
        name: a module's name as ``import`` takes it, or the path of a file.

    Raises:
        CaseError: there is no such module, it raises when it is imported, it has no case, or two of one name.
    """
    module = _import(name)
    cases: dict[int, Case] = {}
    for key, value in vars(module).items():
        if key.startswith("_"):
            continue
        for case in value if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else (value,):
            if isinstance(case, Case):
                cases.setdefault(id(case), case)
            elif not isinstance(value, (list, tuple)):
                break
    if not cases:
        raise CaseError(f"{name} has no compare.Case; expected CASES = [compare.Case(...), ...]")
    names = [case.name for case in cases.values()]
    if repeated := {n for n in names if names.count(n) > 1}:
        raise CaseError(f"{name} has several cases of the same name: {', '.join(sorted(repeated))}")
    return list(cases.values())


def _import(name: str) -> ModuleType:
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
            raise CaseError(
                f"there is no module {name}; expected a module's name as import takes it, or a .py file"
            ) from error
        raise CaseError(f"{name} imports {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:  # a user's file may raise anything; the message says in which line
        frame = traceback.extract_tb(error.__traceback__)[-1]
        location = f"{Path(frame.filename).name}, line {frame.lineno}"
        raise CaseError(f"{name} raises when it is imported ({location}): {type(error).__name__}: {error}") from error
