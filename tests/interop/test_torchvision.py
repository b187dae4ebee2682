"""Promise: torchvision's networks have native gradients with our layers, and the command that checks it can fail."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn
from tqdm import tqdm

from compare.models.comparison import (
    FLOAT32_LIMIT,
    FLOAT64_LIMIT,
    FlipCheck,
    LimitCheck,
    ModelComparison,
    compare_models,
)
from compare.models.gradient_errors import measure_errors
from compare.models.torchvision_models import (
    ModelOptions,
)
from tests.interop.wrong_models import make_wrong

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


class Flipping(nn.Sequential):
    """A network whose sums are a millionth of their terms: float32 gets the sign of some of them wrong."""

    def __init__(self) -> None:
        twice, sums = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 4, 3, bias=False)
        super().__init__(twice, sums, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 1000))
        with torch.no_grad():
            twice.weight.copy_(torch.tensor([[1, 0, 0], [1 + 2**-20, 0, 0]]).view(2, 3, 1, 1))
            sums.weight[:, 1] = -sums.weight[:, 0]


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
