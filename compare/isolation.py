"""Calls in a process of their own, with a time limit: what hangs or ends the interpreter there is an error here."""

from __future__ import annotations

import faulthandler
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from compare.case_errors import CaseError, describe_exception, find_location, location_of_frames

START_LIMIT = 120  # seconds to start Python and import torch, on a busy machine
FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in ', re.MULTILINE)
REQUEST, RESULT, TRACE = "request.pickle", "result.pickle", "trace.txt"  # files that the two processes exchange
POSIX = os.name == "posix"


def call(function: Callable[..., Any], arguments: Sequence[Any], name: str, time_limit: int) -> Any:
    """Call ``function(*arguments)`` in a new process and return its result.

    The process ends with this one, and so do the processes that it has started where there are process groups.

    Args:
        function: a module's function; its arguments and its result must be picklable.
        name: begins the error messages.
        time_limit: in seconds, without the start of the process.

    Raises:
        CaseError: the function raises something, takes longer, or ends the process. The message has file and line
            of the user's code if they are known.
    """
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        files = Path(folder)
        (files / REQUEST).write_bytes(pickle.dumps((function, tuple(arguments), name, time_limit)))
        code = f"import sys; sys.path[:] = {sys.path!r}; from compare.isolation import serve; serve({folder!r})"
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=POSIX
        ) as process:
            try:
                process.wait(START_LIMIT + time_limit)
            except subprocess.TimeoutExpired:
                pass
            finally:
                returncode = process.poll()
                _kill(process)
        if (files / RESULT).exists():
            result = pickle.loads((files / RESULT).read_bytes())
            if isinstance(result, CaseError):
                raise result
            return result
        trace = (files / TRACE).read_text(errors="replace") if (files / TRACE).exists() else ""
    location = location_of_frames([(match["file"], int(match["line"])) for match in FRAME.finditer(trace)])
    where = f" ({location})" if location else ""
    if returncode is None or trace.startswith("Timeout"):
        raise CaseError(f"{name}: took longer than {time_limit} s{where}; --time-limit SECONDS allows more")
    raise CaseError(f"{name}: {_describe_end(returncode)}{where}")


def serve(folder: str) -> None:
    """Answer one request of :func:`call`, in the new process, and end it."""
    _end_with_parent()
    files = Path(folder)
    function, arguments, name, time_limit = pickle.loads((files / REQUEST).read_bytes())
    with (files / TRACE).open("w") as trace:
        faulthandler.enable(trace)
        faulthandler.dump_traceback_later(time_limit, exit=True, file=trace)
        try:
            result = function(*arguments)
        except CaseError as error:
            result = error
        except BaseException as error:  # KeyboardInterrupt too: it is the user's code that raises it here
            location = find_location(error)
            result = CaseError(f"{name}: {describe_exception(error)}" + (f" ({location})" if location else ""))
        content = pickle.dumps(result)
        unfinished = files / f"{RESULT}.part"
        unfinished.write_bytes(content)
        unfinished.rename(files / RESULT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of the user's code may still run


def _end_with_parent() -> None:
    """End this process when standard input, a pipe from the parent, is closed; the user's code sees no input."""
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, and on POSIX all of its session that are left, such as the workers of a DataLoader."""
    if POSIX:
        with suppress(ProcessLookupError, PermissionError):  # none is left; macOS does not permit it for a zombie
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _describe_end(returncode: int) -> str:
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = str(-returncode)
        return f"ended by signal {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
    return f"the process ended with exit code {returncode} before there was a result"
