"""Errors about one case, with file and line of the user's code in which the exception was raised."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import manualgrad

MAX_TRACEBACK_LINES = 20  # of an internal error, in report.json
OWN = tuple(str(Path(file).parent) + os.sep for file in (__file__, manualgrad.__file__, torch.__file__))
STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep
SITE_PACKAGES = tuple(sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib"))


class CaseError(Exception):
    """A case cannot be compared; the message says why."""


@dataclass(frozen=True)
class CaseFailure:
    """A case that could not be compared.

    Attributes:
        case: the case's name.
        message: one sentence, which begins with the name.
        traceback: last lines of the traceback, for an error inside compare; empty otherwise.
    """

    case: str
    message: str
    traceback: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """The error for report.json."""
        return {"error": self.message, "traceback": list(self.traceback)}


@contextmanager
def errors_name_the_case(case: str) -> Iterator[None]:
    """Turn an exception of the case's functions into a :class:`CaseError` with the name, file and line.

    SystemExit and other exceptions that end a program are included; KeyboardInterrupt is not. An exception that no
    line of the user's code has raised passes through: it is an error inside compare.

    Raises:
        CaseError: the body raises it, or the user's code raises something else.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except CaseError as error:
        location = _location_of_cause(error)
        if not location or location in str(error):
            raise
        raise CaseError(f"{error} ({location})") from error.__cause__
    except BaseException as error:
        location = find_location(error)
        if not location:
            raise
        raise CaseError(f"{case}: {describe_exception(error)} ({location})") from error


def as_failure(case: str, error: BaseException) -> CaseFailure:
    """Describe the exception that ended the comparison of a case."""
    if isinstance(error, CaseError):
        message = str(error)
        return CaseFailure(case, message if message.startswith(case) else f"{case}: {message}")
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines()
    message = f"{case}: internal error in compare: {describe_exception(error)}; please report it"
    return CaseFailure(case, message, tuple(lines[-MAX_TRACEBACK_LINES:]))


def describe_exception(error: BaseException) -> str:
    """Type and first line of the message of an exception; for SystemExit, the call that raises it."""
    if isinstance(error, SystemExit):
        return f"calls sys.exit({'' if error.code is None else repr(error.code)})"
    try:
        lines = str(error).strip().splitlines()
    except Exception as failure:  # the message of a user's exception is the user's code too
        lines = [f"its message raises {type(failure).__name__}"]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def find_location(error: BaseException) -> str:
    """File and line of the innermost frame in the user's code, or of a syntax error; "" if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    return location_of_frames(_frames(error.__traceback__))


def location_of_frames(frames: Sequence[tuple[str, int]]) -> str:
    """ "FILE, line N" of the first of ``frames`` in the user's code, innermost frame first; "" if there is none.

    Installed packages count as the user's code only if no other frame does.
    """
    for excluded in ((*OWN, *SITE_PACKAGES), OWN):
        for file, line in frames:
            in_standard_library = file.startswith(STANDARD_LIBRARY) and not file.startswith(SITE_PACKAGES)
            if not file.startswith(("<", *excluded)) and not in_standard_library:
                return f"{Path(file).name}, line {line}"
    return ""


def traceback_of_user(error: BaseException) -> TracebackType | None:
    """The traceback of ``error`` from the first frame in the user's code on; None if there is none."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(OWN):
        trace = trace.tb_next
    return trace


def definition_of(function: object) -> str:
    """ "FILE, line N" of a function's first line; "" if it is not the user's, or not written in Python."""
    code = getattr(function, "__code__", None)
    return location_of_frames([(code.co_filename, code.co_firstlineno)]) if code is not None else ""


def _frames(trace: TracebackType | None) -> list[tuple[str, int]]:
    return [(frame.f_code.co_filename, line or 0) for frame, line in traceback.walk_tb(trace)][::-1]


def _location_of_cause(error: BaseException) -> str:
    return find_location(error.__cause__) if error.__cause__ is not None else ""
