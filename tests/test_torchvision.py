"""Promise: torchvision's networks train with our layers as with PyTorch's; the command that says so can say no."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from torch import Tensor, nn

import manualgrad as mg
from scripts import models
from scripts.decisions import flips, made_to_decide, recorded

NETWORKS = {"alexnet": (64, 2), "vgg11_bn": (32, 2), "resnet18": (64, 2)}
get_model = torchvision.models.get_model


def narrowed(name: str, weights: None) -> nn.Module:
    """torchvision's network, but with 256 in place of the 4096 columns between which almost all its weights lie."""
    with torch.device("meta"):
        model = get_model(name, weights=weights)
        if hasattr(model, "classifier"):
            model.avgpool = nn.AdaptiveAvgPool2d(1)
            features = [m.out_channels for m in model.features if isinstance(m, nn.Conv2d)][-1]
            for n, layer in enumerate(model.classifier):
                if isinstance(layer, nn.Linear):
                    out = 256 if layer.out_features == 4096 else layer.out_features
                    model.classifier[n] = nn.Linear(features, out)
                    features = out
    model.to_empty(device="cpu")
    for layer in model.modules():
        getattr(layer, "reset_parameters", lambda: None)()
    return model


@pytest.mark.parametrize(("name", "shape"), NETWORKS.items(), ids=NETWORKS)
def test_gradients_are_natives(name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In training mode, with dropout. In float32 rounding alone is judged: one flip would decide about one seed."""
    monkeypatch.setattr(torchvision.models, "get_model", narrowed)
    result = models.measure(name, 0, *shape)
    assert result.float64 <= models.FLOAT64_LIMIT
    assert result.ours.rounding <= models.FLOAT32_LIMIT * result.native.rounding
    assert result.native.rounding < 1e-4, "the oracle that decides as the run did differs by rounding"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch_size"), {"alexnet": 2, "vgg11_bn": 1, "resnet18": 2}.items())
def test_gradients_are_natives_at_224(name: str, batch_size: int) -> None:
    """The whole networks, five seeds. resnet18 flips in most of them, so that a median of five is one flip's work."""
    results = [models.measure(name, seed, 224, batch_size) for seed in range(5)]
    words, kept = models.verdict(results)
    print(words)
    assert max(result.float64 for result in results) <= models.FLOAT64_LIMIT
    assert all(result.ours.rounding <= models.FLOAT32_LIMIT * result.native.rounding for result in results)
    assert kept or name == "resnet18"


# ----------------------------------------------------------------------------------------------- the command itself


class Tiny(nn.Sequential):
    """Enough of a network for the command: a shared in-place ReLU, a pooling, a batch norm, dropout."""

    def __init__(self) -> None:
        relu = nn.ReLU(inplace=True)
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), relu, nn.Flatten(),
            nn.Dropout(), nn.LazyLinear(1000),
        )  # fmt: skip
        self(torch.zeros(2, 3, 16, 16))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: Tiny())


@pytest.mark.usefixtures("tiny")
def test_the_command_prints_what_it_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["models.py", "alexnet", "--size", "16", "--seeds", "2", "--rounds", "1"])
    assert models.main() == 0
    printed = capsys.readouterr().out
    for words in (
        "alexnet, 2 images of 16x16",
        "0.bias",
        "0 but for rounding",
        "seed 1: float32 error",
        "MiB native",
    ):
        assert words in printed


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("factor", [1, 1 + 1e-6, 1 + 1e-3])
def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = mg.from_torch

    def wrong(module: nn.Module, **options: object) -> nn.Module:
        made = right(module, **options)
        made[3].register_full_backward_hook(lambda layer, g, _: tuple(each * factor for each in g))
        return made

    monkeypatch.setattr(mg, "from_torch", wrong)
    results = [models.measure("tiny", seed, 16) for seed in range(3)]
    assert models.verdict(results)[1] == (factor == 1)
    assert (max(result.float64 for result in results) > models.FLOAT64_LIMIT) == (factor > 1)
    if factor == 1 + 1e-3:
        assert all(result.ours.rounding > models.FLOAT32_LIMIT * result.native.rounding for result in results)


def gradient(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return models.gradients(model, nn.CrossEntropyLoss(), models.Batch(x, torch.tensor([3, 1]), seed=7))


def test_a_network_made_to_decide_as_it_did_is_itself_and_one_flip_is_counted() -> None:
    model, x = Tiny().double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with recorded(model) as decisions:
        own = gradient(model, x)
    assert {name: len(made) for name, made in decisions.items()} == {"2": 2, "3": 1}, "one ReLU is called twice"
    with made_to_decide(model, decisions):
        same = gradient(model, x)
    assert models.distance(own, same) <= 1e-15 * models.norm(own)
    other = {name: [each.clone() for each in made] for name, made in decisions.items()}
    other["2"][1][0, 0, 0, 0] ^= True
    assert flips(other, decisions) == {"2": 1, "3": 0}
    with made_to_decide(model, other):
        assert models.distance(own, gradient(model, x)) > 1e-5 * models.norm(own)
    assert torch.equal(gradient(model, x)["0.weight"], own["0.weight"]), "afterwards it decides by itself again"


def test_bytes_are_the_most_held_at_once() -> None:
    def step() -> None:
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(500, dtype=torch.uint8)
        del first, second
        torch.empty(1200, dtype=torch.uint8)

    assert models.most_bytes(step) == 1500


@pytest.mark.parametrize(("arguments", "words"), [
    (["alexnett"], "'alexnett' is not a classification model of torchvision; there are alexnet"),
    (["alexnet", "--batch", "0"], "--batch must be at least 1, got 0"),
])  # fmt: skip
def test_the_command_names_a_mistake(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["models.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        models.main()
    assert stopped.value.code == 2 and words in capsys.readouterr().err
