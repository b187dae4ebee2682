"""Standard streams of the command: closed ones, other encodings, and readers that end before the run does."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def usable_streams() -> Iterator[None]:
    """Make stdout and stderr usable, whatever the process was started with.

    A closed stream becomes the null device. Characters that a stream's encoding lacks are written as escapes. If a
    stream cannot be written to at the end, the exit code of Python stays that of the command.
    """
    # Otherwise a file that the run opens would get the number of a closed stream, and messages to that number.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # open as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has what it wanted, as in --help | head -1
            _discard(sys.stdout)
        except OSError as error:
            _discard(sys.stdout)
            print_error(f"stdout cannot be written to: {error.strerror}")


def print_line(text: str) -> None:
    """Print a line to stdout. If its reader has ended or the disk is full, say so on stderr and continue."""
    try:
        print(text, flush=True)
    except OSError as error:
        _discard(sys.stdout)
        print_error(f"warning: stdout cannot be written to ({error.strerror}): the run continues without it")


def print_error(text: str) -> None:
    """Print a line to stderr. If that fails, no stream is left for a message, and the exit code says the rest."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Send what the stream holds, and everything that follows, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
