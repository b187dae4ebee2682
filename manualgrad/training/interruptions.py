"""SIGINT and SIGTERM ask a run to stop between two steps; a second SIGINT stops it where it is."""

from __future__ import annotations

import os
import signal
from types import FrameType

ASKED = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Within ``with Interruption() as interruption``, ``interruption.signal`` is the number of the signal that came,
    or 0. The exit code that says so is 128 more: 130 for SIGINT, 143 for SIGTERM.

    After the first signal, SIGINT has the effect that the system gives it: the process ends at once, even where
    Python would not come to look, such as in a wait for another process.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.signal, self._silent = 0, silent

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in ASKED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self._silent:  # written past sys.stderr, which may be in the middle of a line
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: this step is finished and saved; Ctrl-C now stops at once\n".encode())
