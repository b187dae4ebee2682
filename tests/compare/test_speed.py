"""The speed comparison: turns and ratios on a clock of our own, what is wrong is never timed, bytes are exact."""

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
from compare.speed import clock, memory
from compare.speed import measuring as speed
from compare.speed import networks as speed_networks
from compare.speed import operations as speed_operations
from compare.speed import rows as speed_rows
from compare.speed import section as speed_section
from compare.speed import worker as speed_worker
from compare.speed.check import distance, mistakes, tolerance
from compare.speed.networks import DOCUMENT, NATIVE, OURS, Network
from compare.speed.turns import Spread, fastest, ratio, take_turns
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from manualgrad.training import allocator

SMALL = Network((2, 3), 2)
CONTIGUOUS, CHANNELS_LAST = NATIVE.values()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nothing here is about speed, and threads that wait for each other are slow where others work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class FakeClock:
    """Time passes when a step says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        return self.now

    def seconds(self, marks: list[float]) -> list[float]:
        return clock.WallClock().seconds(marks)


class Here(speed_worker.Worker):
    """A worker without a process: what is asked is done here, and noted."""

    asked: list[tuple[str, Any]]

    def __init__(self, *, threads: int, device: str, tuned: bool) -> None:
        self.bench = speed_worker.Bench()
        self.set_up = self.bench.set_up(torch.get_num_threads(), device, tuned)

    def ask(self, method: str, timeout: float | None = None, **arguments: Any) -> Any:
        self.asked.append((method, arguments.get("label")))
        answer = getattr(self.bench, method)(**arguments)
        return json.loads(json.dumps(answer))  # as it would come through the pipe

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[Here]:
    monkeypatch.setattr(Here, "asked", [], raising=False)
    monkeypatch.setattr(speed, "Worker", Here)
    monkeypatch.setattr(speed, "OPERATIONS_BATCH", 2)
    monkeypatch.setattr(allocator, "tune", lambda: allocator.Tuning(True, "left alone for the test"))
    return Here


# ------------------------------------------------------------------------------------------ turns, ratios, clock


def test_turns_alternate_and_their_order_too() -> None:
    order: list[str] = []

    def turn(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or len(order)

    results = take_turns({name: turn(name) for name in ("ours", "native")}, 3)
    assert order == ["ours", "native", "native", "ours", "ours", "native"]
    assert results == {"ours": [1, 4, 5], "native": [2, 3, 6]}


def test_ratio_is_the_median_of_ratios_within_a_round() -> None:
    # A machine that slows down threefold in two of five rounds: each round's ratio is still 0.5.
    native = [2.0, 2.0, 6.0, 6.0, 2.0]
    assert ratio([value / 2 for value in native], native) == Spread(0.5, 0.5, 0.5, 5)
    # Where the two differ, it is not the ratio of medians, 2 / 3.
    found = ratio([1.0, 2.0, 9.0], [1.0, 4.0, 3.0])
    assert found == Spread(1.0, 0.75, 2.0, 3)
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0], [1.0, 2.0])


def test_fastest_is_by_the_median() -> None:
    assert fastest({"a": [1.0, 1.0, 100.0], "b": [2.0, 2.0, 2.0]}) == "a"


def test_bout_times_phases_and_leaves_out_the_first_step() -> None:
    fake, costs = FakeClock(), iter([(100.0, 100.0), (2.0, 3.0), (4.0, 5.0)])

    def step(mark: Callable[[], None]) -> None:
        mark()
        for cost in next(costs):
            fake.now += cost
            mark()
        fake.now += 50  # after the last mark: nobody's

    assert clock.bout(step, 2, fake) == [3.0, 4.0]


def test_calls_fill_the_time_and_are_at_least_one() -> None:
    fake = FakeClock()

    def step(mark: Callable[[], None]) -> None:
        mark()
        fake.now += 0.25
        mark()

    assert clock.calls_for(step, 1.0, fake) == 4
    assert clock.calls_for(step, 0.01, fake) == 1


def test_garbage_collection_is_off_while_timing() -> None:
    import gc

    seen: list[bool] = []
    clock.bout(lambda mark: seen.append(gc.isenabled()) or mark() or mark(), 2, clock.WallClock())
    assert seen == [True, False, False]
    assert gc.isenabled()


def test_rows_take_the_better_layout_of_each_side() -> None:
    turns = {
        "manualgrad, contiguous": [2.0, 2.0, 2.0],
        "manualgrad, channels_last": [1.0, 1.5, 1.0],
        "PyTorch, contiguous": [4.0, 4.0, 4.0],
        "PyTorch, channels_last": [2.0, 3.0, 2.0],
    }
    sides = {label: "ours" if label.startswith("m") else "native" for label in turns}
    results = {label: [{"seconds": [s / 2, s / 2], "faults": 7} for s in values] for label, values in turns.items()}
    about = {"kind": "operation", "subject": "relu", "channels": (2, 3), "batch": 10, "allocator": "tuned"}
    rows = speed_rows.rows_of(about, sides, dict.fromkeys(turns, ("forward", "backward")), results)
    assert [row.contender for row in rows if row.better] == ["manualgrad, channels_last", "PyTorch, channels_last"]
    assert {row.against for row in rows} == {"PyTorch, channels_last"}
    ours = rows[1]
    assert ours.ratios["step"] == ours.ratios["forward"] == Spread(0.5, 0.5, 0.5, 3)
    assert ours.seconds["step"].median == 1.0
    assert ours.images_per_second == 10
    assert ours.faults == 7
    assert speed_rows.rows_of(about, {"manualgrad": "ours"}, {"manualgrad": ("forward",)}, {"manualgrad": []}) == []


# --------------------------------------------------------------------------------- what is wrong is never timed


def test_every_operation_is_right_as_it_is() -> None:
    for name, operation in speed_operations.operations(4, (2, 3), 5).items():
        for layout in operation.layouts:
            assert speed_operations.Contender(operation, "ours", layout, "cpu").wrong() == [], (name, layout)


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 1.001


def remembering(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Answers every question with the answer to the first."""
    answered: list[Tensor] = []

    def first(*inputs: Tensor) -> Tensor:
        if not answered:
            answered.append(function(*inputs).detach())
        return answered[0] + 0 * function(*inputs)

    return first


