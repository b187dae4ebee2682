"""Promise: training side by side accuses no right network, names a wrong one, and says only what its runs show."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from compare.sections import Picture, Table
from compare.training.checks import FirstSteps
from compare.training.result import HALF, NATIVE, NUDGED, OURS
from compare.training.section import section
from compare.training.side_by_side import compare_training
from manualgrad import DocumentCNN, data
from manualgrad.data import Split

SIZES = {"channels": (3, 4), "kernel_size": 3, "hidden": (6,)}


class Bar:
    """What of tqdm is asked for."""

    total = count = 0
    said = ""

    def update(self, n):
        self.count += n

    def set_description_str(self, what):
        self.said = what


class Scaled(DocumentCNN):
    """A network whose gradient of ``layer``, or of all layers, is multiplied by ``factor`` in ``dtypes``."""

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


class Off(DocumentCNN):
    """A network whose answers are off by a billionth."""

    def __init__(self, **options):
        super().__init__(**options, **SIZES)

    def forward(self, x):
        z = super().forward(x)
        return z + 1e-9 * torch.arange(z.shape[-1], dtype=z.dtype)


@pytest.fixture(scope="module")
def digits():
    """The middle 14×14 pixels of some images of the sample."""
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


# ------------------------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_right_networks_are_not_accused(digits, dtype):
    found = compare_training(digits, seeds=range(3), dtype=dtype, make_model=MODEL, **QUICK)
    assert found.failures == []
    assert all(len(each.allowed) == 6 for each in found.first_steps), "every step was judged"


@pytest.mark.parametrize("settings", [{"learning_rate": 2.0, "schedule": "constant"}, {"batch_size": 1, "limit": 20}])
def test_right_networks_are_not_accused_under_rough_settings(digits, settings):
    found = compare_training(digits, seeds=(0, 1), make_model=MODEL, **QUICK | settings)
    assert found.failures == []


@pytest.mark.parametrize("layer", ["", "conv0.weight", "conv1.weight", "dense2.bias", "dense3.weight"])
def test_a_wrong_gradient_is_caught_in_float64_by_its_costs(digits, layer):
    factor = 1.01 if layer == "" else 1.001
    found = compare_training(digits, seeds=(0,), make_model=partial(Scaled, factor=factor, layer=layer), **QUICK)
    steps = found.first_steps[0]
    assert steps.differences[0] < 1e-15 and steps.broken == 2, "the first cost is right, that after one step is not"
    assert steps.differences[1] > 1000 * steps.allowed[1]
    assert any("float64: at step 2" in failure for failure in found.failures)


@pytest.mark.parametrize("layer", ["conv0", "conv1", "dense2", "dense3"])
def test_a_gradient_wrong_in_float32_only_is_caught_and_its_layer_named(digits, layer):
    wrong = partial(Scaled, factor=1.001, layer=layer, dtypes=(torch.float32,))
    found = compare_training(digits, seeds=(0,), make_model=wrong, **QUICK)
    assert found.first_steps[0].broken is None
    assert {each.layer for each in found.same_weights if each.failure} == {layer}
    assert [failure.split(", ")[1] for failure in found.failures] == [layer, layer], "at the start and at the end"


def test_a_wrong_answer_is_caught_at_the_first_step(digits):
    assert compare_training(digits, seeds=(0,), make_model=Off, **QUICK).first_steps[0].broken == 1


def test_what_is_judged_ends_where_rounding_has_grown():
    native = (2.0, 2.0, 2.0, 2.0)
    steps = FirstSteps(0, (2.0, 2.0, 2.0, 9.0), native, (2.0, 2.0, 2.0 + 1e-6, 2.0), 1e-15)
    assert steps.allowed == [pytest.approx(2e-13)] * 2
    assert steps.broken is None
    assert replace(steps, ours=(2.0, 2.1, 2.0, 2.0)).broken == 2
    assert replace(steps, ours=(math.nan, 2.0, 2.0, 2.0)).broken == 1
    assert replace(steps, nudged=(3.0, 3.0, 3.0, 3.0), ours=(500.0, 2.0, 2.0, 2.0)).broken == 1, "the first always"


def test_a_cost_that_is_not_finite_stops_everything_and_is_a_failure(digits):
    bar = Bar()
    found = compare_training(digits, seeds=(0, 1), learning_rate=1e30, schedule="constant", make_model=MODEL,
                             progress=bar, epochs=2, batch_size=16)  # fmt: skip
    assert len(found.runs) == 1 and found.complete_seeds == []
    assert found.failures[-1].startswith("Seed 0: the cost of native with derivative 0.5 at 0 is ")
    assert len(found.runs[0].costs) < 12
    made = section(found)
    assert made.failures == found.failures
    assert not any(isinstance(part, Picture) for part in made.parts)
    json.dumps(made.data, allow_nan=False)


def test_a_gradient_that_is_not_finite_is_a_failure(digits):
    found = compare_training(digits, seeds=(0,), make_model=partial(Scaled, factor=math.nan, layer="conv1"), **QUICK)
    assert [run.network for run in found.runs if run.failure] == [OURS]
    assert found.first_steps[0].broken == 2
    assert {each.layer for each in found.same_weights if each.failure} == {"conv1"}


# ------------------------------------------------------------------------------------------ what was found


def test_every_run_has_its_costs_and_accuracies(result):
    kinds = [(NATIVE, HALF), (NUDGED, HALF), (OURS, HALF), (OURS, 0), (OURS, 1), (NATIVE, 0)]
    assert [(run.network, run.subgradient, run.seed) for run in result.runs] == [
        (*kind, seed) for seed in (3, 4) for kind in kinds
    ]
    for run in result.runs:
        assert len(run.costs) == 6 and len(run.accuracies) == 2 and len(run.predicted) == 100
        right = (run.predicted == result.dataset.test.labels).sum().item()
        assert run.accuracies[-1] == pytest.approx(right)
    assert result.run(OURS, 3).costs != result.run(OURS, 4).costs


def test_the_runs_are_those_of_a_plain_loop(result, digits):
    torch.manual_seed(3)
    model = MODEL(image_size=14)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.25, total_steps=6, cycle_momentum=False)
    order, costs = torch.Generator().manual_seed(3), []
    for _ in range(2):
        for chosen in torch.randperm(96, generator=order).split(40):
            x = (digits.train.images[chosen] / 255 - digits.mean) / digits.std
            optimizer.zero_grad()
            cost = model.cost(x, digits.train.labels[chosen])
            cost.backward()
            optimizer.step()
            schedule.step()
            costs.append(cost.item())
    assert costs == pytest.approx(result.run(OURS, 3).costs, rel=1e-5)  # float32, six steps


def test_both_and_the_nudged_stay_within_rounding_here(result):
    for other in (OURS, NUDGED):
        parting = result.parting(3, other)
        assert 0 <= parting.largest < 1e-5 and parting.visible is None
    for distance in result.distances(3):
        assert 0 < distance.parted < 1e-5 and 0 < distance.yardstick < 1e-5
        assert distance.ours_moved == pytest.approx(distance.native_moved, rel=1e-4) and distance.ours_moved > 1e-3
    assert [d.layer for d in result.distances(3)] == ["conv0", "conv1", "dense2", "dense3", "all"]


def test_parting_and_dispute_are_those_of_the_runs(result):
    ours, native = result.run(OURS, 3), result.run(NATIVE, 3)
    costs = list(native.costs)
    costs[2] += 1e-4
    costs[4] *= 1.02
    predicted = native.predicted.clone()
    predicted[7] = (predicted[7] + 1) % 10
    changed = replace(ours, costs=tuple(costs), predicted=predicted)
    altered = replace(result, runs=tuple(changed if run is ours else run for run in result.runs))
    parting = altered.parting(3)
    assert (parting.beyond_rounding, parting.visible, parting.largest_at) == (3, 5, 5)
    assert parting.largest == pytest.approx(0.02 * native.costs[4])
    (one,) = altered.disputed(3)
    label = result.dataset.test.labels[7].item()
    assert (one.index, one.label, one.ours, one.native) == (7, label, predicted[7], native.predicted[7])
    assert altered.first_difference(3, 0) is not None
    tables = {part.title: part for part in section(altered).parts if isinstance(part, Table)}
    assert tables["Disputed images"].rows == [(3, 7, str(label), str(one.ours), str(one.native))]
    assert any(part.title == "Disputed images" for part in section(altered).parts if isinstance(part, Picture))


def test_zeros_are_counted_where_there_are_some(digits):
    class Blank(DocumentCNN):  # whose first bias and weight are 0: nothing but zeros reach the first ReLU
        def __init__(self, **options):
            super().__init__(**options, **SIZES)
            for parameter in self.conv0.parameters():
                torch.nn.init.zeros_(parameter)

    found = compare_training(digits, seeds=(0,), epochs=1, batch_size=8, limit=8, subgradients=(0, 1),
                             make_model=Blank)  # fmt: skip
    first = found.zeros[0]
    assert (first.epoch, first.layer) == (0, "relu0")
    assert first.zeros == first.values == 8 * 8 * 3 * 12 * 12
    assert 0 < first.met < first.zeros / 4 + 1, "one place of each window meets δ, if any"
    longer = compare_training(digits, seeds=(0,), epochs=1, batch_size=8, limit=24, subgradients=(0, 1),
                              make_model=Blank)  # fmt: skip
    assert longer.first_difference(0, 0) == 2, "the first step differs in its gradient, the second in its cost"
    assert longer.failures == [], "both have the derivative 1/2"


# ----------------------------------------------------------------------------------------------- the section


def test_the_section_is_made_of_what_was_found(result):
    made = section(result)
    assert made.name == "training" and made.failures == []
    for table in (part for part in made.parts if isinstance(part, Table)):
        assert all(len(row) == len(table.columns) for row in table.rows), table.title
        assert table.rows, table.title
    for picture in (part for part in made.parts if isinstance(part, Picture)):
        assert picture.alt and picture.draw().axes, picture.title
    assert json.loads(json.dumps(made.data, allow_nan=False))["settings"]["seeds"] == [3, 4]


def test_one_seed_has_no_spread(result):
    settings = replace(result.settings, seeds=(3,))
    one = replace(result, settings=settings, runs=tuple(run for run in result.runs if run.seed == 3))
    text = " ".join(section(one).text)
    assert "±" not in text and "1 seed." in text


def test_progress_is_counted_to_its_end_and_the_random_state_left_alone(digits):
    bar = Bar()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    compare_training(digits, seeds=(0,), make_model=MODEL, progress=bar, **QUICK)
    assert bar.count == bar.total == 6 * 6
    assert "seed 0" in bar.said
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("settings", "error", "words"), [
    ({"seeds": ()}, ValueError, "seeds must name at least one"),
    ({"seeds": (1, 1)}, ValueError, "seeds must differ"),
    ({"seeds": (-1,)}, ValueError, "each of seeds must be at least 0, got -1"),
    ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
    ({"epochs": 1.5}, TypeError, "epochs must be a whole number, got 1.5"),
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


def test_what_is_not_a_dataset_is_named():
    with pytest.raises(TypeError, match=r"dataset must be a manualgrad\.data\.Dataset, got str"):
        compare_training("mnist")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_named(digits):
    with pytest.raises(ValueError, match="device is cuda, but PyTorch finds no CUDA device"):
        compare_training(digits, device="cuda")
