"""Promise: training side by side passes right networks, names a wrong one, and reports only what its runs show."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from compare.sections import Picture, Table
from compare.training.checks import FirstSteps
from compare.training.result import DEFAULT_SUBGRADIENT, NATIVE, NUDGED, OURS
from compare.training.section import section
from compare.training.side_by_side import compare_training
from manualgrad import DocumentCNN, data
from manualgrad.data import Split

SIZES = {"channels": (3, 4), "kernel_size": 3, "hidden": (6,)}


class Bar:
    """Part of tqdm's interface that compare_training uses."""

    total = count = 0
    description = ""

    def update(self, n):
        self.count += n

    def set_description_str(self, desc):
        self.description = desc


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


@pytest.fixture(scope="module")
def digits():
    """Some images of the sample, cropped to the middle 14×14 pixels."""
    sample = data.bundled_sample()
    train, test = (
        Split(split.images[:n, :, 7:21, 7:21].contiguous(), split.labels[:n])
        for split, n in ((sample.train, 96), (sample.test, 100))
    )
    return replace(sample, train=train, test=test)


QUICK = {"epochs": 1, "batch_size": 16, "subgradients": ()}
MODEL = partial(DocumentCNN, **SIZES)


@pytest.fixture(scope="module")
def result(digits):
    return compare_training(digits, seeds=(3, 4), epochs=2, batch_size=40, make_model=MODEL)


# ------------------------------------------------------------------------------------------------ checks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_right_networks_pass(digits, dtype):
    comparison = compare_training(digits, seeds=range(3), dtype=dtype, make_model=MODEL, **QUICK)
    assert comparison.failures == []
    assert all(len(check.allowed) == 6 for check in comparison.first_steps), "every step was judged"


@pytest.mark.parametrize("settings", [{"learning_rate": 2.0, "schedule": "constant"}, {"batch_size": 1, "limit": 20}])
def test_right_networks_pass_with_difficult_settings(digits, settings):
    comparison = compare_training(digits, seeds=(0, 1), make_model=MODEL, **QUICK | settings)
    assert comparison.failures == []


@pytest.mark.parametrize("layer", ["", "conv0.weight", "conv1.weight", "dense2.bias", "dense3.weight"])
def test_a_wrong_gradient_is_found_by_the_float64_losses(digits, layer):
    factor = 1.01 if layer == "" else 1.001
    comparison = compare_training(
        digits, seeds=(0,), make_model=partial(ScaledGradient, factor=factor, layer=layer), **QUICK
    )
    steps = comparison.first_steps[0]
    assert steps.differences[0] < 1e-15 and steps.first_failed_step == 2, (
        "the first loss is right, the loss after one step is not"
    )
    assert steps.differences[1] > 1000 * steps.allowed[1]
    assert any("float64: at step 2" in failure for failure in comparison.failures)


@pytest.mark.parametrize("layer", ["conv0", "conv1", "dense2", "dense3"])
def test_a_gradient_wrong_only_in_float32_is_found_and_its_layer_is_named(digits, layer):
    wrong_model = partial(ScaledGradient, factor=1.001, layer=layer, dtypes=(torch.float32,))
    comparison = compare_training(digits, seeds=(0,), make_model=wrong_model, **QUICK)
    assert comparison.first_steps[0].first_failed_step is None
    assert {check.layer for check in comparison.same_weights if check.failure} == {layer}
    assert [failure.split(", ")[1] for failure in comparison.failures] == [layer, layer], (
        "at the start and at the end"
    )


def test_wrong_logits_are_found_at_the_first_step(digits):
    assert (
        compare_training(digits, seeds=(0,), make_model=ShiftedLogits, **QUICK).first_steps[0].first_failed_step == 1
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


def test_a_loss_that_is_not_finite_stops_all_training_and_is_a_failure(digits):
    bar = Bar()
    comparison = compare_training(digits, seeds=(0, 1), learning_rate=1e30, schedule="constant", make_model=MODEL,
                             progress=bar, epochs=2, batch_size=16)  # fmt: skip
    assert len(comparison.runs) == 1 and comparison.complete_seeds == []
    assert comparison.failures[-1].startswith("Seed 0: the loss of native with derivative 0.5 at 0 is ")
    assert len(comparison.runs[0].losses) < 12
    report = section(comparison)
    assert report.failures == comparison.failures
    assert not any(isinstance(part, Picture) for part in report.parts)
    json.dumps(report.data, allow_nan=False)


def test_a_gradient_that_is_not_finite_is_a_failure(digits):
    comparison = compare_training(
        digits, seeds=(0,), make_model=partial(ScaledGradient, factor=math.nan, layer="conv1"), **QUICK
    )
    assert [run.network for run in comparison.runs if run.failure] == [OURS]
    assert comparison.first_steps[0].first_failed_step == 2
    assert {check.layer for check in comparison.same_weights if check.failure} == {"conv1"}


# ------------------------------------------------------------------------------------------ results


def test_every_run_has_its_losses_and_accuracies(result):
    default = DEFAULT_SUBGRADIENT
    networks = [(NATIVE, default), (NUDGED, default), (OURS, default), (OURS, 0), (OURS, 1), (NATIVE, 0)]
    assert [(run.network, run.subgradient, run.seed) for run in result.runs] == [
        (*network, seed) for seed in (3, 4) for network in networks
    ]
    for run in result.runs:
        assert len(run.losses) == 6 and len(run.accuracies) == 2 and len(run.predictions) == 100
        num_correct = (run.predictions == result.dataset.test.labels).sum().item()
        assert run.accuracies[-1] == pytest.approx(num_correct)
    assert result.run(OURS, 3).losses != result.run(OURS, 4).losses


def test_the_runs_are_those_of_a_plain_loop(result, digits):
    torch.manual_seed(3)
    model = MODEL(image_size=14)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.25, total_steps=6, cycle_momentum=False)
    order, losses = torch.Generator().manual_seed(3), []
    for _ in range(2):
        for indices in torch.randperm(96, generator=order).split(40):
            x = (digits.train.images[indices] / 255 - digits.mean) / digits.std
            optimizer.zero_grad()
            loss = model.cost(x, digits.train.labels[indices])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    assert losses == pytest.approx(result.run(OURS, 3).losses, rel=1e-5)  # float32, six steps


