"""Promise: torchvision's networks have native gradients with our layers, and the command that checks it can fail."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd import Function
from tqdm import tqdm

import manualgrad as mg
from compare.__main__ import main
from compare.models.comparison import (
    FLOAT32_LIMIT,
    FLOAT64_LIMIT,
    FlipCheck,
    LimitCheck,
    ModelComparison,
    compare_models,
)
from compare.models.decisions import count_flips, force_decisions, record_decisions
from compare.models.gradient_errors import distance, measure_errors, norm, parameter_gradients
from compare.models.torchvision_models import (
    Batch,
    ModelOptions,
    make_native_model,
    parameters_in_forward_order,
)

NETWORKS = {"alexnet": (64, 2), "vgg11_bn": (32, 2), "resnet18": (64, 2)}
get_model = torchvision.models.get_model


def get_narrow_model(name: str, weights: None) -> nn.Module:
    """torchvision's network with hidden layers of 256 features instead of 4096, which have most of its weights."""
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
    """In training mode, with dropout. In float32 the limit is on rounding: one flip would exceed it for one seed."""
    monkeypatch.setattr(torchvision.models, "get_model", get_narrow_model)
    result = measure_errors(name, 0, ModelOptions(*shape))
    assert result.float64_error <= FLOAT64_LIMIT
    assert result.ours.total_rounding <= FLOAT32_LIMIT * result.native.total_rounding
    assert result.native.total_rounding < 1e-4, (
        "float64 with the decisions of the float32 run must differ by rounding only"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch_size"), {"alexnet": 2, "vgg11_bn": 1, "resnet18": 2}.items())
def test_gradients_are_natives_at_224(name: str, batch_size: int) -> None:
    """The whole networks, five seeds."""
    assert compared(name, ModelOptions(224, batch_size), range(5)).failures == []


def compared(name: str, options: ModelOptions, seeds: range = range(3)) -> ModelComparison:
    with tqdm(disable=True) as bar:
        return compare_models([name], options, seeds, bar)[0]


# ------------------------------------------------------------------------------------------------- wrong gradients


class Tiny(nn.Sequential):
    """A small network for the command: a shared in-place ReLU, pooling, batch norm, dropout."""

    def __init__(self) -> None:
        relu = nn.ReLU(inplace=True)
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), relu, nn.Flatten(),
            nn.Dropout(), nn.LazyLinear(1000),
        )  # fmt: skip
        self(torch.zeros(2, 3, 16, 16))


class Flipping(nn.Sequential):
    """A network whose sums are a millionth of their terms: float32 gets the sign of some of them wrong."""

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
    """The identity, with a gradient that is ``factor`` times the right one."""

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
    """Make ``from_torch`` scale the gradient of one parameter, the last layer's bias, by ``factor``."""
    from_torch = mg.from_torch

    def wrong(module: nn.Module, **options: object) -> object:
        converted, report = from_torch(module, **options)
        last = converted[-1]
        last.forward = lambda input: mg.dense(input, last.weight, Scaled.apply(last.bias, factor))
        return converted, report

    monkeypatch.setattr(mg, "from_torch", wrong)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("factor", [1, 1 + 1e-6, 1 + 1e-3])
def test_a_wrong_gradient_exceeds_the_limits(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    make_wrong(monkeypatch, factor)
    float64, rounding, _ = compared("tiny", ModelOptions(16)).limit_checks
    assert float64.is_within_limit == (factor == 1)
    assert rounding.is_within_limit == (factor < 1 + 1e-3), "a millionth is within rounding"


@pytest.mark.parametrize("factor", [1, 1 + 1e-3])
def test_a_wrong_gradient_exceeds_the_rounding_limit_among_flips(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: Flipping())
    make_wrong(monkeypatch, factor)
    result = compared("flipping", ModelOptions(16), range(5))
    _, rounding, flips = result.limit_checks
    assert flips.is_within_limit and min(flips.ours, flips.native) > 20
    assert min(errors.total for errors in result.float32_errors("native")) > 0.01, (
        "flips must be larger than the fault"
    )
    assert rounding.native < 1e-5
    assert rounding.is_within_limit == (factor == 1)
    assert any("rounding only" in failure for failure in result.failures) == (factor != 1)


@pytest.mark.parametrize(("check", "expected"), [
    (LimitCheck("float64", 1e-9, None, None, 1e-9), True),
    (LimitCheck("float64", 1.1e-9, None, None, 1e-9), False),
    (LimitCheck("float64", math.nan, None, None, 1e-9), False),
    (LimitCheck("float32", 2.0, 1.0, 9.0, 2.0), True),
    (LimitCheck("float32", 2.1, 1.0, 0.1, 2.0), False),
    (LimitCheck("float32", math.nan, 1.0, 1.0, 2.0), False),
    (LimitCheck("float32", 0.0, 0.0, 1.0, 2.0), True),
    (LimitCheck("float32", 1e-30, 0.0, 1.0, 2.0), False),
    (FlipCheck("flips", 0, 0, None, 2.0), True),
    (FlipCheck("flips", 0, 40, None, 2.0), True),
    (FlipCheck("flips", 4, 0, None, 2.0), True),  # (2/3)^4 = 20 %
    (FlipCheck("flips", 11, 0, None, 2.0), True),  # (2/3)^11 = 1.2 %
    (FlipCheck("flips", 12, 0, None, 2.0), False),  # 0.8 %
    (FlipCheck("flips", 200, 100, None, 2.0), True),
    (FlipCheck("flips", 250, 100, None, 2.0), True),
    (FlipCheck("flips", 300, 100, None, 2.0), False),
    (FlipCheck("flips", 20_000, 10_000, None, 2.0), True),
    (FlipCheck("flips", 21_000, 10_000, None, 2.0), False),
])  # fmt: skip
def test_is_within_limit(check: LimitCheck, expected: bool) -> None:
    assert check.is_within_limit == expected


# ---------------------------------------------------------------------------------------------- measurements


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
     "one of torchvision:alexnet"),
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
