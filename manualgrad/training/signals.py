"""Signal handling: SIGINT, SIGTERM or SIGHUP stops a run between two steps; a second SIGINT stops it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HANDLED = [signal.SIGINT, signal.SIGTERM]
HANGUP = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # the terminal was closed; Windows has no such signal


class SignalHandler:
    """Context manager that records SIGINT, SIGTERM and SIGHUP instead of acting on them.

    The exit code of a process that stops because of signal n is 128 + n: 130 for SIGINT, 143 for SIGTERM, 129 for
    SIGHUP. A process that ignores SIGHUP, as nohup makes it, continues to do so.

    After an exception SIGTERM is ignored until :func:`sigterm_as_before` ends, so that the message gets out.

    After the first signal, SIGINT gets the system's default action: it ends the process at once, even inside a call
    in which Python runs no handlers, such as waiting for another rank.

    Args:
        silent: print nothing when a signal arrives.

    Attributes:
        received: number of the first signal that arrived, or 0.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.received, self._silent = 0, silent

    def __enter__(self) -> SignalHandler:
        handled = HANDLED + [number for number in HANGUP if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._record) for number in handled}
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if exception_type is not None:  # torchrun sends it to a rank that has lost another and is about to say so
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self._silent:
            name = signal.Signals(number).name
            message = (
                f"\n{name}: stopping after the step in progress and saving a checkpoint; Ctrl-C now stops at once\n"
            )
            with suppress(OSError):  # stderr's reader or terminal is gone, and the run must still save
                os.write(2, message.encode())  # since the signal may have interrupted a write to sys.stderr


@contextmanager
def sigterm_as_before() -> Iterator[None]:
    """Give SIGTERM back the action that it has now, at the end."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is not previous:
            signal.signal(signal.SIGTERM, previous)
