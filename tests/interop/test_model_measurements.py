"""Promise: what ``compare gradients --model`` measures is right, and its command writes a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from compare.__main__ import main
from compare.models.decisions import count_flips, force_decisions, record_decisions
from compare.models.gradient_errors import distance, measure_errors, norm, parameter_gradients
from compare.models.torchvision_models import (
    Batch,
    ModelOptions,
    make_native_model,
    parameters_in_forward_order,
)
from tests.interop.conftest import Tiny
from tests.interop.wrong_models import make_wrong

# ------------------------------------------------------------------------------------------------- wrong gradients


def gradient(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return parameter_gradients(model, nn.CrossEntropyLoss(), Batch(x, torch.tensor([3, 1]), dropout_seed=7))


def test_forced_decisions_reproduce_a_network_and_one_flip_is_counted() -> None:
    model, x = Tiny().double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with record_decisions(model) as decisions:
        own = gradient(model, x)
    assert {name: len(calls) for name, calls in decisions.items()} == {"2": 2, "3": 1}, "one ReLU is called twice"
    with force_decisions(model, decisions):
        same = gradient(model, x)
    assert distance(own, same) <= 1e-15 * norm(own)
    flipped = {name: [mask.clone() for mask in calls] for name, calls in decisions.items()}
    flipped["2"][1][0, 0, 0, 0] ^= True
    assert count_flips(flipped, decisions) == {"2": 1, "3": 0}
    with force_decisions(model, flipped):
        assert distance(own, gradient(model, x)) > 1e-5 * norm(own)
    assert torch.equal(gradient(model, x)["0.weight"], own["0.weight"]), "decisions must not be forced any more"


@pytest.mark.usefixtures("tiny")
def test_a_missing_gradient_has_a_relative_error_of_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_wrong(monkeypatch, 0.0)
    result = measure_errors("tiny", 0, ModelOptions(16))
    assert result.ours.by_parameter["8.bias"] == 1
    assert result.float64_error == pytest.approx(result.norm_fractions["8.bias"])


def test_parameters_are_listed_in_forward_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.unused, self.first = nn.Linear(4, 1000), nn.Module(), nn.Conv2d(3, 4, 1)
            self.unused.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).mean((2, 3)))

    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: Backwards())
    names = parameters_in_forward_order("any", ModelOptions(4))
    assert names == ["unused.weight", "first.weight", "first.bias", "last.weight", "last.bias"]


def test_the_seed_determines_the_weights() -> None:
    first, again, other = (
        make_native_model("squeezenet1_1", seed, ModelOptions()).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


# ------------------------------------------------------------------------------------------------- the command


def command(tmp_path: Path, *words: str) -> int:
    return main(["gradients", *words, "--out", str(tmp_path)])


@pytest.mark.usefixtures("tiny")
def test_the_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    models = ("--model", "torchvision:alexnet", "--model", "torchvision:vgg11")
    assert command(tmp_path, *models, "--size", "16", "--seeds", "2") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for expected in (
        "alexnet, vgg11 of torchvision",
        "2 images of 16×16, 2 seeds",
        "Left native: BatchNorm2d 1, Dropout 1",
        "float32, rounding only",
        "alexnet: error by parameter",
        "vgg11: flips",
        "No unexplained difference in 6 comparisons",
    ):
        assert expected in printed
    for name in ("report.html", "report.md"):
        assert "alexnet: error by depth" in (tmp_path / name).read_text()
    data = json.loads((tmp_path / "report.json").read_text())["sections"]["models"]["data"]
    assert [each["model"] for each in data] == ["alexnet", "vgg11"]
    first = data[0]
    assert first["order"][0] == "0.weight" and first["order"][-1] == "8.bias"
    assert [each["seed"] for each in first["seeds"]] == [0, 1]
    assert first["step"]["ours_seconds"] > 0


@pytest.mark.usefixtures("tiny")
def test_the_exit_code_is_1_if_a_limit_is_exceeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    make_wrong(monkeypatch, 1 + 1e-3)
    assert command(tmp_path, "--model", "torchvision:alexnet", "--size", "16", "--seeds", "1") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "✗ alexnet: float64: ours differs" in printed
    assert "✗ alexnet: float32, rounding only: median error" in printed


@pytest.mark.parametrize(("words", "message"), [
    ("gradients --model torchvision:alexnett", "'alexnett' is no classification model of torchvision; did you mean "
         "torchvision:alexnet?"),
        ("gradients --model torchvision:foo", "torchvision.models.list_models(module=torchvision.models) lists them"),
    ("gradients --model timm:alexnet", "--model timm:alexnet: expected torchvision:NAME, for example "
     "torchvision:alexnet"),
    ("gradients --model alexnet", "--model alexnet: expected torchvision:NAME, for example torchvision:alexnet"),
    ("gradients --model torchvision:fcn_resnet50", "'fcn_resnet50' is no classification model"),
    ("all --model torchvision:alexnet", "--model is for gradients and speed, not for all"),
    ("capabilities --model torchvision:alexnet", "--model is for gradients and speed, not for capabilities"),
    ("gradients --model torchvision:alexnet --cases mine.py", "--model and --cases cannot be used together"),
    ("gradients --model torchvision:alexnet --dtype float64", "--dtype cannot be used with --model"),
    ("gradients --size 64", "--size needs --model"),
    ("gradients --batch 1", "--batch needs --model"),
    ("gradients --functional", "--functional needs --model"),
    ("gradients --model torchvision:alexnet --size 16", "torchvision:alexnet does not run on a batch of 2 of 16x16"),
    ("gradients --model torchvision:vgg11_bn --batch 1 --size 16", "does not run on a batch of 1 of 16x16"),
])  # fmt: skip
def test_wrong_use_exits_with_2_and_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*words.split(), "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("words", ["--size 0", "--batch -1", "--batch two"])
def test_sizes_must_be_positive_integers(words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as error:
        main(["gradients", "--model", "torchvision:alexnet", *words.split()])
    assert error.value.code == 2
    assert "expected a whole number above 0" in capsys.readouterr().err
