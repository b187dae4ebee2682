"""Promise: train.py learns real digits, gives the same weights each time, writes all results, and explains errors."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib import rc_context
from matplotlib.image import imread

import manualgrad as mg
from manualgrad import data
from manualgrad.training import allocator, batches, command, plots, recipes
from manualgrad.training.batches import minibatches, normalize
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.evaluation import EvalResult, evaluate
from manualgrad.training.optimizers import OPTIMIZERS, SCHEDULES, make_lr_scheduler
from manualgrad.training.run import ENGINES, TrainingRun
from tests.training.command_line import train

ROOT = Path(__file__).parents[2]
QUICK = ("--limit", "640", "--epochs", "2", "--batch-size", "32")


@pytest.fixture(scope="session")
def run(digits, tmp_path_factory) -> tuple[SimpleNamespace, Path]:
    out = tmp_path_factory.mktemp("run") / "new" / "folder"
    return train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", out, *QUICK), out


def test_it_learns_and_prints_the_accuracy(run):
    result, out = run
    assert result.returncode == 0, result.stderr
    accuracy = float(
        re.search(r"^test accuracy ([\d.]+) %: \d+ of 300 test images are misclassified", result.stdout, re.M)[1]
    )
    assert accuracy > 50, "after 40 steps; guessing gives 10"
    assert "fashion-mnist, first 640 training images" in result.stdout
    assert str(out) in result.stdout
    assert "Traceback" not in result.stderr


def test_metrics_name_the_dataset_and_have_every_step(run):
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


def test_the_weights_give_the_reported_accuracy(run, digits):
    _, out = run
    model = mg.DocumentCNN()
    model.load_state_dict(torch.load(out / "weights.pt", weights_only=True))
    dataset = data.load("fashion-mnist", digits).limited(640)
    metrics = json.loads((out / "metrics.json").read_text())
    assert evaluate(model, dataset.test, dataset).accuracy == pytest.approx(metrics["test_accuracy"])


@pytest.mark.parametrize("name", ["curves", "confusion", "kernels", "mistakes"])
def test_plots_are_not_blank(run, name):
    image = imread(run[1] / f"{name}.png")
    assert not logging.getLogger("matplotlib.font_manager").isEnabledFor(logging.WARNING), "its cache is no news"
    assert min(image.shape[:2]) > 100
    assert image[..., :3].std() > 0.02, "a blank image has no variation"


def test_the_weights_depend_on_the_seed_alone(run, digits, tmp_path):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, *QUICK)
    for seed, is_equal in ((0, True), (1, False)):
        assert train(*common, "--out", tmp_path / str(seed), "--seed", seed).returncode == 0
        again = torch.load(tmp_path / str(seed) / "weights.pt", weights_only=True)
        before = torch.load(run[1] / "weights.pt", weights_only=True)
        assert all(torch.equal(again[name], before[name]) for name in before) == is_equal


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


def test_a_crop_larger_than_the_images_is_an_error(digits, tmp_path):
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--crop", 29)
    assert result.returncode == 2
    assert "--crop 29: expected a side from 1 to 28 for images of 28x28, got 29" in result.stderr


def test_layers_that_do_not_fit_the_images_are_reported(digits, tmp_path):
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--channels", 4, 4, 4, 4)
    assert result.returncode == 2
    assert "leave no output" in result.stderr


def make_run(digits: Path, engine: str) -> TrainingRun:
    torch.manual_seed(0)
    model = mg.DocumentCNN(channels=(2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dataset = data.load("fashion-mnist", digits).limited(32)
    return TrainingRun(model, optimizer, make_lr_scheduler("one-cycle", optimizer, 4), dataset,
               epochs=EpochLayout(32, batch_size=8, num_epochs=1), seed=0, engine=engine)  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_normalizes_the_uint8_images_in_the_order_of_the_seed(engine, digits, monkeypatch):
    inputs, run = [], make_run(digits, engine)
    assert run.dataset.train.images.dtype == torch.uint8
    compute_gradients = run.compute_gradients
    monkeypatch.setattr(run, "compute_gradients", lambda x, *rest: (inputs.append(x), compute_gradients(x, *rest))[1])
    for _ in range(4):
        run.train_step()
    indices = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    for x, images in zip(inputs, run.dataset.train.images[indices].split(8), strict=True):
        expected = (images.double() / 255 - run.dataset.mean) / run.dataset.std
        torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=1e-6)  # float32 has 24 bits


def test_the_warmup_step_changes_nothing(digits):
    for engine in ENGINES:
        warm, cold = make_run(digits, engine), make_run(digits, engine)
        seconds = warm.seconds
        warm.run_warmup_step()
        assert (warm.step, warm.seconds, warm.losses) == (0, seconds, [])
        assert [warm.train_step().loss for _ in range(4)] == [cold.train_step().loss for _ in range(4)]
        assert all(map(torch.equal, warm.model.parameters(), cold.model.parameters()))


def test_the_allocator_is_tuned_unless_the_option_disables_it(digits, tmp_path, monkeypatch, no_results):
    monkeypatch.setattr(allocator, "tune", lambda: allocator.Tuning(True, "description of the test"))
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 32, "--epochs", 1, "--out", tmp_path)
    assert "memory  description of the test\n" in train(*common, allocator_tuning=True).stdout
    assert "memory" not in train(*common).stdout


# ------------------------------------------------------------------------------------------- errors


def test_a_missed_target_exits_with_1_and_a_reached_one_with_0(digits, tmp_path):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--limit", 64, "--epochs", 1, "--out", tmp_path)
    missed = train(*common, "--target-accuracy", 100)
    assert missed.returncode == 1
    assert "% is below the target of 100.0 %" in missed.stderr
    assert train(*common, "--target-accuracy", 1.1).returncode == 0


def test_without_a_network_the_sample_is_used_and_named(tmp_path):
    offline = "import socket\ndef getaddrinfo(*_, **__): raise socket.gaierror('offline')\n"
    (tmp_path / "sitecustomize.py").write_text(offline + "socket.getaddrinfo = getaddrinfo\n")
    arguments = ["--out", "out", "--limit", "320", "--epochs", "1"]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "train.py"), *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "the bundled sample of MNIST" in result.stdout
    assert "mnist-sample" in json.loads((tmp_path / "out" / "metrics.json").read_text())["dataset"]
    assert not (tmp_path / "data").exists()


INVALID = {
    "unknown dataset": (("--dataset", "minst"), "invalid choice: 'minst'"),
    "unknown optimizer": (("--optimizer", "sdg"), "invalid choice: 'sdg'"),
    "unknown schedule": (("--schedule", "cosinus"), "invalid choice: 'cosinus'"),
    "unknown device": (("--device", "gpu"), "invalid choice: 'gpu'"),
    "unknown flag": (("--lr", "0.1"), "unrecognized arguments: --lr"),
    "no epochs": (("--epochs", "0"), "expected a whole number, at least 1, at most 1000000, got '0'"),
    "half an epoch": (("--epochs", "0.5"), "at least 1, at most 1000000, got '0.5'"),
    "more epochs than memory": (("--epochs", "99999999999"), "at least 1, at most 1000000, got '99999999999'"),
    "a number of 400 digits": (("--hidden", "1" + "0" * 400), "at most 1000000, got '1000"),
    "a rate beyond float32": (("--learning-rate", "1e300"), "at most 1e+30, got '1e300'"),
    "an infinite rate": (("--learning-rate", "inf"), "at most 1e+30, got 'inf'"),
    "an empty folder name": (("--data-dir", ""), "argument --data-dir: expected a path, got ''"),
    "empty batches": (("--batch-size", "-4"), "expected a whole number, at least 1, at most 1000000000, got '-4'"),
    "a share of 0": (("--shares", "0.5", "0"), "expected a number, at least 0.001, at most 1, got '0'"),
    "an average over too many steps": (
        ("--average", "1.5"),
        "expected a number, at least 0, at most 1, got '1.5'",
    ),
    "a limit of 0": (("--limit", "0"), "expected a whole number, at least 1, got '0'"),
    "a negative rate": (("--learning-rate", "-1"), "expected a number, at least 0, at most 1e+30, got '-1'"),
    "a rate that is not a number": (("--learning-rate", "nan"), "at least 0, at most 1e+30, got 'nan'"),
    "no percentage": (
        ("--target-accuracy", "0.992"),
        "expected a percentage, such as 99.2, got '0.992'",
    ),
    "a seed beyond 64 bits": (("--seed", str(2**70)), "at most 9223372036854775807"),
    "a seed that is not a number": (
        ("--seed", "x"),
        "expected a whole number, at least 0, at most 9223372036854775807, got 'x'",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_options_give_one_message_and_exit_code_2(case, tmp_path):
    arguments, message = INVALID[case]
    result = train(*arguments, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") <= 2, "no list of all options"
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_damaged_missing_and_unwritable_files_are_reported(digits, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    files = sorted((digits / "FashionMNIST" / "raw").iterdir())
    for file in files:
        (raw / file.name).write_bytes(file.read_bytes())
    common = ("--dataset", "fashion-mnist", "--data-dir", tmp_path, "--out", tmp_path / "new" / "out")
    (raw / files[0].name).write_bytes(files[0].read_bytes()[:-1])
    truncated = train(*common)
    (raw / files[0].name).unlink()
    missing = train(*common)
    assert not (tmp_path / "new").exists(), "a refused run leaves no empty folder"
    (tmp_path / "file").write_text("")
    unwritable = train(*common[:4], "--out", tmp_path / "file")
    for result, message in ((truncated, "is truncated"), (missing, "missing"), (unwritable, "cannot be written to")):
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert str(raw / files[0].name) in truncated.stderr
    assert str(raw / files[0].name) in missing.stderr


def test_a_diverging_run_is_reported_and_writes_no_results(digits, tmp_path):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path / "out", *QUICK)
    result = train(*common, "--learning-rate", "1e30")
    assert result.returncode == 1
    assert re.search(r"the loss is (nan|inf) at step \d+ of epoch 1; .* smaller --learning-rate", result.stderr)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["metrics.jsonl"], "the metrics up to then"


def test_an_interrupted_run_is_reported_and_writes_no_results(digits, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "evaluate", interrupt)
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path / "out", *QUICK)
    assert result.returncode == 130
    assert "interrupted before all results were written" in result.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["metrics.jsonl"], "the metrics up to then"


def test_a_test_loss_that_is_not_finite_is_reported_and_writes_no_results(digits, tmp_path):
    """After the only step the weights are finite, and too large for the test images."""
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--limit", 64, "--epochs", 1)
    result = train(*common, "--learning-rate", 1e30)
    assert result.returncode == 1
    report = (
        r"train.py: the test loss is (nan|inf) after epoch 1; the first non-finite tensor is the output of \w+, .*"
    )
    assert re.fullmatch(report + r" try a smaller --learning-rate\. No results were written\n", result.stderr)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_folder_without_the_data_is_not_replaced_by_the_sample(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror("offline")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (tmp_path / "digits.csv").write_text("")
    result = train("--data-dir", tmp_path, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert f"train.py: error: mnist is not in {tmp_path} (it has: digits.csv" in result.stderr
    assert "sample" not in result.stdout and "Traceback" not in result.stderr


def test_the_name_of_the_command_is_in_its_messages_and_examples(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"], prog="python -m manualgrad train")
    text = capsys.readouterr().out
    assert (
        "usage: python -m manualgrad train [-h]" in text and "\npython -m manualgrad train --data-dir DIR  " in text
    )
    assert "torchrun --nproc-per-node=2 -m manualgrad train  " in text and "train.py" not in text


def test_plots_need_nothing_that_a_person_set_for_other_plots(tmp_path):
    """With text.usetex, matplotlib calls LaTeX, which few machines have."""
    result = EvalResult(torch.arange(10), torch.arange(10), loss=0.1)
    with rc_context({"text.usetex": True, "font.family": ["no such font"]}), plots.default_style():
        figure = plots.confusion_matrix(result, tuple("0123456789"), "title")
        plots.save_png(figure, tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").std() > 0.02


def test_a_folder_with_the_name_of_a_result_is_an_error_before_the_first_step(digits, tmp_path):
    (tmp_path / "weights.pt").mkdir()
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path)
    assert result.returncode == 2
    assert "contains a folder named weights.pt" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_cuda_device_is_an_error(tmp_path):
    result = train("--device", "cuda", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "finds no CUDA device" in result.stderr


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name):
    sample = data.bundled_sample().limited(64)
    torch.manual_seed(0)
    model = mg.DocumentCNN()
    optimizer = OPTIMIZERS[name](model.parameters())
    x, labels = normalize(sample.train.images, sample), sample.train.labels
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model.cost(x, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_start_peak_and_end_at_their_rates(name):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    scheduler = make_lr_scheduler(name, optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.2)
    if name == "constant":
        assert set(rates) == {0.2}
    else:
        assert rates[-1] < 0.01 if name != "linear" else rates[-1] == pytest.approx(0.4 * 0.2)
        assert rates[0] == pytest.approx(0.2 if name == "cosine" else 0.2 / 25)


@pytest.mark.parametrize("num_steps", range(4, 16))
def test_a_short_linear_schedule_rises_and_falls(num_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler, rates = make_lr_scheduler("linear", optimizer, num_steps), []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.2 / 25) and rates[-1] == pytest.approx(0.4 * 0.2)
    assert max(rates) <= 0.2 + 1e-12 and max(rates) > 0.15


def test_minibatches_have_every_image_in_the_given_order(monkeypatch):
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    dataset = replace(data.bundled_sample(), train=data.Split(images, torch.arange(10)))
    indices = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    for gather_size, first in ((1024, 0), (8, 0), (1, 0), (8, 1)):
        monkeypatch.setattr(batches, "GATHER_SIZE", gather_size)
        yielded = list(minibatches(dataset, indices, 4, dtype=torch.float64, first=first))
        assert [len(labels) for _, labels in yielded] == [4, 4, 2][first:]
        assert torch.equal(torch.cat([labels for _, labels in yielded]), indices[4 * first :])
        for x, labels in yielded:
            assert torch.equal(x, normalize(images[labels], dataset, torch.float64))
