"""Promise: speed is a median of ratios of interleaved measurements; wrong results have no time; bytes are exact."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.style
import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from compare.sections import Picture, Table
from compare.speed import benchmark, compiled_benchmark, memory, timer
from compare.speed import contenders as speed_contenders
from compare.speed import operations as speed_operations
from compare.speed import section as speed_section
from compare.speed import worker as speed_worker
from compare.speed.contenders import NATIVE, OURS, RECURSION, Network
from compare.speed.correctness import describe_mismatches, relative_error, rounding_tolerance
from compare.speed.interleaving import Spread, fastest, interleave, ratios_by_round
from compare.speed.measurements import OURS_TUNED
from compare.speed.results import make_rows
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from manualgrad.training import allocator

SMALL = Network((2, 3), 2)
CONTIGUOUS, CHANNELS_LAST = NATIVE.values()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run on one thread: no test here needs speed, and more threads are slow on a loaded machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class FakeTimer:
    """Timer whose time advances only when a step advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        return self.now

    def seconds(self, marks: list[float]) -> list[float]:
        return timer.WallTimer().seconds(marks)


class InProcessWorker(speed_worker.Worker):
    """Worker without a process: methods run in this process, and calls are recorded."""

    calls: list[tuple[str, Any]]

    def __init__(self, *, threads: int, device: str, tuned: bool) -> None:
        self.methods = speed_worker.WorkerMethods()
        self.allocator = self.methods.set_up(torch.get_num_threads(), device, tuned)

    def call(self, method: str, timeout: float | None = None, **arguments: Any) -> Any:
        self.calls.append((method, arguments.get("label")))
        result = getattr(self.methods, method)(**arguments)
        return json.loads(json.dumps(result))  # as it arrives through the pipe

    def close(self) -> None:
        pass


@pytest.fixture
def in_process_worker(monkeypatch: pytest.MonkeyPatch) -> type[InProcessWorker]:
    monkeypatch.setattr(InProcessWorker, "calls", [], raising=False)
    monkeypatch.setattr(benchmark, "Worker", InProcessWorker)
    monkeypatch.setattr(compiled_benchmark, "Worker", InProcessWorker)
    monkeypatch.setattr(benchmark, "OPERATIONS_BATCH", 2)
    monkeypatch.setattr(allocator, "tune", lambda: allocator.Tuning(True, "not tuned in tests"))
    return InProcessWorker


# ------------------------------------------------------------------------------------- interleaving, ratios, timer


