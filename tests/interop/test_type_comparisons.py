"""Promise: code of a model that compares the exact types of layers, which the conversion changes, is listed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad.interop import Left

TABLE = {nn.ReLU: 1}


def is_relu(layer: nn.Module) -> bool:
    return type(layer) is nn.ReLU


def is_exactly(layer: nn.Module, kind: type) -> bool:
    return type(layer) is kind


class Doubles(nn.Module):
    """Doubles the output of each layer for which :meth:`asks` returns True."""

    kinds = (nn.ReLU, nn.Conv2d)

    def __init__(self) -> None:
        super().__init__()
        self.net, self.table = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), {nn.ReLU: True}

    def asks(self, layer: nn.Module) -> object:
        return False

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x) * (2 if self.asks(layer) else 1)
        return x


class Is(Doubles):
    def asks(self, layer: nn.Module) -> object:
        return type(layer) is nn.ReLU


class ClassAttribute(Doubles):
    def asks(self, layer: nn.Module) -> object:
        return layer.__class__ != nn.Linear


class Dispatch(Doubles):
    def asks(self, layer: nn.Module) -> object:
        return {nn.ReLU: 1}.get(type(layer))


class GlobalTable(Doubles):
    def asks(self, layer: nn.Module) -> object:
        return type(layer) in TABLE and TABLE[type(layer)]


class OwnTable(Doubles):
    def asks(self, layer: nn.Module) -> object:
        return self.table.get(type(layer)) and type(layer) in self.kinds


class Variable(Doubles):
    def asks(self, layer: nn.Module) -> object:
        kind = type(layer)
        return kind is nn.ReLU


class Helper(Doubles):
    def asks(self, layer: nn.Module) -> object:
        return is_relu(layer)


class Argument(Doubles):
    def asks(self, layer: nn.Module) -> object:
        return is_exactly(layer, nn.ReLU)


class Match(Doubles):
    def asks(self, layer: nn.Module) -> object:
        match type(layer):
            case nn.ReLU:
                return True
        return False


class Text(Doubles):
    def asks(self, layer: nn.Module) -> object:
        return "activation.ReLU" in str(type(layer))


COMPARING = (Is, ClassAttribute, Dispatch, GlobalTable, OwnTable, Variable, Helper, Argument, Match, Text)


def comparisons(model: nn.Module, **options: bool) -> list[Left]:
    return [entry for entry in mg.from_torch(model, report=True, **options)[1].left if "exact type" in entry.why]


@pytest.mark.parametrize("kind", COMPARING)
def test_a_forward_that_compares_types_is_listed_with_its_line(kind: type[nn.Module]) -> None:
    native, x = kind(), torch.randn(2, 3)
    (entry,) = comparisons(native)
    assert "test_type_comparisons.py:" in entry.why and "isinstance works" in entry.why
    with pytest.warns(UserWarning, match="compares the exact types of layers"):
        ours = mg.from_torch(native)
    assert not torch.equal(ours(x), native(x))


class OfItself(Doubles):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * (2 if type(self) is OfItself else 1)


def test_a_rewritten_module_that_compares_its_own_type_is_listed() -> None:
    assert not comparisons(OfItself())
    assert "OfItself" in comparisons(OfItself(), functional=True)[0].why


class Harmless(Doubles):
    def asks(self, layer: nn.Module) -> object:
        same = type(layer) is type(self.net[1]) and type(layer).__name__ == "ReLU"
        return same and type(layer.inplace) is bool and type(layer) not in (nn.Conv2d, nn.GELU, None)


def test_other_comparisons_are_not_listed() -> None:
    native, x = Harmless(), torch.randn(2, 3)
    assert not comparisons(native) and not comparisons(native, functional=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(mg.from_torch(native)(x), native(x))
