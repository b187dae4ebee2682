"""Program that runs the training command in forks of itself, with broken streams, signals and a second run.

A fork needs no time to import torch. Arguments: a folder for --data-dir, and an empty one, to which the cases write.
The program prints a JSON object with the exit code of each case. test_process_faults.py checks it and the files.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from manualgrad import kernels
from manualgrad.training import command, plots

DIGITS, WORK = sys.argv[1:]
OPTIONS = ("--dataset", "fashion-mnist", "--data-dir", DIGITS, "--limit", "64", "--epochs", "1", "--batch-size", "8")
ENDLESS = ("--epochs", "1000000", "--learning-rate", "0")


def start(name: str, *arguments: str, prepare: Callable[[], object] = lambda: None, out: str | None = None) -> int:
    """Start the command in a fork whose stdout and stderr are files in the folder of the case; return its number."""
    folder = Path(WORK) / name
    folder.mkdir()
    pid = os.fork()
    if pid:
        return pid
    for descriptor, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / stream, os.O_WRONLY | os.O_CREAT), descriptor)
    open_streams()
    prepare()
    code = 99
    try:
        code = command.main([*OPTIONS, *arguments, "--out", out or str(folder / "out")])
    except SystemExit as system_exit:
        code = int(system_exit.code or 0)
    except BaseException:
        (folder / "traceback").write_text(traceback.format_exc())
    os._exit(code)


def end(pid: int) -> int:
    """Exit code of a case, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def close_streams() -> None:
    """Close stdin, stdout and stderr, as ``<&- >&- 2>&-`` does."""
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    sys.stdout = sys.stderr = None


def break_pipe(*descriptors: int) -> None:
    """Replace descriptors by pipes whose reader has ended, as ``| head -1`` leaves them."""
    reader, writer = os.pipe()
    os.close(reader)
    for descriptor in descriptors:
        os.dup2(writer, descriptor)
    open_streams()


def open_streams(encoding: str = "utf-8") -> None:
    """Make sys.stdout and sys.stderr for descriptors 1 and 2, as Python does when it starts."""
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115  # open until the fork ends
    sys.stderr = open(2, "w", encoding=encoding, closefd=False)  # noqa: SIM115


def wait_for_steps(name: str) -> None:
    """Wait until the run of a case has taken a step."""
    metrics = Path(WORK) / name / "out" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 1):
        if (Path(WORK) / name / "traceback").exists():
            sys.exit((Path(WORK) / name / "traceback").read_text())
        time.sleep(0.01)


def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    codes = {}
    codes["closed"] = end(start("closed", prepare=close_streams))
    codes["unread"] = end(start("unread", prepare=lambda: break_pipe(1)))
    codes["help"] = end(start("help", "--help", prepare=lambda: break_pipe(1)))
    codes["ascii"] = end(start("ascii", "--help", prepare=lambda: open_streams("ascii")))

    for number, name in ((signal.SIGTERM, "terminated"), (signal.SIGHUP, "hung up")):
        pid = start(name, *ENDLESS, prepare=lambda: break_pipe(1, 2))
        wait_for_steps(name)
        os.kill(pid, number)
        codes[name] = end(pid)

    holder = start("holder", *ENDLESS)
    wait_for_steps("holder")
    shared = str(Path(WORK) / "holder" / "out")
    codes["second"] = end(start("second", out=shared))
    os.kill(holder, signal.SIGKILL)
    codes["holder"] = end(holder)
    codes["successor"] = end(start("successor", out=shared))
    print(json.dumps(codes | {"number of holder": holder}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    kernels.available()  # compiled or loaded once, for all forks
    for function in ("training_curves", "confusion_matrix", "kernel_images", "misclassified_images", "save_png"):
        setattr(plots, function, lambda *_: None)
    main()