def test_measurements_are_interleaved_and_the_order_alternates() -> None:
    order: list[str] = []

    def measurement(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or len(order)

    results = interleave({name: measurement(name) for name in ("ours", "native")}, 3)
    assert order == ["ours", "native", "native", "ours", "ours", "native"]
    assert results == {"ours": [1, 4, 5], "native": [2, 3, 6]}


def test_ratio_is_the_median_of_ratios_within_a_round() -> None:
    # A machine that slows down threefold in two of five rounds: each round's ratio is still 0.5.
    native = [2.0, 2.0, 6.0, 6.0, 2.0]
    assert ratios_by_round([value / 2 for value in native], native) == Spread(0.5, 0.5, 0.5, 5)
    # The median of ratios is 1, the ratio of medians would be 2 / 3.
    assert ratios_by_round([1.0, 2.0, 9.0], [1.0, 4.0, 3.0]) == Spread(1.0, 0.75, 2.0, 3)
    with pytest.raises(ValueError, match="zip"):
        ratios_by_round([1.0], [1.0, 2.0])


def test_fastest_has_the_smallest_median() -> None:
    assert fastest({"a": [1.0, 1.0, 100.0], "b": [2.0, 2.0, 2.0]}) == "a"


def test_phases_are_timed_without_the_first_step() -> None:
    fake, durations = FakeTimer(), iter([(100.0, 100.0), (2.0, 3.0), (4.0, 5.0)])

    def step(mark: Callable[[], None]) -> None:
        mark()
        for duration in next(durations):
            fake.now += duration
            mark()
        fake.now += 50  # after the last mark: not timed

    assert timer.time_phases(step, 2, fake) == [3.0, 4.0]


def test_the_number_of_steps_fills_the_time_and_is_at_least_one() -> None:
    fake = FakeTimer()

    def step(mark: Callable[[], None]) -> None:
        mark()
        fake.now += 0.25
        mark()

    assert timer.num_steps_for(step, 1.0, fake) == 4
    assert timer.num_steps_for(step, 0.01, fake) == 1


def test_garbage_collection_is_off_while_timing() -> None:
    import gc

    enabled: list[bool] = []
    timer.time_phases(lambda mark: enabled.append(gc.isenabled()) or mark() or mark(), 2, timer.WallTimer())
    assert enabled == [True, False, False]
    assert gc.isenabled()


def test_rows_mark_the_faster_layout_of_each_side() -> None:
    seconds = {
        "manualgrad, contiguous": [2.0, 2.0, 2.0],
        "manualgrad, channels_last": [1.0, 1.5, 1.0],
        "PyTorch, contiguous": [4.0, 4.0, 4.0],
        "PyTorch, channels_last": [2.0, 3.0, 2.0],
    }
    sides = {label: "ours" if label.startswith("m") else "native" for label in seconds}
    measurements = {
        label: [{"seconds": [s / 2, s / 2], "page_faults": 7} for s in values] for label, values in seconds.items()
    }
    fields = {"kind": "operation", "subject": "relu", "channels": (2, 3), "batch": 10, "allocator": "tuned"}
    rows = make_rows(fields, sides, dict.fromkeys(seconds, ("forward", "backward")), measurements)
    assert [row.contender for row in rows if row.is_fastest_layout] == [
        "manualgrad, channels_last",
        "PyTorch, channels_last",
    ]
    assert {row.baseline for row in rows} == {"PyTorch, channels_last"}
    ours = rows[1]
    assert ours.ratios["step"] == ours.ratios["forward"] == Spread(0.5, 0.5, 0.5, 3)
    assert ours.seconds["step"].median == 1.0
    assert ours.images_per_second == 10
    assert ours.page_faults == 7
    assert make_rows(fields, {"manualgrad": "ours"}, {"manualgrad": ("forward",)}, {"manualgrad": []}) == []


# -------------------------------------------------------------------------------- wrong results are never timed


def test_every_operation_is_right() -> None:
    for name, operation in speed_operations.operations(4, (2, 3), 5).items():
        for layout in operation.layouts:
            assert speed_operations.Contender(operation, "ours", layout, "cpu").find_mismatches() == [], (
                name,
                layout,
            )


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 1.001


def returning_first_result(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Function that returns the result of its first call at every call."""
    first_result: list[Tensor] = []

    def call(*inputs: Tensor) -> Tensor:
        if not first_result:
            first_result.append(function(*inputs).detach())
        return first_result[0] + 0 * function(*inputs)

    return call


def max_pool_selecting_the_last_of_a_tie(x: Tensor) -> Tensor:
    return torch.nn.functional.max_pool2d(x.flip(2, 3), 2).flip(2, 3)


WRONG = {
    "a gradient is off by a thousandth": ("dense", lambda x, w, b: mg.dense(ScaledGradient.apply(x), w, b), "input"),
    "a gradient is negative": ("softmax", lambda z: 2 * mg.softmax(z).detach() - mg.softmax(z), "input"),
    "a kernel is not flipped": ("conv2d, second", lambda *t: mg.conv2d(*t, flip_kernel=False), "output"),
    "a bias is forgotten": ("dense", lambda x, w, b: mg.dense(x, w) + 0 * b.sum(), "bias"),
    "derivative 0 at zero": ("relu", lambda x: mg.relu(x, subgradient=0.0), "input"),
    "the last of a tie wins": ("max_pool2d", max_pool_selecting_the_last_of_a_tie, "input"),
    "flattened in another order": ("flatten", lambda x: torch.flatten(x, 1), "output"),
    "the sum instead of the mean": (
        "softmax_cross_entropy",
        lambda z, t: mg.softmax_cross_entropy(z, t, reduction="sum"),
        "output",
    ),
    "derivative 0 at zero, fused": (
        "conv2d_relu_max_pool2d, second",
        lambda *t: conv2d_relu_max_pool2d(*t, subgradient=0.0),
        "weight",
    ),
    "the result of an earlier call": ("conv2d, first", returning_first_result(mg.conv2d), "output"),
    "NaN": ("relu", lambda x: mg.relu(x) * float("nan"), "output"),
    "another shape": ("softmax", lambda z: mg.softmax(z)[:-1], "output"),
}


@pytest.mark.parametrize("defect", WRONG)
def test_a_wrong_operation_is_found(defect: str) -> None:
    name, function, tensor = WRONG[defect]
    operation = replace(speed_operations.operations(4, (2, 3), 5)[name], ours=function)
    sentences = speed_operations.Contender(operation, "ours", "contiguous", "cpu").find_mismatches()
    assert any(sentence.startswith(tensor) for sentence in sentences), sentences


def test_every_contender_is_right() -> None:
    for network in (SMALL, Network((2, 3), 1)):
        for name in speed_contenders.contender_names():
            assert speed_contenders.make_contender(name, network, "cpu").find_mismatches() == [], name


class ScaledReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) * 1.001


def test_a_wrong_contender_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    contender = speed_contenders.make_contender(OURS, SMALL, "cpu")
    contender.model.relu2 = ScaledReLU()
    assert any(sentence.startswith("loss is off") for sentence in contender.find_mismatches())

    descend = speed_contenders.backprop.descend

    def twice_the_last_bias(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        steps = descend(model, *args, **kwargs)
        with torch.no_grad():
            model.dense3.bias += steps.biases[-1]
        return steps

    monkeypatch.setattr(speed_contenders.backprop, "descend", twice_the_last_bias)
    sentences = speed_contenders.make_contender(RECURSION, SMALL, "cpu").find_mismatches()
    assert sentences and all(sentence.startswith("dense3.bias is off by 1 ") for sentence in sentences)


def test_weights_are_unchanged_by_the_check_and_by_steps() -> None:
    for name in speed_contenders.contender_names():
        contender = speed_contenders.make_contender(name, SMALL, "cpu")
        before = {key: value.clone() for key, value in contender.model.state_dict().items()}
        contender.find_mismatches()
        for _ in range(3):
            contender.step(lambda: None)
        for key, value in contender.model.state_dict().items():
            assert torch.allclose(value, before[key], atol=1e-6), (name, key)


def test_a_wrong_contender_is_a_failure_and_has_no_time(
    in_process_worker: type[InProcessWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        replace(option, operation=replace(option.operation, ours=lambda x: mg.relu(x) * 1.001))
        if option.title == "relu"
        else option
        for option in speed_operations.OPTIONS
    ]
    monkeypatch.setattr(speed_operations, "OPTIONS", options)
    monkeypatch.setattr(speed_contenders.backprop, "descend", _without_update)
    result = benchmark.compare_speed(
        networks=[SMALL], curve=(), rounds=1, seconds_per_measurement=1e-6, compiled=False
    )
    wrong = {(entry.subject, entry.contender) for entry in result.wrong_results}
    assert wrong == {("relu", f"{OURS}, {layout}") for layout in NATIVE} | {(str(SMALL), RECURSION)}
    timed = {(row.subject, row.contender) for row in result.rows}
    assert not wrong & timed
    assert (str(SMALL), OURS) in timed and ("relu", CONTIGUOUS) in timed
    calls = in_process_worker.calls
    after_check = calls[calls.index(("find_mismatches", RECURSION)) :]
    assert ("measure_time", RECURSION) not in after_check and ("calibrate", RECURSION) not in after_check

    section = speed_section.section(result)
    assert len(section.failures) == len(wrong)
    assert any(failure.startswith("relu: ") for failure in section.failures)
    assert any("3 were wrong and not timed" in sentence for sentence in section.text)
    (line,) = [row for part in section.parts if isinstance(part, Table) for row in part.rows
               if part.title.startswith("Operations") and row[0] == "relu"]  # fmt: skip
    assert line[1] is None and line[3:6] == ("wrong",) * 3
    _draw(section.parts)


def _without_update(model: nn.Module, *arguments: Any, eta: float) -> Any:
    return speed_contenders.backprop.backpropagate(model, *arguments, eta=eta)


def test_each_kind_of_mismatch_has_its_sentence() -> None:
    one, eps = torch.ones(3), torch.finfo(torch.float32).eps
    assert describe_mismatches({"x": one}, {"x": one.double()}, 0.0) == []
    assert describe_mismatches({}, {"x": one}, 1.0) == ["x is missing"]
    assert describe_mismatches({"x": one[:2]}, {"x": one}, 1.0) == ["x has the shape (2,) instead of (3,)"]
    assert describe_mismatches({"x": one * 1.5}, {"x": one}, 0.4)[0].startswith("x is off by 0.5 ")
    assert describe_mismatches({"x": one * float("inf")}, {"x": one}, 0.4) != []
    assert describe_mismatches({"x": one}, {"x": 0 * one}, 0.4) != []
    assert relative_error(0 * one, 0 * one) == 0
    assert rounding_tolerance(100, "cpu") == pytest.approx(40 * eps)


# ------------------------------------------------------------------------------------------------------- memory


def test_saved_bytes_are_exact() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    assert memory.saved_bytes(lambda: torch.relu(x), [x]) == memory.SavedBytes(own=3 * 5 * 4, given=0)  # its output
    assert memory.saved_bytes(lambda: mg.relu(x), [x]) == memory.SavedBytes(own=0, given=3 * 5 * 4)  # its input
    assert memory.saved_bytes(lambda: mg.relu(x + 1), [x]) == memory.SavedBytes(own=3 * 5 * 4, given=0)
    assert memory.saved_bytes(lambda: x + 1, [x]) == memory.SavedBytes(own=0, given=0)


def test_saved_bytes_count_a_storage_once_and_whole() -> None:
    x = torch.randn(10, requires_grad=True)

    def forward() -> Tensor:
        y = x + 1
        return y[:2] * y[2:4]  # two views of four numbers; all ten stay allocated

    assert memory.saved_bytes(forward, [x]) == memory.SavedBytes(own=40, given=0)


def test_saved_bytes_of_the_fused_layer_are_one_per_window() -> None:
    x, w = torch.randn(2, 3, 9, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    saved = memory.saved_bytes(lambda: conv2d_relu_max_pool2d(x, w), [x, w])
    assert saved == memory.SavedBytes(own=2 * 4 * 3 * 3, given=4 * (x.numel() + w.numel()))


def test_peak_memory_includes_a_buffer_that_the_step_frees() -> None:
    size = 96 * 2**20

    def step() -> None:
        torch.ones(size, dtype=torch.uint8)

    peak = memory.peak_memory(step, 2)
    if peak.step_bytes is None:
        pytest.skip(f"peak memory of a step: {peak.how}")
    assert 0.95 * size < peak.step_bytes < 1.1 * size
    assert peak.process_bytes > peak.step_bytes


def test_peak_memory_names_the_counter_that_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    peak = memory.peak_memory(lambda: None, 1)
    assert peak.step_bytes is None and "since the process began" in peak.how
    monkeypatch.setattr(memory, "_status", lambda name: None)
    peak = memory.peak_memory(lambda: None, 1)
    assert peak.step_bytes is None and ("ru_maxrss" in peak.how or "not measured" in peak.how)


# ---------------------------------------------------------------------------------------------------- allocator


def test_without_glibc_the_allocator_is_not_tuned_and_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.platform, "system", lambda: "Darwin")
    tuning = allocator.tune()
    assert not tuning.tuned and "Darwin, not glibc" in tuning.description
    assert allocator.trim() is False


@pytest.mark.parametrize(
    "refused,tuned,description",
    [((-4,), True, "refused M_MMAP_MAX; the others"), ((-1, -2, -4), False, "refused all")],
)
def test_settings_that_glibc_refuses_are_named(
    refused: tuple[int, ...], tuned: bool, description: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        @staticmethod
        def mallopt(code: int, value: int) -> int:
            return int(code not in refused)

    monkeypatch.setattr(allocator, "glibc", Library)
    tuning = allocator.tune()
    assert tuning.tuned is tuned and description in tuning.description


FAULTS = """
import ctypes, runpy, sys
allocator = runpy.run_path(sys.argv[1], run_name="allocator")
if allocator["glibc"]() is None:
    sys.exit("no glibc")
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults(size):
    before = allocator["page_faults"]()
    for _ in range(10):
        first, second = library.malloc(size), library.malloc(size)
        library.memset(first, 1, size); library.memset(second, 1, size)
        library.free(first); library.free(second)
    return allocator["page_faults"]() - before
default = faults(40 << 20)
allocator["tune"]()
faults(40 << 20)
print(default, faults(40 << 20))
"""  # noqa: E501


def test_tuning_avoids_page_faults() -> None:
    path = Path(allocator.__file__)
    run = subprocess.run([sys.executable, "-c", FAULTS, str(path)], capture_output=True, text=True, timeout=60)
    if "no glibc" in run.stderr:
        pytest.skip("no glibc here")
    default, tuned = map(int, run.stdout.split())
    assert default > 100 and tuned < default / 10


def test_a_process_with_the_default_allocator_is_not_tuned_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1:glibc.cpu.hwcaps=x")
    monkeypatch.setenv("KEPT", "yes")
    environment = allocator.env_without_malloc_tuning()
    assert "MALLOC_TRIM_THRESHOLD_" not in environment
    assert environment["GLIBC_TUNABLES"] == "glibc.cpu.hwcaps=x"
    assert environment["KEPT"] == "yes"


# --------------------------------------------------------------------------------------- worker processes, report


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
    _draw(section.parts)


def _draw(parts: Any) -> None:
    for style in ("default", "dark_background"):
        with matplotlib.style.context(style):
            for part in parts:
                if isinstance(part, Picture):
                    assert part.alt
                    part.draw().canvas.draw()


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