def native_max_pool_that_takes_the_last_of_a_tie(x: Tensor) -> Tensor:
    return torch.nn.functional.max_pool2d(x.flip(2, 3), 2).flip(2, 3)


WRONG = {
    "a gradient is off by a thousandth": ("dense", lambda x, w, b: mg.dense(ScaledGradient.apply(x), w, b), "input"),
    "a gradient is negative": ("softmax", lambda z: 2 * mg.softmax(z).detach() - mg.softmax(z), "input"),
    "a kernel is not flipped": ("conv2d, second", lambda *t: mg.conv2d(*t, flip_kernel=False), "output"),
    "a bias is forgotten": ("dense", lambda x, w, b: mg.dense(x, w) + 0 * b.sum(), "bias"),
    "another derivative at zero": ("relu", lambda x: mg.relu(x, subgradient=0.0), "input"),
    "the last of a tie": ("max_pool2d", native_max_pool_that_takes_the_last_of_a_tie, "input"),
    "another order": ("flatten", lambda x: torch.flatten(x, 1), "output"),
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
    "an answer from before": ("conv2d, first", remembering(mg.conv2d), "output"),
    "NaN": ("relu", lambda x: mg.relu(x) * float("nan"), "output"),
    "another shape": ("softmax", lambda z: mg.softmax(z)[:-1], "output"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_operation_is_seen(what: str) -> None:
    name, function, about = WRONG[what]
    operation = replace(speed_operations.operations(4, (2, 3), 5)[name], ours=function)
    sentences = speed_operations.Contender(operation, "ours", "contiguous", "cpu").wrong()
    assert any(sentence.startswith(about) for sentence in sentences), sentences


def test_every_network_is_right_as_it_is() -> None:
    for network in (SMALL, Network((2, 3), 1)):
        for name in speed_networks.contenders():
            assert speed_networks.contender(name, network, "cpu").wrong() == [], name


class NativeReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) * 1.001


def test_a_wrong_network_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    contender = speed_networks.contender(OURS, SMALL, "cpu")
    contender.model.relu2 = NativeReLU()
    assert any(sentence.startswith("cost is off") for sentence in contender.wrong())

    descend = speed_networks.backprop.descend

    def twice_the_last_bias(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        steps = descend(model, *args, **kwargs)
        with torch.no_grad():
            model.dense3.bias += steps.biases[-1]
        return steps

    monkeypatch.setattr(speed_networks.backprop, "descend", twice_the_last_bias)
    sentences = speed_networks.contender(DOCUMENT, SMALL, "cpu").wrong()
    assert sentences and all(sentence.startswith("dense3.bias is off by 1 ") for sentence in sentences)


def test_weights_are_the_same_after_the_check_and_after_steps() -> None:
    for name in speed_networks.contenders():
        contender = speed_networks.contender(name, SMALL, "cpu")
        before = {key: value.clone() for key, value in contender.model.state_dict().items()}
        contender.wrong()
        for _ in range(3):
            contender.step(lambda: None)
        for key, value in contender.model.state_dict().items():
            assert torch.allclose(value, before[key], atol=1e-6), (name, key)


def test_what_is_wrong_is_a_failure_and_has_no_time(here: type[Here], monkeypatch: pytest.MonkeyPatch) -> None:
    right = mg.relu
    monkeypatch.setattr(mg, "relu", lambda x: right(x) * 1.001)
    monkeypatch.setattr(speed_networks.backprop, "descend", _moving_nothing)
    result = speed.compare_speed(networks=[SMALL], curve=(), rounds=1, seconds_per_measurement=1e-6, compiled=False)
    wrong = {(one.subject, one.contender) for one in result.wrong}
    assert wrong == {("relu", f"{OURS}, {layout}") for layout in NATIVE} | {(str(SMALL), DOCUMENT)}
    timed = {(row.subject, row.contender) for row in result.rows}
    assert not wrong & timed
    assert (str(SMALL), OURS) in timed and ("relu", CONTIGUOUS) in timed
    last = here.asked.index(("wrong", DOCUMENT))
    assert ("bout", DOCUMENT) not in here.asked[last:] and ("calibrate", DOCUMENT) not in here.asked[last:]

    section = speed_section.section(result)
    assert len(section.failures) == len(wrong)
    assert any(failure.startswith("relu: ") for failure in section.failures)
    assert any("3 were wrong and not timed" in sentence for sentence in section.text)
    (line,) = [row for part in section.parts if isinstance(part, Table) for row in part.rows
               if part.title.startswith("Operations") and row[0] == "relu"]  # fmt: skip
    assert line[1] is None and line[3:6] == ("wrong",) * 3
    _draw(section.parts)


def _moving_nothing(model: nn.Module, *arguments: Any, eta: float) -> Any:
    return speed_networks.backprop.backpropagate(model, *arguments, eta=eta)


def test_mistakes_are_told_apart() -> None:
    one, eps = torch.ones(3), torch.finfo(torch.float32).eps
    assert mistakes({"x": one}, {"x": one.double()}, 0.0) == []
    assert mistakes({}, {"x": one}, 1.0) == ["x is missing"]
    assert mistakes({"x": one[:2]}, {"x": one}, 1.0) == ["x has the shape (2,) instead of (3,)"]
    assert mistakes({"x": one * 1.5}, {"x": one}, 0.4)[0].startswith("x is off by 0.5 ")
    assert mistakes({"x": one * float("inf")}, {"x": one}, 0.4) != []
    assert mistakes({"x": one}, {"x": 0 * one}, 0.4) != []
    assert distance(0 * one, 0 * one) == 0
    assert tolerance(100, "cpu") == pytest.approx(40 * eps)


# ------------------------------------------------------------------------------------------------------- memory


def test_saved_bytes_are_exact() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    assert memory.saved_bytes(lambda: torch.relu(x), [x]) == memory.Saved(own=3 * 5 * 4, given=0)  # its output
    assert memory.saved_bytes(lambda: mg.relu(x), [x]) == memory.Saved(own=0, given=3 * 5 * 4)  # its input
    assert memory.saved_bytes(lambda: mg.relu(x + 1), [x]) == memory.Saved(own=3 * 5 * 4, given=0)
    assert memory.saved_bytes(lambda: x + 1, [x]) == memory.Saved(own=0, given=0)


def test_saved_bytes_count_a_storage_once_and_whole() -> None:
    x = torch.randn(10, requires_grad=True)

    def forward() -> Tensor:
        y = x + 1
        return y[:2] * y[2:4]  # two views of four numbers; all ten stay

    assert memory.saved_bytes(forward, [x]) == memory.Saved(own=40, given=0)


def test_saved_bytes_of_the_fused_layer_are_one_a_window() -> None:
    x, w = torch.randn(2, 3, 9, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    saved = memory.saved_bytes(lambda: conv2d_relu_max_pool2d(x, w), [x, w])
    assert saved == memory.Saved(own=2 * 4 * 3 * 3, given=4 * (x.numel() + w.numel()))


def test_peak_sees_a_buffer_that_is_gone_when_the_step_ends() -> None:
    size = 96 * 2**20

    def step() -> None:
        torch.ones(size, dtype=torch.uint8)

    found = memory.peak(step, 2)
    if found.step is None:
        pytest.skip(f"peak of a step: {found.how}")
    assert 0.95 * size < found.step < 1.1 * size
    assert found.process > found.step


def test_peak_says_what_it_could_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_high_water", lambda: False)
    found = memory.peak(lambda: None, 1)
    assert found.step is None and "since the process began" in found.how
    monkeypatch.setattr(memory, "_status", lambda name: None)
    found = memory.peak(lambda: None, 1)
    assert found.step is None and ("ru_maxrss" in found.how or "no reading" in found.how)


# ---------------------------------------------------------------------------------------------------- allocator


def test_without_glibc_nothing_is_tuned_and_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.platform, "system", lambda: "Darwin")
    tuning = allocator.tune()
    assert not tuning.tuned and "Darwin, not glibc" in tuning.what
    assert allocator.trim() is False


@pytest.mark.parametrize(
    "refused,tuned,what", [((-4,), True, "refused M_MMAP_MAX; the others"), ((-1, -2, -4), False, "refused all")]
)
def test_what_glibc_refuses_is_told(
    refused: tuple[int, ...], tuned: bool, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        @staticmethod
        def mallopt(code: int, value: int) -> int:
            return int(code not in refused)

    monkeypatch.setattr(allocator, "glibc", Library)
    tuning = allocator.tune()
    assert tuning.tuned is tuned and what in tuning.what


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
shipped = faults(40 << 20)
allocator["tune"]()
faults(40 << 20)
print(shipped, faults(40 << 20))
"""  # noqa: E501


def test_tuning_ends_the_page_faults() -> None:
    path = Path(allocator.__file__)
    run = subprocess.run([sys.executable, "-c", FAULTS, str(path)], capture_output=True, text=True, timeout=60)
    if "no glibc" in run.stderr:
        pytest.skip("no glibc here")
    shipped, tuned = map(int, run.stdout.split())
    assert shipped > 100 and tuned < shipped / 10


def test_a_process_as_shipped_is_not_tuned_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1:glibc.cpu.hwcaps=x")
    monkeypatch.setenv("KEPT", "yes")
    environment = allocator.untouched_environment()
    assert "MALLOC_TRIM_THRESHOLD_" not in environment
    assert environment["GLIBC_TUNABLES"] == "glibc.cpu.hwcaps=x"
    assert environment["KEPT"] == "yes"


# -------------------------------------------------------------------------------------------- processes, report


def test_a_worker_answers_tells_its_errors_and_its_end() -> None:
    with speed_worker.Worker(threads=1, device="cpu", tuned=True) as worker:
        worker.ask("network", name=OURS, channels=[2, 3], batch=2)
        assert worker.set_up["tuned"] == (allocator.glibc() is not None)
        assert worker.ask("calibrate", label=OURS, seconds=1e-6) >= 1
        assert len(worker.ask("bout", label=OURS)["seconds"]) == 3
        with pytest.raises(speed_worker.WorkerError, match="KeyError: 'nobody'"):
            worker.ask("bout", label="nobody")
        assert len(worker.ask("bout", label=OURS)["seconds"]) == 3  # it goes on
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(speed_worker.WorkerError, match="ended with exit code -9 during bout"):
            worker.ask("bout", label=OURS)


def test_a_worker_that_takes_too_long_is_ended() -> None:
    with (
        speed_worker.Worker(threads=1, device="cpu", tuned=False) as worker,
        pytest.raises(speed_worker.WorkerError, match="longer than 0 s"),
    ):
        worker.ask("clear", timeout=0.01)
    assert worker.process.poll() is not None


class Bar:
    def __init__(self) -> None:
        self.total, self.done, self.said = None, 0, []

    def update(self, n: int) -> None:
        self.done += n

    def set_description_str(self, text: str) -> None:
        self.said.append(text)


def test_a_whole_comparison_and_its_section(here: type[Here], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_compiler", lambda: None)
    bar = Bar()
    result = speed.compare_speed(networks=[SMALL], curve=(1, 3), rounds=2, seconds_per_measurement=1e-6, progress=bar)
    assert result.wrong == ()
    assert bar.done == len(bar.said) and bar.done <= bar.total
    assert result.missing == (("torch.compile", "it needs a C++ compiler, and none is found (CXX, g++, clang++)"),)
    networks = [row for row in result.rows if row.kind == "network"]
    assert {row.batch for row in networks} == {1, 2, 3}
    shipped = [row.contender for row in networks if row.allocator == "as shipped"]
    assert shipped == [OURS, speed.TUNED_PROCESS, DOCUMENT, CONTIGUOUS, CHANNELS_LAST]
    for row in result.rows:
        parts = [phase for phase in row.seconds if phase != "step"]
        assert parts == (["all at once"] if row.contender == DOCUMENT else parts)
        assert row.seconds["step"].rounds == 2 and row.seconds["step"].median > 0
        assert (row.ratios["step"].median == 1) == (row.contender == row.against)

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
def test_a_comparison_of_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one round"):
        speed.compare_speed(**options)


def test_compiling_is_missing_with_its_reason(here: type[Here]) -> None:
    result = speed.compare_speed(
        networks=[SMALL], curve=(), operations=False, rounds=1, seconds_per_measurement=1e-6, shipped=False,
        compile_seconds=0,
    )  # fmt: skip
    if speed._compiler():
        assert result.missing == (
            (f"torch.compile, network {SMALL}", "the 0 s for compiling and measuring were used up before"),
        )
    section = speed_section.section(result)
    assert section.parts[-1].title == "Not measured"
    assert {row.kind for row in result.rows} == {"network"}
