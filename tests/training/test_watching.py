"""Promise: the metrics of a run can be read while it runs, and continue where it resumes."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.training.command_line import train
from tests.training.short_runs import at_step, lines

pytestmark = pytest.mark.usefixtures("no_plots")


def test_the_metrics_of_a_step_are_written_at_once(common, tmp_path, monkeypatch):
    written = []
    at_step(monkeypatch, 13, lambda: written.extend(lines(tmp_path / "out")))
    assert train(*common).returncode == 0
    assert written[0]["event"] == "start" and written[0]["step"] == 0 and written[0]["steps"] == 20
    assert [line["step"] for line in written if "images" in line] == list(range(1, 14))
    assert {"cost", "images", "right", "learning_rate"} < written[-1].keys()
    (epoch,) = [line for line in written if "test_accuracy" in line]
    assert epoch["step"] == 10 and epoch["epoch"] == 1


def test_metrics_continue_where_the_run_resumes(common, tmp_path, uninterrupted, monkeypatch):
    """Lines after the checkpoint and a truncated line are removed, so every step has one line."""
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(*common).returncode == 143
    path = tmp_path / "out" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 8, "cost": 1.0}\n{"step": 9, "co')
    assert train(*common, "--resume", "auto").returncode == 0
    drop_seconds = [{key: value for key, value in line.items() if key != "seconds"}
                    for line in lines(tmp_path / "out") if line.get("event") is None]  # fmt: skip
    assert drop_seconds == [{key: value for key, value in line.items() if key != "seconds"}
                            for line in lines(uninterrupted) if line.get("event") is None]  # fmt: skip
    assert [line["step"] for line in lines(tmp_path / "out") if line.get("event") == "start"] == [0, 7]


def test_tensorboard_events_have_every_step(uninterrupted):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(uninterrupted / "events"))
    events.Reload()
    tags = {"cost/training", "learning rate", "cost/test", "accuracy/training", "accuracy/test"}
    assert set(events.Tags()["scalars"]) == tags
    losses = [(line["step"], line["cost"]) for line in lines(uninterrupted) if "images" in line]
    scalars = [(event.step, event.value) for event in events.Scalars("cost/training")]
    assert [step for step, _ in scalars] == [step for step, _ in losses]
    assert [value for _, value in scalars] == pytest.approx([loss for _, loss in losses])
    assert [event.step for event in events.Scalars("accuracy/test")] == [10, 20]


def test_without_tensorboard_the_error_names_the_extra(common, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = train(*common, "--log-dir", tmp_path / "events")
    assert result.returncode == 2
    assert 'not installed: pip install "manualgrad[tensorboard]"' in result.stderr
    assert not (tmp_path / "events").exists()
