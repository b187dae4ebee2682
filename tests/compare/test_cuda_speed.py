"""The comparison of speed on CUDA, with a clock of its own and on the CPU: what is measured, named and refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

import manualgrad as mg
from compare.__main__ import main
from compare.models.torchvision_models import ModelOptions
from compare.report import as_text
from compare.speed import cuda_subjects
from compare.speed.cuda_benchmark import CUDA_MODES, CudaSpeed, compare_cuda_speed, flags
from compare.speed.cuda_section import section
from compare.speed.cuda_subjects import Subject, model_subject, network_subject, operation_subject

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


@pytest.mark.parametrize("name", [*OPERATIONS, "network", "model"])
def test_both_sides_of_a_subject_compute_the_same(name) -> None:
    if name == "network":
        subject = network_subject(2, "cpu")
    elif name == "model":
        subject = model_subject("squeezenet1_1", ModelOptions(32, 2, False, "cpu"))
    else:
        subject = operation_subject(name, "cpu", OPERATIONS)
    results = [subject.make(side, layout, False)() for side in ("ours", "native") for layout in subject.layouts]
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


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
