"""Promise: the command trains on real digits, the same each time, writes what it says, and explains wrong use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.image import imread

import manualgrad as mg
import train as command
from manualgrad import data
from manualgrad.training import allocator, recipes, steps
from manualgrad.training.epochs import Epochs
from manualgrad.training.run import ENGINES, Run
from manualgrad.training.steps import OPTIMIZERS, SCHEDULES, examine, minibatches, normalised, step_sizes
from tests.training.command_line import train

ROOT = Path(__file__).parents[2]
QUICK = ("--limit", "640", "--epochs", "2", "--batch-size", "32")


@pytest.fixture(scope="session")
def run(digits, tmp_path_factory) -> tuple[SimpleNamespace, Path]:
    out = tmp_path_factory.mktemp("run") / "new" / "folder"
    return train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", out, *QUICK), out


def test_it_learns_and_says_so(run):
    result, out = run
    assert result.returncode == 0, result.stderr
    accuracy = float(re.search(r"^([\d.]+) % of the 300 test images are right", result.stdout, re.M)[1])
    assert accuracy > 50, "after 40 steps; guessing gives 10"
    assert "fashion-mnist, first 640 training images" in result.stdout
    assert str(out) in result.stdout
    assert "Traceback" not in result.stderr


def test_metrics_name_the_data_and_hold_every_step(run):
    metrics = json.loads((run[1] / "metrics.json").read_text())
    assert metrics["dataset"] == "fashion-mnist, first 640 training images"
    assert metrics["source"].startswith("files under")
    assert len(metrics["losses"]) == 2 * 20
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    assert metrics["epochs"][-1]["test_accuracy"] == metrics["test_accuracy"]
    confusion = torch.tensor(metrics["confusion"])
    assert confusion.sum() == 300
    assert 100 * confusion.trace() / 300 == pytest.approx(metrics["test_accuracy"])
    assert metrics["versions"]["torch"] == torch.__version__
    assert metrics["options"]["seed"] == 0


def test_weights_give_the_accuracy_that_was_reported(run, digits):
    _, out = run
    model = mg.DocumentCNN()
    model.load_state_dict(torch.load(out / "weights.pt", weights_only=True))
    dataset = data.load("fashion-mnist", digits).limited(640)
    metrics = json.loads((out / "metrics.json").read_text())
    assert examine(model, dataset.test, dataset).accuracy == pytest.approx(metrics["test_accuracy"])


@pytest.mark.parametrize("name", ["curves", "confusion", "kernels", "mistakes"])
def test_pictures_show_something(run, name):
    picture = imread(run[1] / f"{name}.png")
    assert min(picture.shape[:2]) > 100
    assert picture[..., :3].std() > 0.02, "a blank page has none"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(run, digits, tmp_path):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, *QUICK)
    for seed, same in ((0, True), (1, False)):
        assert train(*common, "--out", tmp_path / str(seed), "--seed", seed).returncode == 0
        again = torch.load(tmp_path / str(seed) / "weights.pt", weights_only=True)
        before = torch.load(run[1] / "weights.pt", weights_only=True)
        assert all(torch.equal(again[name], before[name]) for name in before) == same


def test_both_engines_give_the_same_weights(run, digits, tmp_path):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, *QUICK)
    assert train(*common, "--engine", "document").returncode == 0
    by_recursion = torch.load(tmp_path / "weights.pt", weights_only=True)
    by_autograd = torch.load(run[1] / "weights.pt", weights_only=True)
    assert all(torch.equal(by_recursion[name], by_autograd[name]) for name in by_autograd)
    losses = [json.loads((folder / "metrics.json").read_text())["losses"] for folder in (tmp_path, run[1])]
    assert losses[0] == losses[1]


# ----------------------------------------------------------------------------------------------------- recipes


@pytest.fixture(scope="module")
def fast(digits, tmp_path_factory) -> tuple[SimpleNamespace, dict]:
    out = tmp_path_factory.mktemp("fast")
    arguments = ("--dataset", "fashion-mnist", "--data-dir", digits, "--out", out, "--recipe", "fast", "--limit", 640)
    return train(*arguments), json.loads((out / "metrics.json").read_text())


def test_the_fast_recipe_is_what_its_name_stands_for(fast):
    result, metrics = fast
    assert result.returncode == 0, result.stderr
    recipe = recipes.RECIPES["fast"]
    assert re.search(r"^recipe  fast$", result.stdout, re.M)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in metrics["options"].items()}
    assert {name: options[name] for name in asdict(recipe)} == {**asdict(recipe), "learning_rate": None}
    assert options["recipe"] == "fast"
    assert f"learning rate {recipe.learning_rate}" in result.stdout
    assert len(metrics["losses"]) == Epochs(640, recipe.batch_size, recipe.epochs, recipe.shares).steps
    assert metrics["test_accuracy"] > 50, "guessing gives 10"


def test_what_the_clock_counts_is_printed(fast):
    assert re.search(
        r"^clock   counts all of every step: .*\n +It does not count: .*compiling.*tests", fast[0].stdout, re.M
    )


@pytest.fixture
def no_results(monkeypatch) -> None:
    """Pictures take seconds, and most of what follows is about what is said before."""
    monkeypatch.setattr(command, "write_results", lambda *_: None)


def test_what_is_given_wins_over_the_recipe_and_is_said(digits, tmp_path, no_results):
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
    )
    result = train(*common, "--epochs", 1, "--hidden", 7, "--channels", 3, 4, "--engine", "autograd",
                   "--batch-size", 20, "--learning-rate", 0.01, "--schedule", "constant",
                   "--shares", 1, "--average", 0, "--crop", 28)  # fmt: skip
    assert result.returncode == 0, result.stderr
    said = (
        "channels [3, 4], hidden [7], epochs 1, batch size 20, learning rate 0.01, schedule constant, "
        "shares [1.0], average 0.0, crop 28, engine autograd"
    )
    assert f"recipe  fast, but {said}\n" in result.stdout
    assert "4: 1 epoch of 64 images, batch 20\n        sgd, constant schedule, learning rate 0.01" in result.stdout
    sizes = (3 * 5 * 5 + 3) + (4 * 3 * 5 * 5 + 4) + (7 * 4 * 4 * 4 + 7) + (10 * 7 + 10)
    assert f"DocumentCNN, {sizes} parameters" in result.stdout


def test_an_option_equal_to_the_recipes_is_no_difference():
    options = command.arguments(["--recipe", "fast", "--channels", "16", "32", "--engine", "document"])
    assert recipes.described(options) == "fast"
    assert recipes.described(command.arguments(["--hidden"])) == "standard, but hidden []"


def test_a_recipes_learning_rate_is_for_sgd_alone(digits, tmp_path, no_results):
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--limit", 32,
                   "--epochs", 1, "--recipe", "fast", "--optimizer", "adam")  # fmt: skip
    assert "adam, linear schedule, learning rate 0.001\n" in result.stdout


def test_a_checkpoint_of_another_recipe_is_refused(digits, tmp_path, no_results):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--limit", 32, "--epochs", 1)
    assert train(*common, "--recipe", "fast", "--checkpoint-every", 1).returncode == 0
    result = train(*common, "--resume", "auto")
    assert result.returncode == 2
    assert "architecture is" in result.stderr
    again = train(*common, "--recipe", "fast", "--resume", "auto")
    assert again.returncode == 0
    assert "clock" not in again.stdout, "nothing is trained, and nothing warmed up for"


def test_an_image_has_no_larger_middle(digits, tmp_path):
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--crop", 29)
    assert result.returncode == 2
    assert "--crop 29: an image has 28x28 pixels, of which the middle 29x29 are no part" in result.stderr


def test_layers_that_do_not_fit_the_images_are_named(digits, tmp_path):
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--channels", 4, 4, 4, 4)
    assert result.returncode == 2
    assert "leaves nothing" in result.stderr


def begun(digits: Path, engine: str) -> Run:
    torch.manual_seed(0)
    model = mg.DocumentCNN(channels=(2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dataset = data.load("fashion-mnist", digits).limited(32)
    return Run(model, optimizer, step_sizes("one-cycle", optimizer, 4), dataset,
               epochs=Epochs(32, batch_size=8, count=1), seed=0, engine=engine)  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_normalises_the_bytes_that_the_data_lies_in(engine, digits, monkeypatch):
    seen, run = [], begun(digits, engine)
    assert run.dataset.train.images.dtype == torch.uint8
    find_gradients = run.find_gradients
    monkeypatch.setattr(run, "find_gradients", lambda x, *rest: (seen.append(x), find_gradients(x, *rest))[1])
    for _ in range(4):
        run.take_step()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    for x, images in zip(seen, run.dataset.train.images[order].split(8), strict=True):
        expected = (images.double() / 255 - run.dataset.mean) / run.dataset.std
        torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=1e-6)  # a float32 has 24 bits


def test_warming_up_changes_nothing(digits):
    for engine in ENGINES:
        warm, cold = begun(digits, engine), begun(digits, engine)
        seconds = warm.seconds
        warm.warm_up()
        assert (warm.step, warm.seconds, warm.costs) == (0, seconds, [])
        assert [warm.take_step().cost for _ in range(4)] == [cold.take_step().cost for _ in range(4)]
        assert all(map(torch.equal, warm.model.parameters(), cold.model.parameters()))


def test_the_allocator_is_tuned_unless_it_is_told_not_to(digits, tmp_path, monkeypatch, no_results):
    monkeypatch.setattr(allocator, "tune", lambda: allocator.Tuning(True, "as the test says"))
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 32, "--epochs", 1, "--out", tmp_path)
    assert "memory  as the test says\n" in train(*common, allocator_tuning=True).stdout
    assert "memory" not in train(*common).stdout


# ------------------------------------------------------------------------------------------- how it goes wrong


def test_a_missed_target_exits_with_1_and_a_reached_one_with_0(digits, tmp_path):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 64, "--epochs", 1, "--out", tmp_path)
    missed = train(*common, "--target-accuracy", 100)
    assert missed.returncode == 1
    assert "the target of 100.0 % is missed" in missed.stderr
    assert train(*common, "--target-accuracy", 1.1).returncode == 0


def test_without_a_network_the_sample_is_used_and_named_everywhere(tmp_path):
    offline = "import socket\ndef getaddrinfo(*_, **__): raise socket.gaierror('offline')\n"
    (tmp_path / "sitecustomize.py").write_text(offline + "socket.getaddrinfo = getaddrinfo\n")
    arguments = ["--data-dir", "none", "--out", "out", "--limit", "320", "--epochs", "1"]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "train.py"), *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "the bundled sample of MNIST" in result.stdout
    assert "mnist-sample" in json.loads((tmp_path / "out" / "metrics.json").read_text())["dataset"]
    assert not (tmp_path / "none" / "MNIST").exists()


WRONG = {
    "unknown dataset": (("--dataset", "minst"), "invalid choice: 'minst'"),
    "unknown optimizer": (("--optimizer", "sdg"), "invalid choice: 'sdg'"),
    "unknown schedule": (("--schedule", "cosinus"), "invalid choice: 'cosinus'"),
    "unknown device": (("--device", "gpu"), "invalid choice: 'gpu'"),
    "unknown flag": (("--lr", "0.1"), "unrecognized arguments: --lr"),
    "no epochs": (("--epochs", "0"), "expected a whole number, at least 1, got '0'"),
    "half an epoch": (("--epochs", "0.5"), "expected a whole number, at least 1, got '0.5'"),
    "empty batches": (("--batch-size", "-4"), "expected a whole number, at least 1, at most 1000000000, got '-4'"),
    "shares of nothing": (("--shares", "0.5", "0"), "expected a number, at least 0.001, at most 1, got '0'"),
    "a mean of too much": (("--average", "1.5"), "expected a number, at least 0, at most 1, got '1.5'"),
    "no limit": (("--limit", "0"), "expected a whole number, at least 1, got '0'"),
    "a negative rate": (("--learning-rate", "-1"), "expected a number, at least 0, got '-1'"),
    "an endless rate": (("--learning-rate", "nan"), "expected a number, at least 0, got 'nan'"),
    "a share for percent": (("--target-accuracy", "0.992"), "expected percent, such as 99.2, got '0.992'"),
    "a seed beyond 64 bits": (("--seed", str(2**70)), "at most 9223372036854775807"),
    "a seed that is none": (
        ("--seed", "x"),
        "expected a whole number, at least 0, at most 9223372036854775807, got 'x'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_gets_one_message_and_exit_code_2(case, tmp_path):
    arguments, words = WRONG[case]
    result = train(*arguments, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists(), "nothing is begun"


def test_damaged_missing_and_unwritable_files_are_named(digits, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    files = sorted((digits / "FashionMNIST" / "raw").iterdir())
    for file in files:
        (raw / file.name).write_bytes(file.read_bytes())
    common = ("--dataset", "fashion-mnist", "--data-dir", tmp_path, "--out", tmp_path / "out")
    (raw / files[0].name).write_bytes(files[0].read_bytes()[:-1])
    truncated = train(*common)
    (raw / files[0].name).unlink()
    missing = train(*common)
    (tmp_path / "file").write_text("")
    unwritable = train(*common[:4], "--out", tmp_path / "file")
    for result, words in ((truncated, "is truncated"), (missing, "missing"), (unwritable, "cannot be written to")):
        assert result.returncode == 2
        assert words in result.stderr
        assert "Traceback" not in result.stderr
    assert str(raw / files[0].name) in truncated.stderr
    assert str(raw / files[0].name) in missing.stderr


def test_a_diverging_run_says_so_and_leaves_no_results(digits, tmp_path):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path / "out", *QUICK)
    result = train(*common, "--learning-rate", "1e30")
    assert result.returncode == 1
    assert re.search(r"the cost is (nan|inf) at step \d+ of epoch 1: .* smaller --learning-rate", result.stderr)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["metrics.jsonl"], "what it did until then"


def test_an_interrupted_run_says_so_and_leaves_no_results(digits, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "examine", interrupt)
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path / "out", *QUICK)
    assert result.returncode == 130
    assert "interrupted before its results were complete" in result.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["metrics.jsonl"], "what it did until then"


def test_a_folder_where_a_result_would_go_is_named_before_any_work(digits, tmp_path):
    (tmp_path / "weights.pt").mkdir()
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path)
    assert result.returncode == 2
    assert "holds a folder weights.pt" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what a machine without CUDA says")
def test_cuda_where_there_is_none(tmp_path):
    result = train("--device", "cuda", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "finds no CUDA device" in result.stderr


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_cost(name):
    sample = data.bundled_sample().limited(64)
    torch.manual_seed(0)
    model = mg.DocumentCNN()
    optimizer = OPTIMIZERS[name](model.parameters())
    x, labels = normalised(sample.train.images, sample), sample.train.labels
    costs = []
    for _ in range(6):
        optimizer.zero_grad()
        cost = model.cost(x, labels)
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    schedule = step_sizes(name, optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.2)
    if name == "constant":
        assert set(rates) == {0.2}
    else:
        assert rates[-1] < 0.01 if name != "linear" else rates[-1] == pytest.approx(0.4 * 0.2)
        assert rates[0] == pytest.approx(0.2 if name == "cosine" else 0.2 / 25)


@pytest.mark.parametrize("steps_in_all", range(4, 16))
def test_a_short_linear_schedule_rises_and_falls(steps_in_all):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule, rates = step_sizes("linear", optimizer, steps_in_all), []
    for _ in range(steps_in_all):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.2 / 25) and rates[-1] == pytest.approx(0.4 * 0.2)
    assert max(rates) <= 0.2 + 1e-12 and max(rates) > 0.15


def test_minibatches_show_every_image_in_the_order_that_is_given(monkeypatch):
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    dataset = replace(data.bundled_sample(), train=data.Split(images, torch.arange(10)))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    for gathered, first in ((1024, 0), (8, 0), (1, 0), (8, 1)):
        monkeypatch.setattr(steps, "GATHERED", gathered)
        batches = list(minibatches(dataset, order, 4, dtype=torch.float64, first=first))
        assert [len(labels) for _, labels in batches] == [4, 4, 2][first:]
        assert torch.equal(torch.cat([labels for _, labels in batches]), order[4 * first :])
        for x, labels in batches:
            assert torch.equal(x, normalised(images[labels], dataset, torch.float64))