def test_all_runs_stay_within_rounding_of_each_other(result):
    for other in (OURS, NUDGED):
        difference = result.loss_difference(3, other)
        assert 0 <= difference.largest < 1e-5 and difference.first_visible is None
    for distance in result.distances(3):
        assert 0 < distance.ours_to_native < 1e-5 and 0 < distance.native_to_nudged < 1e-5
        assert distance.ours_to_start == pytest.approx(distance.native_to_start, rel=1e-4)
        assert distance.ours_to_start > 1e-3
    assert [d.layer for d in result.distances(3)] == ["conv0", "conv1", "dense2", "dense3", "all"]


def test_loss_differences_and_disagreements_are_computed_from_the_runs(result):
    ours, native = result.run(OURS, 3), result.run(NATIVE, 3)
    losses = list(native.losses)
    losses[2] += 1e-4
    losses[4] *= 1.02
    predictions = native.predictions.clone()
    predictions[7] = (predictions[7] + 1) % 10
    changed = replace(ours, losses=tuple(losses), predictions=predictions)
    altered = replace(result, runs=tuple(changed if run is ours else run for run in result.runs))
    difference = altered.loss_difference(3)
    assert (difference.first_beyond_rounding, difference.first_visible, difference.largest_step) == (3, 5, 5)
    assert difference.largest == pytest.approx(0.02 * native.losses[4])
    (image,) = altered.disagreements(3)
    label = result.dataset.test.labels[7].item()
    assert (image.index, image.label, image.ours, image.native) == (7, label, predictions[7], native.predictions[7])
    assert altered.first_changed_step(3, 0) is not None
    tables = {part.title: part for part in section(altered).parts if isinstance(part, Table)}
    assert tables["Images classified differently"].rows == [(3, 7, str(label), str(image.ours), str(image.native))]
    assert any(
        part.title == "Images classified differently" for part in section(altered).parts if isinstance(part, Picture)
    )


def test_exact_zeros_are_counted(digits):
    class ZeroFirstLayer(DocumentCNN):  # all inputs of the first ReLU are 0
        def __init__(self, **options):
            super().__init__(**options, **SIZES)
            for parameter in self.conv0.parameters():
                torch.nn.init.zeros_(parameter)

    comparison = compare_training(digits, seeds=(0,), epochs=1, batch_size=8, limit=8, subgradients=(0, 1),
                             make_model=ZeroFirstLayer)  # fmt: skip
    first = comparison.zeros[0]
    assert (first.epoch, first.layer) == (0, "relu0")
    assert first.zeros == first.values == 8 * 8 * 3 * 12 * 12
    assert 0 < first.zeros_with_gradient < first.zeros / 4 + 1, "at most one element of each window has a gradient"
    longer = compare_training(digits, seeds=(0,), epochs=1, batch_size=8, limit=24, subgradients=(0, 1),
                              make_model=ZeroFirstLayer)  # fmt: skip
    assert longer.first_changed_step(0, 0) == 2, "the first step differs in its gradient, the second in its loss"
    assert longer.failures == [], "both have the derivative 1/2"


# ----------------------------------------------------------------------------------------------- report section


def test_the_section_reports_the_result(result):
    report = section(result)
    assert report.name == "training" and report.failures == []
    for table in (part for part in report.parts if isinstance(part, Table)):
        assert all(len(row) == len(table.columns) for row in table.rows), table.title
        assert table.rows, table.title
    for picture in (part for part in report.parts if isinstance(part, Picture)):
        assert picture.alt and picture.draw().axes, picture.title
    assert json.loads(json.dumps(report.data, allow_nan=False))["settings"]["seeds"] == [3, 4]


def test_one_seed_has_no_spread(result):
    settings = replace(result.settings, seeds=(3,))
    one_seed = replace(result, settings=settings, runs=tuple(run for run in result.runs if run.seed == 3))
    text = " ".join(section(one_seed).text)
    assert "±" not in text and "1 seed." in text


def test_progress_reaches_its_total_and_the_random_state_is_unchanged(digits):
    bar = Bar()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    compare_training(digits, seeds=(0,), make_model=MODEL, progress=bar, **QUICK)
    assert bar.count == bar.total == 6 * 6
    assert "seed 0" in bar.description
    assert torch.equal(torch.rand(1), expected)


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
def test_wrong_settings_are_named(digits, settings, error, words):
    with pytest.raises(error, match=words):
        compare_training(digits, **settings)


def test_an_argument_that_is_no_dataset_is_named():
    with pytest.raises(TypeError, match=r"dataset must be a manualgrad\.data\.Dataset, got str"):
        compare_training("mnist")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_device_is_named(digits):
    with pytest.raises(ValueError, match="device is cuda, but PyTorch finds no CUDA device"):
        compare_training(digits, device="cuda")
