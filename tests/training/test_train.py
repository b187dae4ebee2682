"""Promise: train.py learns real digits, gives the same weights each time, and writes all results."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib import rc_context
from matplotlib.image import imread

import manualgrad as mg
from manualgrad import data
from manualgrad.training import plots
from manualgrad.training.evaluation import EvalResult, evaluate
from tests.training.command_line import QUICK, train

ROOT = Path(__file__).parents[2]


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


def test_plots_need_nothing_that_a_person_set_for_other_plots(tmp_path):
    """With text.usetex, matplotlib calls LaTeX, which few machines have."""
    result = EvalResult(torch.arange(10), torch.arange(10), loss=0.1)
    with rc_context({"text.usetex": True, "font.family": ["no such font"]}), plots.default_style():
        figure = plots.confusion_matrix(result, tuple("0123456789"), "title")
        plots.save_png(figure, tmp_path / "plot.png")
    assert imread(tmp_path / "plot.png").std() > 0.02
