"""What a run says while it runs: a line of JSON for every step and epoch, and TensorBoard's events if wanted.

tail -f runs/latest/metrics.jsonl
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from manualgrad.files import write_whole
from manualgrad.training.endings import fail
from manualgrad.training.run import Run, Step

LINES = "metrics.jsonl"


class Records:
    """``metrics.jsonl`` in ``out``, events in ``log_dir``, and on a terminal a bar; of several processes the first's.

    A line is in the file as soon as its step is taken. A run that is taken up continues what is there up to its step;
    what was written after it is cut off. A run from the start begins anew.

    Raises:
        OSError: a file cannot be written.
        Ended: ``log_dir`` cannot be made, or TensorBoard is not installed.
    """

    def __init__(self, out: Path, log_dir: Path | None, run: Run) -> None:
        self._run, self._bar, self._file, self._events = run, None, None, None
        if run.processes.is_first:
            self._events = None if log_dir is None else _writer(log_dir, run.step)
            self._path = out / LINES
            write_whole(self._path, b"".join(_lines_up_to(run.step, self._path)))
            self._file = self._path.open("ab", buffering=0)
            self._write(event="start", step=run.step, steps=run.steps, dataset=run.dataset.name, seed=run.seed)

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (self._bar, self._file, self._events):
            if opened is not None:
                opened.close()

    def step(self, step: Step) -> None:
        """After every step."""
        line = asdict(step)
        self._write(step=line.pop("number"), **line)
        if self._events:
            self._events.add_scalar("cost/training", step.cost, step.number)
            self._events.add_scalar("learning rate", step.learning_rate, step.number)
        self._show(step)

    def epoch(self, epoch: dict[str, Any]) -> None:
        """After every epoch, what :meth:`manualgrad.training.run.Run.close_epoch` returned."""
        step = self._run.step
        self._write(step=step, **epoch)
        if self._events:
            self._events.add_scalar("cost/test", epoch["test_cost"], step)
            self._events.add_scalar("accuracy/training", epoch["accuracy"], step)
            self._events.add_scalar("accuracy/test", epoch["test_accuracy"], step)
        self._bar.close()
        self._bar = None
        self._run.processes.say("epoch {epoch}: cost {cost:.4f}, test cost {test_cost:.4f}, test accuracy "
                                "{test_accuracy:.2f} %, {seconds:.1f} s of training".format(**epoch))  # fmt: skip

    def flush(self) -> None:
        """Before a checkpoint: the events of its steps will not be made again."""
        if self._events:
            self._events.flush()

    def _write(self, **line: Any) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _show(self, step: Step) -> None:
        run = self._run
        if self._bar is None:
            epochs, before = run.epochs, step.number - 1
            number = epochs.epoch(before)
            self._bar = tqdm(
                total=epochs.sizes[number], initial=epochs.place(before) * epochs.batch_size, unit=" images",
                leave=False, desc=f"epoch {number + 1}", disable=None if run.processes.is_first else True,
            )  # fmt: skip
        self._bar.update(step.images)
        if step.number % 50 == 1 and not self._bar.disable:
            self._bar.set_postfix(cost=f"{step.cost:.4f}")


def _lines_up_to(step: int, path: Path) -> list[bytes]:
    """What is worth keeping of an earlier file: whole lines, of steps that will not be taken again."""
    if step == 0 or not path.exists():
        return []
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            number = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):  # cut off by a kill, or not ours
            continue
        if isinstance(number, int) and number <= step and line.endswith(b"\n"):
            kept.append(line)
    return kept


def _writer(log_dir: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fail('--log-dir needs TensorBoard, which is not installed: pip install "manualgrad[tensorboard]"')
    try:
        return SummaryWriter(str(log_dir), purge_step=step + 1, flush_secs=10)
    except OSError as error:
        fail(f"--log-dir {log_dir} cannot be written to: {error.strerror or error}")
