"""Promise: the script that measures single kernels compares the same results, and reads its clock's ratios."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from compare.speed.correctness import relative_error
from manualgrad import kernels
from scripts import cuda_kernel_speed as script
from tests.compare.test_cuda_speed import FakeTimer

EAGER = {"eager": (False, lambda step: step)}


@pytest.fixture
def small(monkeypatch, restore_kernels) -> None:
    """Small layers in the place of those that are measured, by formulas, which take no compilation."""
    kernels.choose("off")
    monkeypatch.setattr(
        script, "CONVOLUTIONS", {"few": ((2, 5, 6, 7), 3, 3, 2, 1), "first": ((2, 1, 5, 5), 2, 2, 1, 0)}
    )
    monkeypatch.setattr(script, "POOLINGS", {"few": ((2, 3, 7, 6), 3, 2, 1)})
    monkeypatch.setattr(script, "LOSSES", {"few": (3, 4)})


def measure(group: script.Group, timer: FakeTimer):
    return script.measure(group, timer, device="cpu", modes=EAGER, rounds=2, seconds=1e-6, limit_size=8)


def test_both_sides_of_each_group_have_the_results_of_float64(small) -> None:
    groups = script.groups("cpu")
    assert len({group.name for group in groups}) == len(groups) == 5 * 3 + 2 * 2 + 1
    for group in groups:
        assert len(group.subjects) == (2 if "conv2d" in group.name and "grad_input" not in group.name else 1)
        dtype, _ = script.PRECISIONS[group.precision]
        for subject, layout in itertools.product(group.subjects[:1], ("contiguous", "channels_last")):
            native = subject.make("native", layout, False)()
            expected = subject.expected("native", layout) if subject.expected else native
            for side in ("ours", "native"):
                for actual, exact in zip(subject.make(side, layout, False)(), expected, strict=True):
                    assert actual.dtype is dtype
                    assert relative_error(actual, exact) <= 2 * torch.finfo(dtype).eps  # sums of some 20 products


def test_ratios_errors_and_wrong_results_are_told(small) -> None:
    timer, group = FakeTimer(), script.groups("cpu")[0]
    seconds = {("ours", "contiguous"): 3.0, ("ours", "channels_last"): 1.0}
    seconds |= {("native", "contiguous"): 4.0, ("native", "channels_last"): 5.0}

    def slow(subject, factor: float, error: float):
        def make(side, layout, compiled):
            step = subject.make(side, layout, compiled)

            def timed():
                timer.now += (factor if side == "ours" else 1.0) * seconds[side, layout]
                return [result * (1 + error) if side == "ours" else result for result in step()]

            return None if compiled else timed

        return replace(subject, make=make)

    few, first = group.subjects
    slowed = replace(group, subjects=[slow(few, 1.0, 0.0), slow(first, 4.0, 1e-3)])
    lines = script.summary(slowed, measure(slowed, timer))
    assert lines[0].startswith("  few: 1000000.0 µs (channels_last), 0.25 x native's 4000000.0 µs (contiguous)")
    assert lines[-2] == "conv2d forward, float32: geometric mean 0.50, at most 1.00 (first)"
    assert lines[-1] == "conv2d forward, float32: errors above 2 x native's + 2 ulp: first"
    wrong = replace(group, subjects=[slow(few, 1.0, 1.0)])
    lines = script.summary(wrong, measure(wrong, timer))
    assert "no comparison" in lines[0] and lines[1].startswith("  wrong: few: ours, contiguous, eager")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the measurement would begin")
def test_without_a_gpu_it_says_so(capsys) -> None:
    assert script.main([]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err
