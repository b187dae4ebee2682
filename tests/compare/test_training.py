"""Promise: training side by side passes right networks and names a wrong one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from compare.sections import Picture
from compare.training.checks import FirstSteps
from compare.training.result import OURS
from compare.training.section import section
from compare.training.side_by_side import compare_training
from manualgrad import DocumentCNN
from tests.compare.training_runs import MODEL, QUICK, SIZES, Bar


class ScaledGradient(DocumentCNN):
    """Network whose gradient of ``layer``, or of all layers, is multiplied by ``factor`` in ``dtypes``."""

    def __init__(self, *, factor, layer="", dtypes=(torch.float64, torch.float32), **options):
        super().__init__(**options, **SIZES)
        self.factor, self.layer, self.dtypes = factor, layer, dtypes

    def forward(self, x):
        if x.dtype in self.dtypes and torch.is_grad_enabled():
            for name, parameter in self.named_parameters():
                if name.startswith(self.layer) and parameter not in getattr(self, "hooked", ()):
                    parameter.register_hook(lambda g: g * self.factor)
            self.hooked = set(self.parameters())
        return super().forward(x)


class ShiftedLogits(DocumentCNN):
    """Network whose logits are off by a billionth."""

    def __init__(self, **options):
        super().__init__(**options, **SIZES)

    def forward(self, x):
        z = super().forward(x)
        return z + 1e-9 * torch.arange(z.shape[-1], dtype=z.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_right_networks_pass(small_digits, dtype):
    comparison = compare_training(small_digits, seeds=range(3), dtype=dtype, make_model=MODEL, **QUICK)
    assert comparison.failures == []
    assert all(len(check.allowed) == 6 for check in comparison.first_steps), "every step was judged"


@pytest.mark.parametrize("settings", [{"learning_rate": 2.0, "schedule": "constant"}, {"batch_size": 1, "limit": 20}])
def test_right_networks_pass_with_difficult_settings(small_digits, settings):
    comparison = compare_training(small_digits, seeds=(0, 1), make_model=MODEL, **QUICK | settings)
    assert comparison.failures == []


@pytest.mark.parametrize("layer", ["", "conv0.weight", "conv1.weight", "dense2.bias", "dense3.weight"])
def test_a_wrong_gradient_is_found_by_the_float64_losses(small_digits, layer):
    factor = 1.01 if layer == "" else 1.001
    comparison = compare_training(
        small_digits, seeds=(0,), make_model=partial(ScaledGradient, factor=factor, layer=layer), **QUICK
    )
    steps = comparison.first_steps[0]
    assert steps.differences[0] < 1e-15 and steps.first_failed_step == 2, (
        "the first loss is right, the loss after one step is not"
    )
    assert steps.differences[1] > 1000 * steps.allowed[1]
    assert any("float64: at step 2" in failure for failure in comparison.failures)


@pytest.mark.parametrize("layer", ["conv0", "conv1", "dense2", "dense3"])
def test_a_gradient_wrong_only_in_float32_is_found_and_its_layer_is_named(small_digits, layer):
    wrong_model = partial(ScaledGradient, factor=1.001, layer=layer, dtypes=(torch.float32,))
    comparison = compare_training(small_digits, seeds=(0,), make_model=wrong_model, **QUICK)
    assert comparison.first_steps[0].first_failed_step is None
    assert {check.layer for check in comparison.same_weights if check.failure} == {layer}
    assert [failure.split(", ")[1] for failure in comparison.failures] == [layer, layer], (
        "at the start and at the end"
    )


def test_wrong_logits_are_found_at_the_first_step(small_digits):
    assert (
        compare_training(small_digits, seeds=(0,), make_model=ShiftedLogits, **QUICK).first_steps[0].first_failed_step
        == 1
    )


def test_steps_are_judged_until_rounding_has_grown():
    native = (2.0, 2.0, 2.0, 2.0)
    steps = FirstSteps(0, (2.0, 2.0, 2.0, 9.0), native, (2.0, 2.0, 2.0 + 1e-6, 2.0), 1e-15)
    assert steps.allowed == [pytest.approx(2e-13)] * 2
    assert steps.first_failed_step is None
    assert replace(steps, ours=(2.0, 2.1, 2.0, 2.0)).first_failed_step == 2
    assert replace(steps, ours=(math.nan, 2.0, 2.0, 2.0)).first_failed_step == 1
    assert replace(steps, nudged=(3.0, 3.0, 3.0, 3.0), ours=(500.0, 2.0, 2.0, 2.0)).first_failed_step == 1, (
        "the first step is always judged"
    )


def test_a_loss_that_is_not_finite_stops_all_training_and_is_a_failure(small_digits):
    bar = Bar()
    comparison = compare_training(small_digits, seeds=(0, 1), learning_rate=1e30, schedule="constant",
                                  make_model=MODEL, progress=bar, epochs=2, batch_size=16)  # fmt: skip
    assert len(comparison.runs) == 1 and comparison.complete_seeds == []
    assert comparison.failures[-1].startswith("Seed 0: the loss of native with derivative 0.5 at 0 is ")
    assert len(comparison.runs[0].losses) < 12
    report = section(comparison)
    assert report.failures == comparison.failures
    assert not any(isinstance(part, Picture) for part in report.parts)
    json.dumps(report.data, allow_nan=False)


def test_a_gradient_that_is_not_finite_is_a_failure(small_digits):
    comparison = compare_training(
        small_digits, seeds=(0,), make_model=partial(ScaledGradient, factor=math.nan, layer="conv1"), **QUICK
    )
    assert [run.network for run in comparison.runs if run.failure] == [OURS]
    assert comparison.first_steps[0].first_failed_step == 2
    assert {check.layer for check in comparison.same_weights if check.failure} == {"conv1"}


@pytest.mark.parametrize(("settings", "error", "words"), [
    ({"seeds": ()}, ValueError, "seeds must contain at least one seed"),
    ({"seeds": (1, 1)}, ValueError, "seeds must differ"),
    ({"seeds": (-1,)}, ValueError, "each of seeds must be at least 0, got -1"),
    ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
    ({"epochs": 1.5}, TypeError, "epochs must be an integer, got 1.5"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"limit": 0}, ValueError, "limit must be at least 1"),
    ({"learning_rate": 0}, ValueError, "learning_rate must be a number above 0, got 0"),
    ({"learning_rate": math.nan}, ValueError, "learning_rate must be a number above 0, got nan"),
    ({"schedule": "cubic"}, ValueError, "schedule must be one of constant, cosine, one-cycle, linear, got 'cubic'"),
    ({"dtype": torch.int64}, ValueError, "dtype must be one of float64, float32, bfloat16, float16, got torch.int64"),
    ({"subgradients": (0, 2)}, ValueError, "subgradients must lie in 0..1"),
    ({"subgradients": (0, 0)}, ValueError, "subgradients must differ"),
])  # fmt: skip
def test_wrong_settings_are_named(small_digits, settings, error, words):
    with pytest.raises(error, match=words):
        compare_training(small_digits, **settings)


def test_an_argument_that_is_no_dataset_is_named():
    with pytest.raises(TypeError, match=r"dataset must be a manualgrad\.data\.Dataset, got str"):
        compare_training("mnist")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_device_is_named(small_digits):
    with pytest.raises(ValueError, match="device is cuda, but PyTorch finds no CUDA device"):
        compare_training(small_digits, device="cuda")
