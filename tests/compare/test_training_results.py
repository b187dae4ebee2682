"""Promise: the results of two trainings side by side, and the section about them, are computed from the runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from compare.sections import Picture, Table
from compare.training.result import DEFAULT_SUBGRADIENT, NATIVE, NUDGED, OURS
from compare.training.section import section
from compare.training.side_by_side import compare_training
from manualgrad import DocumentCNN
from tests.compare.training_runs import MODEL, QUICK, SIZES, Bar


@pytest.fixture(scope="module")
def result(small_digits):
    return compare_training(small_digits, seeds=(3, 4), epochs=2, batch_size=40, make_model=MODEL)


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


def test_the_runs_are_those_of_a_plain_loop(result, small_digits):
    torch.manual_seed(3)
    model = MODEL(image_size=14)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.25, total_steps=6, cycle_momentum=False)
    order, losses = torch.Generator().manual_seed(3), []
    for _ in range(2):
        for indices in torch.randperm(96, generator=order).split(40):
            x = (small_digits.train.images[indices] / 255 - small_digits.mean) / small_digits.std
            optimizer.zero_grad()
            loss = model.cost(x, small_digits.train.labels[indices])
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


def test_exact_zeros_are_counted(small_digits):
    class ZeroFirstLayer(DocumentCNN):  # all inputs of the first ReLU are 0
        def __init__(self, **options):
            super().__init__(**options, **SIZES)
            for parameter in self.conv0.parameters():
                torch.nn.init.zeros_(parameter)

    comparison = compare_training(small_digits, seeds=(0,), epochs=1, batch_size=8, limit=8, subgradients=(0, 1),
                             make_model=ZeroFirstLayer)  # fmt: skip
    first = comparison.zeros[0]
    assert (first.epoch, first.layer) == (0, "relu0")
    assert first.zeros == first.values == 8 * 8 * 3 * 12 * 12
    assert 0 < first.zeros_with_gradient < first.zeros / 4 + 1, "at most one element of each window has a gradient"
    longer = compare_training(small_digits, seeds=(0,), epochs=1, batch_size=8, limit=24, subgradients=(0, 1),
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


def test_progress_reaches_its_total_and_the_random_state_is_unchanged(small_digits):
    bar = Bar()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    compare_training(small_digits, seeds=(0,), make_model=MODEL, progress=bar, **QUICK)
    assert bar.count == bar.total == 6 * 6
    assert "seed 0" in bar.description
    assert torch.equal(torch.rand(1), expected)
