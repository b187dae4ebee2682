"""Metrics of a run while it trains: a line of JSON for every step and epoch, and optional TensorBoard events.

tail -f runs/latest/metrics.jsonl
"""

from __future__ import annotations

import json
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from manualgrad.files import find_write_problem, write_atomic
from manualgrad.training.cli_exit import usage_error
from manualgrad.training.run import StepMetrics, TrainingRun

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"


class MetricsLogger:
    """Writer of ``metrics.jsonl`` in ``out`` and of events in ``log_dir``, with a progress bar on a terminal.

    Only rank 0 writes. A line is in the file as soon as its step is finished. A resumed run keeps the lines up to its
    step and continues after them; a run from step 0 starts a new file.

    Raises:
        OSError: a file cannot be written.
        CliExit: ``log_dir`` cannot be created, or TensorBoard is not installed.
    """

    def __init__(self, out: Path, log_dir: Path | None, run: TrainingRun) -> None:
        self._run = run
        self._bar: tqdm | None = None
        self._file: FileIO | None = None
        self._events: SummaryWriter | None = None
        if run.distributed.is_rank0:
            self._events = None if log_dir is None else _open_events(log_dir, run.step)
            self._path = out / METRICS_FILE
            write_atomic(self._path, b"".join(_lines_up_to(run.step, self._path)))
            self._file = self._path.open("ab", buffering=0)
            self._write(event="start", step=run.step, steps=run.num_steps, dataset=run.dataset.name, seed=run.seed)

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(self, *_: object) -> None:
        for resource in (self._bar, self._file, self._events):
            if resource is not None:
                resource.close()

    def log_step(self, metrics: StepMetrics) -> None:
        """Log one training step."""
        self._write(
            step=metrics.step,
            cost=metrics.loss,
            images=metrics.num_images,
            right=metrics.num_correct,
            learning_rate=metrics.learning_rate,
        )
        if self._events:
            self._events.add_scalar("cost/training", metrics.loss, metrics.step)
            self._events.add_scalar("learning rate", metrics.learning_rate, metrics.step)
        self._update_bar(metrics)

    def log_epoch(self, metrics: dict[str, Any]) -> None:
        """Log one epoch; ``metrics`` is the result of :meth:`manualgrad.training.run.TrainingRun.end_epoch`."""
        step = self._run.step
        self._write(step=step, **metrics)
        if self._events:
            self._events.add_scalar("cost/test", metrics["test_cost"], step)
            self._events.add_scalar("accuracy/training", metrics["accuracy"], step)
            self._events.add_scalar("accuracy/test", metrics["test_accuracy"], step)
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._run.distributed.print_rank0(
            "epoch {epoch}: loss {cost:.4f}, test loss {test_cost:.4f}, test accuracy {test_accuracy:.2f} %, "
            "{seconds:.1f} s of training".format(**metrics)
        )

    def flush(self) -> None:
        """Write buffered events. Call it before saving a checkpoint: a resumed run does not repeat them."""
        if self._events:
            self._events.flush()

    def _write(self, **values: Any) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(values, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _update_bar(self, metrics: StepMetrics) -> None:
        if self._bar is None:
            epochs, steps_before = self._run.epochs, metrics.step - 1
            epoch = epochs.epoch_of(steps_before)
            self._bar = tqdm(
                total=epochs.sizes[epoch],
                initial=epochs.step_in_epoch(steps_before) * epochs.batch_size,
                unit=" images",
                leave=False,
                desc=f"epoch {epoch + 1}",
                disable=None if self._run.distributed.is_rank0 else True,
            )
        self._bar.update(metrics.num_images)
        if metrics.step % 50 == 1 and not self._bar.disable:
            self._bar.set_postfix(loss=f"{metrics.loss:.4f}")


def _lines_up_to(step: int, path: Path) -> list[bytes]:
    """Complete lines of an earlier file for steps up to ``step``; none for step 0."""
    if step == 0 or not path.exists():
        return []
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            line_step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):  # cut off when the process was killed, or written by other software
            continue
        if isinstance(line_step, int) and line_step <= step and line.endswith(b"\n"):
            kept.append(line)
    return kept


def _open_events(log_dir: Path, step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        usage_error('--log-dir needs TensorBoard, which is not installed: pip install "manualgrad[tensorboard]"')
    if problem := find_write_problem(log_dir):
        usage_error(f"--log-dir {log_dir} cannot be written to: {problem}")
    return SummaryWriter(str(log_dir), purge_step=step + 1, flush_secs=10)
