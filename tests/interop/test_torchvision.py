"""Promise: torchvision's networks train with our layers as with PyTorch's; the command that says so can say no."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd import Function
from tqdm import tqdm

import manualgrad as mg
from compare.__main__ import main
from compare.models import measuring
from compare.models.decisions import flips, made_to_decide, recorded
from compare.models.measuring import distance, measure, norm
from compare.models.networks import Batch, Shape, in_order_of_depth, native_model
from compare.models.result import FLOAT32_LIMIT, FLOAT64_LIMIT, Judgement, ModelComparison, compare_models

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
    result = measure(name, 0, Shape(*shape))
    assert result.float64 <= FLOAT64_LIMIT
    assert result.ours.rounding <= FLOAT32_LIMIT * result.native.rounding
    assert result.native.rounding < 1e-4, "the oracle that decides as the run did differs by rounding"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch_size"), {"alexnet": 2, "vgg11_bn": 1, "resnet18": 2}.items())
def test_gradients_are_natives_at_224(name: str, batch_size: int) -> None:
    """The whole networks, five seeds. resnet18 flips in most of them, so its medians are each one flip's size."""
    result = compared(name, Shape(224, batch_size), range(5))
    print(*result.judgements, sep="\n")
    missed = {judged.what for judged in result.judgements if not judged.kept}
    assert missed <= ({"float32, flips and all"} if name == "resnet18" else set())


def compared(name: str, shape: Shape, seeds: range = range(3)) -> ModelComparison:
    with tqdm(disable=True) as bar:
        return compare_models([name], shape, seeds, bar)[0]


# ------------------------------------------------------------------------------------------------- wrong gradients


class Tiny(nn.Sequential):
    """Enough of a network for the command: a shared in-place ReLU, a pooling, a batch norm, dropout."""

    def __init__(self) -> None:
        relu = nn.ReLU(inplace=True)
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), relu, nn.Flatten(),
            nn.Dropout(), nn.LazyLinear(1000),
        )  # fmt: skip
        self(torch.zeros(2, 3, 16, 16))


class Flipping(nn.Sequential):
    """Sums that come to a millionth of their terms, exactly: float32 gets the sign of some of them wrong."""

    def __init__(self) -> None:
        twice, sums = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 4, 3, bias=False)
        super().__init__(twice, sums, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 1000))
        with torch.no_grad():
            twice.weight.copy_(torch.tensor([[1, 0, 0], [1 + 2**-20, 0, 0]]).view(2, 3, 1, 1))
            sums.weight[:, 1] = -sums.weight[:, 0]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: Tiny())


class Scaled(Function):
    """The same; its gradient is ``factor`` times the right one."""

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.factor, None


def make_wrong(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """From here on, the gradient of one parameter, the last layer's bias, is wrong by ``factor`` in ours."""
    right = mg.from_torch

    def wrong(module: nn.Module, **options: object) -> object:
        made, report = right(module, **options)
        last = made[-1]
        last.forward = lambda input: mg.dense(input, last.weight, Scaled.apply(last.bias, factor))
        return made, report

    monkeypatch.setattr(mg, "from_torch", wrong)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("factor", [1, 1 + 1e-6, 1 + 1e-3])
def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    make_wrong(monkeypatch, factor)
    float64, _, rounding = compared("tiny", Shape(16)).judgements
    assert float64.kept == (factor == 1)
    assert rounding.kept == (factor < 1 + 1e-3), "a millionth is as much as rounding"


@pytest.mark.parametrize("factor", [1, 1 + 1e-3])
def test_a_wrong_gradient_is_noticed_behind_flips(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: Flipping())
    make_wrong(monkeypatch, factor)
    result = compared("flipping", Shape(16), range(5))
    _, whole, rounding = result.judgements
    assert min(result.flips("ours"), result.flips("native")) > 20
    assert whole.kept and whole.native > 0.01, "flips are larger than the fault, and hide it"
    assert rounding.native < 1e-5
    assert rounding.kept == (factor == 1)
    assert any("rounding alone" in failure for failure in result.failures) == (factor != 1)


@pytest.mark.usefixtures("tiny")
def test_the_same_errors_in_another_order_are_no_fault() -> None:
    """Flips come to ours in other seeds than to native: paired by seed, they are 50 times native's."""
    result = compared("tiny", Shape(16), range(1))
    one = result.seeds[0]
    ours, native = (1e-4, 1e-3, 1e-2, 2e-6, 2e-6), (2e-6, 2e-6, 1e-4, 1e-3, 1e-2)
    seeds = [
        replace(one, ours=replace(one.ours, whole=a), native=replace(one.native, whole=b))
        for a, b in zip(ours, native, strict=True)
    ]
    whole = replace(result, seeds=seeds).judgements[1]
    assert (whole.ratio, whole.kept) == (1, True)
    assert whole.by_seed == pytest.approx(50)


@pytest.mark.parametrize(("judged", "kept"), [
    (Judgement("float64", 1e-9, None, None, 1e-9), True),
    (Judgement("float64", 1.1e-9, None, None, 1e-9), False),
    (Judgement("float64", math.nan, None, None, 1e-9), False),
    (Judgement("float32", 2.0, 1.0, 9.0, 2.0), True),
    (Judgement("float32", 2.1, 1.0, 0.1, 2.0), False),
    (Judgement("float32", math.nan, 1.0, 1.0, 2.0), False),
    (Judgement("float32", 0.0, 0.0, 1.0, 2.0), True),
    (Judgement("float32", 1e-30, 0.0, 1.0, 2.0), False),
])  # fmt: skip
def test_what_keeps_a_limit(judged: Judgement, kept: bool) -> None:
    assert judged.kept == kept


# ------------------------------------------------------------------------------------------------- what is measured


def gradient(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return measuring.gradients(model, nn.CrossEntropyLoss(), Batch(x, torch.tensor([3, 1]), seed=7))


def test_a_network_made_to_decide_as_it_did_is_itself_and_one_flip_is_counted() -> None:
    model, x = Tiny().double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with recorded(model) as decisions:
        own = gradient(model, x)
    assert {name: len(made) for name, made in decisions.items()} == {"2": 2, "3": 1}, "one ReLU is called twice"
    with made_to_decide(model, decisions):
        same = gradient(model, x)
    assert distance(own, same) <= 1e-15 * norm(own)
    other = {name: [each.clone() for each in made] for name, made in decisions.items()}
    other["2"][1][0, 0, 0, 0] ^= True
    assert flips(other, decisions) == {"2": 1, "3": 0}
    with made_to_decide(model, other):
        assert distance(own, gradient(model, x)) > 1e-5 * norm(own)
    assert torch.equal(gradient(model, x)["0.weight"], own["0.weight"]), "afterwards it decides by itself again"


@pytest.mark.usefixtures("tiny")
def test_a_parameter_without_a_gradient_in_ours_is_an_error_of_its_whole_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_wrong(monkeypatch, 0.0)
    result = measure("tiny", 0, Shape(16))
    assert result.ours.errors["8.bias"] == 1
    assert result.float64 == pytest.approx(result.share["8.bias"])


def test_depth_is_the_order_in_which_a_forward_comes_to_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.unused, self.first = nn.Linear(4, 1000), nn.Module(), nn.Conv2d(3, 4, 1)
            self.unused.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).mean((2, 3)))

    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: Backwards())
    found = in_order_of_depth("any", Shape(4))
    assert found == ["unused.weight", "first.weight", "first.bias", "last.weight", "last.bias"]


