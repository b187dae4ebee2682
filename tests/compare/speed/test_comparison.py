"""Promise: a whole comparison runs in workers, and its section says what was not measured and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compare.sections import Picture, Table
from compare.speed import benchmark, compiled_benchmark
from compare.speed import section as speed_section
from compare.speed import worker as speed_worker
from compare.speed.contenders import OURS, RECURSION
from compare.speed.measurements import OURS_TUNED
from manualgrad.training import allocator
from tests.compare.speed.fakes import CHANNELS_LAST, CONTIGUOUS, SMALL, InProcessWorker, draw


def test_a_worker_returns_results_errors_and_its_exit_code() -> None:
    with speed_worker.Worker(threads=1, device="cpu", tuned=True) as worker:
        worker.call("make_network_contender", name=OURS, channels=[2, 3], batch=2)
        assert worker.allocator["tuned"] == (allocator.glibc() is not None)
        assert worker.call("calibrate", label=OURS, seconds=1e-6) >= 1
        assert len(worker.call("measure_time", label=OURS)["seconds"]) == 3
        with pytest.raises(speed_worker.WorkerError, match="KeyError: 'unknown'"):
            worker.call("measure_time", label="unknown")
        assert len(worker.call("measure_time", label=OURS)["seconds"]) == 3  # it still answers
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(speed_worker.WorkerError, match="ended with exit code -9 during measure_time"):
            worker.call("measure_time", label=OURS)


def test_a_worker_that_takes_too_long_is_killed() -> None:
    with (
        speed_worker.Worker(threads=1, device="cpu", tuned=False) as worker,
        pytest.raises(speed_worker.WorkerError, match="longer than 0 s"),
    ):
        worker.call("clear", timeout=0.01)
    assert worker.process.poll() is not None


class Bar:
    def __init__(self) -> None:
        self.total, self.count, self.descriptions = None, 0, []

    def update(self, n: int) -> None:
        self.count += n

    def set_description_str(self, desc: str) -> None:
        self.descriptions.append(desc)


def test_a_whole_comparison_and_its_section(
    in_process_worker: type[InProcessWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_benchmark, "find_compiler", lambda: None)
    bar = Bar()
    result = benchmark.compare_speed(
        networks=[SMALL], curve=(1, 3), rounds=2, seconds_per_measurement=1e-6, progress=bar
    )
    assert result.wrong_results == ()
    assert bar.count == len(bar.descriptions) and bar.count <= bar.total
    assert result.not_measured == (
        ("torch.compile", "it needs a C++ compiler, and none was found (CXX, g++, clang++, c++)"),
    )
    networks = [row for row in result.rows if row.kind == "network"]
    assert {row.batch for row in networks} == {1, 2, 3}
    in_own_process = [row.contender for row in networks if row.allocator == "default"]
    assert in_own_process == [OURS, OURS_TUNED, RECURSION, CONTIGUOUS, CHANNELS_LAST]
    for row in result.rows:
        phases = [phase for phase in row.seconds if phase != "step"]
        assert phases == (["all at once"] if row.contender == RECURSION else phases)
        assert row.seconds["step"].rounds == 2 and row.seconds["step"].median > 0
        assert (row.ratios["step"].median == 1) == (row.contender == row.baseline)

    section = speed_section.section(result)
    assert section.failures == []
    assert json.loads(json.dumps(section.data))["rows"][0]["subject"] == "conv2d, first"
    titles = [part.title for part in section.parts]
    assert len(set(titles)) == len(titles)
    assert sum(isinstance(part, Picture) for part in section.parts) == 3
    for part in section.parts:
        if isinstance(part, Table):
            assert part.rows and all(len(row) == len(part.columns) for row in part.rows), part.title
    draw(section.parts)


@pytest.mark.parametrize("options", [{"rounds": 0}, {"seconds_per_measurement": 0}, {"networks": []}])
def test_a_comparison_without_rounds_time_or_networks_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one round"):
        benchmark.compare_speed(**options)


def test_compilation_that_does_not_fit_is_not_measured_with_its_reason(
    in_process_worker: type[InProcessWorker],
) -> None:
    result = benchmark.compare_speed(
        networks=[SMALL], curve=(), operations=False, rounds=1, seconds_per_measurement=1e-6, shipped=False,
        compile_seconds=0,
    )  # fmt: skip
    if compiled_benchmark.find_compiler():
        assert result.not_measured == (
            (f"torch.compile, network {SMALL}", "the 0 s for compiling and measuring were used up before"),
        )
    section = speed_section.section(result)
    assert section.parts[-1].title == "Not measured"
    assert {row.kind for row in result.rows} == {"network"}
