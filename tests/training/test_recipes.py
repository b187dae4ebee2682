"""Promise: a recipe is a set of defaults, which given options override."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from manualgrad.training import allocator, command, recipes
from manualgrad.training.epochs import EpochLayout
from tests.training.command_line import train


@pytest.fixture(scope="module")
def fast(digits, tmp_path_factory) -> tuple[SimpleNamespace, dict]:
    out = tmp_path_factory.mktemp("fast")
    arguments = (
        "--dataset",
        "fashion-mnist",
        "--data-dir",
        digits,
        "--out",
        out,
        "--recipe",
        "fast",
        "--device",
        "cpu",
        "--limit",
        640,
    )
    return train(*arguments), json.loads((out / "metrics.json").read_text())


def test_the_fast_recipe_sets_its_options(fast):
    result, metrics = fast
    assert result.returncode == 0, result.stderr
    recipe = recipes.RECIPES["fast"]
    assert re.search(r"^recipe  fast$", result.stdout, re.M)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in metrics["options"].items()}
    assert {name: options[name] for name in asdict(recipe)} == {**asdict(recipe), "learning_rate": None}
    assert options["recipe"] == "fast"
    assert f"learning rate {recipe.learning_rate}" in result.stdout
    assert len(metrics["losses"]) == EpochLayout(640, recipe.batch_size, recipe.epochs, recipe.shares).num_steps
    assert metrics["test_accuracy"] > 50, "guessing gives 10"


def test_what_the_seconds_of_training_include_is_printed(fast):
    note = r'^clock   "s of training" includes, .*\n.* It does not include: .*compilation.*\n.*evaluation'
    assert re.search(note, fast[0].stdout, re.M)


@pytest.fixture
def no_results(monkeypatch) -> None:
    """Skip writing the results, whose plots take seconds."""
    monkeypatch.setattr(command, "write_results", lambda *_: None)


def test_given_options_override_the_recipe_and_are_printed(digits, tmp_path, no_results):
    common = (
        "--dataset",
        "fashion-mnist",
        "--data-dir",
        digits,
        "--out",
        tmp_path,
        "--limit",
        64,
        "--recipe",
        "fast",
        "--device",
        "cpu",
    )
    result = train(*common, "--epochs", 1, "--hidden", 7, "--channels", 3, 4, "--engine", "autograd",
                   "--batch-size", 20, "--learning-rate", 0.01, "--schedule", "constant",
                   "--shares", 1, "--average", 0, "--crop", 28)  # fmt: skip
    assert result.returncode == 0, result.stderr
    changed = (
        "channels [3, 4], hidden [7], epochs 1, batch size 20, learning rate 0.01, schedule constant, "
        "shares [1.0], average 0.0, crop 28, engine autograd"
    )
    assert f"recipe  fast, but with {changed}\n" in result.stdout
    assert (
        "4: 1 epoch of 64 images, batch size 20\n        sgd, constant schedule, learning rate 0.01" in result.stdout
    )
    num_parameters = (3 * 5 * 5 + 3) + (4 * 3 * 5 * 5 + 4) + (7 * 4 * 4 * 4 + 7) + (10 * 7 + 10)
    assert f"DocumentCNN, {num_parameters} parameters" in result.stdout


def test_an_option_with_the_value_of_the_recipe_is_not_printed():
    options = command.parse_arguments(
        ["--device", "cpu", "--recipe", "fast", "--channels", "16", "32", "--engine", "document"]
    )
    assert recipes.describe(options) == "fast"
    assert recipes.describe(command.parse_arguments(["--hidden"])) == "standard, but with hidden []"


def test_the_learning_rate_of_a_recipe_applies_to_sgd_only(digits, tmp_path, no_results):
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--limit", 32,
                   "--epochs", 1, "--recipe", "fast", "--optimizer", "adam")  # fmt: skip
    assert "adam, linear schedule, learning rate 0.001\n" in result.stdout


def test_a_checkpoint_of_another_recipe_is_refused(digits, tmp_path, no_results):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--limit", 32, "--epochs", 1)
    assert train(*common, "--recipe", "fast", "--checkpoint-every", 1).returncode == 0
    result = train(*common, "--resume", "auto")
    assert result.returncode == 2
    assert "architecture:" in result.stderr
    again = train(*common, "--recipe", "fast", "--resume", "auto")
    assert again.returncode == 0
    assert "clock" not in again.stdout, "a finished run takes no warm-up step"


def test_the_allocator_is_tuned_unless_the_option_disables_it(digits, tmp_path, monkeypatch, no_results):
    monkeypatch.setattr(allocator, "tune", lambda: allocator.Tuning(True, "description of the test"))
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 32, "--epochs", 1, "--out", tmp_path)
    assert "memory  description of the test\n" in train(*common, allocator_tuning=True).stdout
    assert "memory" not in train(*common).stdout
