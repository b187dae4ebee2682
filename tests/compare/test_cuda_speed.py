"""The comparison of speed on CUDA, with a clock of its own and on the CPU: what is measured, named and refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import manualgrad as mg
from compare.__main__ import main
from compare.models.torchvision_models import ModelOptions
from compare.report import as_text
from compare.sections import Picture
from compare.speed import cuda_subjects
from compare.speed.correctness import relative_error
from compare.speed.cuda_benchmark import CUDA_MODES, PRECISIONS, CudaRow, CudaSpeed, compare_cuda_speed, flags
from compare.speed.cuda_network import network_subject
from compare.speed.cuda_section import fastest_sentence, section
from compare.speed.cuda_subjects import Subject, model_subject, operation_subject
from compare.speed.timer import WallTimer

OPERATIONS = {
    "relu": (lambda x: mg.relu(x, subgradient=0), F.relu, ((2, 3),)),
    "convolution": cuda_subjects._convolution((2, 2, 5, 5), (4, 2, 3, 3), padding=1),
    "loss": (mg.softmax_cross_entropy, F.cross_entropy, ((4, 3), ())),
}


class FakeTimer:
    """Each step takes as many seconds as the work that it adds to ``now``."""

    now = 0.0

    def mark(self) -> float:
        return self.now

    def seconds(self, marks):
        return [after - before for before, after in itertools.pairwise(marks)]


def slow_subject(timer: FakeTimer, seconds: dict[tuple[str, str], float], wrong: str = "") -> Subject:
    """A subject whose steps take these seconds, by side and layout; those of the side ``wrong`` are wrong."""

    def make(side, layout, compiled):
        def step():
            timer.now += seconds[side, layout]
            a = torch.ones(4, 4)
            return [a @ a + (side == wrong)]

        return step

    return Subject("toy", make, 1000)


def test_times_ratios_and_the_fastest_are_those_of_the_clock() -> None:
    timer = FakeTimer()
    seconds = {("ours", "contiguous"): 2.0, ("ours", "channels_last"): 1.0}
    seconds |= {("native", "contiguous"): 4.0, ("native", "channels_last"): 5.0}

    def fail(step):
        raise RuntimeError("operation failed due to a previous error during capture\nmore")

    modes = {"eager": (False, lambda step: step), "CUDA graph": (False, fail)}
    result = compare_cuda_speed(
        [slow_subject(timer, seconds)], timer, device="cpu", modes=modes, rounds=3, limit_size=8
    )
    assert {(row.side, row.layout): row.seconds for row in result.rows if row.precision == "default"} == seconds
    assert len(result.rows) == 8 and result.flops == {"toy": 2 * 4**3} and not result.wrong
    assert {label for label, _ in result.not_measured} == {
        f"toy: {side}, {layout}, CUDA graph" for side, layout in seconds
    }
    assert result.not_measured[0][1] == "operation failed due to a previous error during capture"
    report = section(result)
    sentence = "toy, float32: the fastest is ours, channels_last, eager; ours at its fastest takes 0.25 x native's"
    assert any(text.startswith(sentence) for text in report.text) and not report.failures
    assert "ours, channels_last, eager" in as_text(report)


def test_a_wrong_result_is_a_failure_and_has_no_time() -> None:
    timer = FakeTimer()
    seconds = {(side, layout): 1.0 for side in ("ours", "native") for layout in cuda_subjects.LAYOUTS}
    modes = {"eager": CUDA_MODES["eager"]}
    subject = slow_subject(timer, seconds, wrong="ours")
    result = compare_cuda_speed([subject], timer, device="cpu", modes=modes, rounds=1, limit_size=8)
    assert {row.side for row in result.rows} == {"native"} and len(result.wrong) == 4
    assert section(result).failures == result.wrong
    assert "no comparison, since a side has no time" in " ".join(section(result).text)


def test_results_stay_when_the_gpu_fails_later() -> None:
    """A kernel that reads memory that is not its own makes every later call of the process an error."""

    def fail(side, layout, compiled):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    timer = FakeTimer()
    seconds = {(side, layout): 1.0 for side in ("ours", "native") for layout in cuda_subjects.LAYOUTS}
    subjects = [slow_subject(timer, seconds), replace(slow_subject(timer, seconds), name="broken", make=fail)]
    modes = {"eager": CUDA_MODES["eager"]}
    result = compare_cuda_speed(subjects, timer, device="cpu", modes=modes, rounds=1, limit_size=8)
    assert {row.subject for row in result.rows} == {"toy"}
    reason = "CUDA error: an illegal memory access was encountered"
    errors = [f"broken, {precision}: {reason}" for precision in PRECISIONS.values()]
    assert section(result).errors == errors and not result.not_measured


@pytest.mark.parametrize("name", [*OPERATIONS, "model"])
def test_both_sides_of_a_subject_compute_the_same(name) -> None:
    if name == "model":
        subject = model_subject("squeezenet1_1", ModelOptions(32, 2, False, "cpu"))
    else:
        subject = operation_subject(name, "cpu", OPERATIONS)
    results = [subject.make(side, layout, False)() for side in ("ours", "native") for layout in subject.layouts]
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("side", "variant"), [
    ("native", "contiguous"), ("native", "channels_last"), ("ours", "autograd"), ("ours", "document's engine"),
    ("ours", "formulas"),
])  # fmt: skip
def test_a_step_of_the_network_has_the_gradients_of_float64(side, variant) -> None:
    subject = network_subject(2, "cpu")
    for actual, expected in zip(subject.make(side, variant, False)(), subject.expected(side, variant), strict=True):
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.slow
def test_each_contender_of_the_network_is_measured_and_plotted() -> None:
    modes = {"eager": CUDA_MODES["eager"], "compiled": (True, lambda step: step)}
    subject = network_subject(2, "cpu")
    native_without_compiling = replace(
        subject, make=lambda side, layout, compiled: subject.make(side, layout, compiled and side == "ours")
    )
    result = compare_cuda_speed(
        [native_without_compiling], WallTimer(), device="cpu", modes=modes, rounds=2, seconds=1e-4, limit_size=8
    )
    assert not result.wrong and not result.not_measured
    ours = {(row.layout, row.mode) for row in result.rows if row.side == "ours"}
    assert ours == {("autograd", "eager"), ("document's engine", "eager"), ("formulas", "eager")}
    assert all(row.error < 1e-5 for row in result.rows)
    tables_and_plots = section(result).parts
    plots = [part for part in tables_and_plots if isinstance(part, Picture)]
    assert len(plots) == 2 and "at batch 2: ours, autograd, eager" in plots[0].alt
    pytest.importorskip("matplotlib", reason="plots need the extra report")
    assert len(plots[0].draw().axes[0].lines) == 5  # three of ours; native in two modes


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["autograd", "document's engine", "formulas"])
def test_a_wrong_gradient_of_the_network_is_found(variant) -> None:
    subject = network_subject(2, "cpu")

    def make(side, layout, compiled):
        step = subject.make(side, layout, compiled)
        return (lambda: [2 * result for result in step()]) if layout == variant else step

    modes = {"eager": CUDA_MODES["eager"]}
    result = compare_cuda_speed(
        [replace(subject, make=make)], WallTimer(), device="cpu", modes=modes, rounds=1, seconds=1e-4, limit_size=8
    )
    assert len(result.wrong) == 2 and all(variant in sentence for sentence in result.wrong)


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    rows = [CudaRow("toy", "float32", side, "contiguous", "eager", rounds, 0.0, None)
            for side, rounds in (("ours", (1.0, 6.0, 2.0)), ("native", (2.0, 3.0, 8.0)))]  # fmt: skip
    result = CudaSpeed(rows, {"toy": 1}, bytes_per_second=1.0, flops_per_second={"float32": 1.0, "default": 1.0})
    assert "takes 0.50 x native's" in fastest_sentence(result, "toy", "float32")


def test_tf32_is_off_inside_and_as_before_outside() -> None:
    before = torch.backends.cudnn.allow_tf32
    with flags("float32"):
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
    with flags("default"):
        assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("arguments", "message"), [
    (["--device", "cuda"], "PyTorch finds no CUDA device"),
    (["--model", "torchvision:resnet18"], "--model is for speed on CUDA only"),
])  # fmt: skip
def test_without_a_gpu_one_line_says_so(capsys, tmp_path, arguments, message) -> None:
    assert main(["speed", *arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_empty_result_has_tables() -> None:
    assert len(section(CudaSpeed()).parts) == 2