def test_a_model_has_the_weights_of_its_seed() -> None:
    one, same, other = (native_model("squeezenet1_1", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------- the command


def command(tmp_path: Path, *words: str) -> int:
    return main(["gradients", *words, "--out", str(tmp_path)])


@pytest.mark.usefixtures("tiny")
def test_the_command_reports_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    models = ("--model", "torchvision:alexnet", "--model", "torchvision:vgg11")
    assert command(tmp_path, *models, "--size", "16", "--seeds", "2") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for expected in (
        "alexnet, vgg11 of torchvision",
        "2 images of 16×16, 2 seeds",
        "Left native: BatchNorm2d 1, Dropout 1",
        "float32, rounding alone",
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
def test_a_limit_that_is_missed_ends_the_command_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    make_wrong(monkeypatch, 1 + 1e-3)
    assert command(tmp_path, "--model", "torchvision:alexnet", "--size", "16", "--seeds", "1") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "✗ alexnet: float64: ours is" in printed and "✗ alexnet: float32, rounding alone: medians" in printed


@pytest.mark.parametrize(("words", "message"), [
    ("gradients --model torchvision:alexnett", "'alexnett' is no classification model of torchvision; there are "
     "torchvision:alexnet"),
    ("gradients --model timm:alexnet", "--model timm:alexnet: expected torchvision:NAME, as torchvision:alexnet"),
    ("gradients --model alexnet", "--model alexnet: expected torchvision:NAME, as torchvision:alexnet"),
    ("gradients --model torchvision:fcn_resnet50", "'fcn_resnet50' is no classification model"),
    ("all --model torchvision:alexnet", "--model goes with gradients, not with all"),
    ("capabilities --model torchvision:alexnet", "--model goes with gradients, not with capabilities"),
    ("gradients --model torchvision:alexnet --cases mine.py", "--model and --cases are two comparisons"),
    ("gradients --model torchvision:alexnet --dtype float64", "--dtype goes with cases"),
    ("gradients --size 64", "--size goes with --model"),
    ("gradients --batch 1", "--batch goes with --model"),
    ("gradients --functional", "--functional goes with --model"),
    ("gradients --model torchvision:alexnet --size 16", "torchvision:alexnet does not run on a batch of 2 of 16x16"),
    ("gradients --model torchvision:vgg11_bn --batch 1 --size 16", "does not run on a batch of 1 of 16x16"),
])  # fmt: skip
def test_wrong_use_ends_with_2_and_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*words.split(), "--out", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("words", ["--size 0", "--batch -1", "--batch two"])
def test_a_size_is_a_whole_number_above_0(words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["gradients", "--model", "torchvision:alexnet", *words.split()])
    assert stopped.value.code == 2
    assert "expected a whole number above 0" in capsys.readouterr().err
