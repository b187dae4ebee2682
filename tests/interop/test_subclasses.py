"""Promise: converted layers pass for native ones: in forwards and tools that ask for types, and in their strides."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import manualgrad as mg
from manualgrad.interop import layers, operations
from manualgrad.interop.from_torch import COUNTERPARTS

# ------------------------------------------------------------------------------------- forwards that ask for types


class Features(nn.Module):
    """A forward that returns the outputs of its ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self.net:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                outputs.append(x)
        return outputs


class Indices(nn.Module):
    """A forward that drops the indices of a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2, return_indices=True), nn.Conv2d(4, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)[0] if isinstance(layer, nn.MaxPool2d) else layer(x)
        return x


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("kind", [Features, Indices])
def test_a_forward_that_asks_for_types_computes_the_same(kind: type[nn.Module], functional: bool) -> None:
    native = kind()
    x = torch.randn(2, 1, 10, 10)
    expected = native(x)
    assert len(expected) == 2
    torch.testing.assert_close(mg.from_torch(native, functional=functional)(x), expected)


@pytest.mark.parametrize(("native", "ours"), COUNTERPARTS.items(), ids=lambda kind: kind.__module__)
def test_ours_is_a_subclass_with_another_forward(native: type[nn.Module], ours: type[nn.Module]) -> None:
    """So a constructor call that a tool makes with ``type(layer)`` works, and so do attributes and ``extra_repr``."""
    assert issubclass(ours, native) and ours.__name__ == native.__name__
    assert [name for name, value in vars(ours).items() if inspect.isfunction(value)] == ["forward"]
    assert inspect.signature(ours) == inspect.signature(native)


def test_attributes_are_natives_after_copy_and_pickle() -> None:
    native = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect"), nn.ReLU(inplace=True), nn.Flatten(0, 1),
        nn.MaxPool2d(2, ceil_mode=True, return_indices=True), nn.Softmax(1), nn.Linear(2, 3), nn.CrossEntropyLoss(),
    )  # fmt: skip
    ours = mg.from_torch(native)
    for converted in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert repr(converted) == repr(native)
        for layer, expected in zip(converted, native, strict=True):
            assert type(layer) is COUNTERPARTS[type(expected)]
            plain = {
                name: value for name, value in vars(expected).items() if isinstance(value, (int, str, tuple, list))
            }
            assert {name: vars(layer)[name] for name in plain} == plain
            assert set(dir(layer)) - set(dir(expected)) == {"__prepare_scriptable__"}
        assert [type(layer) for layer in mg.to_torch(converted)] == [type(layer) for layer in native]


def test_initialization_hooks_and_groups_by_type() -> None:
    def initialize(layer: nn.Module) -> None:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.constant_(layer.weight, 0.25)

    native = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    ours = mg.from_torch(native)
    for model in (native, ours):
        model.apply(initialize)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), native.parameters(), strict=True))
    with_decay = [m.weight for m in ours.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert with_decay == [ours[0].weight, ours[3].weight]


def test_weights_computed_after_the_conversion() -> None:
    for change in (parametrizations.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)):
        native = nn.Conv2d(2, 3, 3)
        ours = mg.from_torch(native)
        change(native)
        change(ours)
        x = torch.randn(1, 2, 5, 5)
        torch.testing.assert_close(ours(x), native(x))
        torch.testing.assert_close(mg.to_torch(ours)(x), native(x))


def test_layers_of_earlier_versions_become_native() -> None:
    """Their pickles have two attributes more, and ``nn.Linear`` was converted to ``manualgrad.nn.Dense``."""
    conv, relu, dense = layers.Conv2d(2, 3, 3), layers.ReLU(inplace=True), nn.Linear(3, 2)
    conv.flip_kernel, relu.subgradient = False, 0.0
    dense.__class__ = mg.nn.Dense
    ours = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense, relu)
    back = mg.to_torch(ours)
    assert [type(layer) for layer in back] == [nn.Conv2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, nn.ReLU]
    assert vars(back[0]).keys() == vars(nn.Conv2d(2, 3, 3)).keys()
    assert vars(back[4]).keys() == vars(nn.ReLU()).keys()
    x = torch.randn(2, 2, 5, 5)
    torch.testing.assert_close(back(x), ours(x))


# ------------------------------------------------------------------------------------------------------- strides

SHAPES = [(2, 4, 6, 5), (1, 4, 6, 5), (2, 1, 6, 5), (2, 4, 1, 1), (1, 1, 1, 1), (2, 4, 1, 5)]


def in_layouts(shape: tuple[int, ...]) -> dict[str, Tensor]:
    batch, channels, height, width = shape
    return {
        "contiguous": torch.randn(shape),
        "channels_last": torch.randn(shape).to(memory_format=torch.channels_last),
        "rows and columns transposed": torch.randn(batch, channels, width, height).transpose(2, 3),
        "batch and channels transposed": torch.randn(channels, batch, height, width).transpose(0, 1),
        "every second column": torch.randn(batch, channels, height, 2 * width)[..., ::2],
        "half the channels": torch.randn(batch, 2 * channels, height, width)
        .to(memory_format=torch.channels_last)[:, :channels],
        "expanded": torch.randn(1, channels, height, width).expand(shape),
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_have_natives_strides(shape: tuple[int, ...]) -> None:
    weights = {
        name: torch.randn(out_channels, shape[1], size, size).to(memory_format=memory_format)
        for name, out_channels, size, memory_format in (
            ("3x3", 4, 3, torch.contiguous_format), ("3x3, channels_last", 4, 3, torch.channels_last),
            ("one channel", 1, 3, torch.contiguous_format), ("1x1", 4, 1, torch.contiguous_format),
        )
    }  # fmt: skip
    pairs = {
        **{f"conv2d {name}": (F.conv2d, operations.conv2d, (w, None, 1, w.shape[2] // 2))
           for name, w in weights.items()},
        "max_pool2d": (F.max_pool2d, operations.max_pool2d, (3, 2, 1)),
        "max_pool2d 1x1": (F.max_pool2d, operations.max_pool2d, (1,)),
        "softmax": (F.softmax, operations.softmax, (1,)),
    }  # fmt: skip
    for layout, x in in_layouts(shape).items():
        for name, (native, ours, options) in pairs.items():
            strides = []
            for function in (native, ours):
                leaf = x.detach().requires_grad_()
                y = function(leaf, *options)
                grads = (torch.ones(()).expand(y.shape), torch.randn(y.shape).to(memory_format=torch.channels_last))
                grads_x = [torch.autograd.grad(y, leaf, g, retain_graph=True)[0] for g in grads]
                strides.append([y.stride(), *(g.stride() for g in grads_x)])
            assert strides[0] == strides[1], f"{name}, {layout}"


def test_a_pooling_of_single_pixels_is_no_view_of_its_input() -> None:
    x = torch.randn(1, 3, 2, 2).to(memory_format=torch.channels_last)
    before = x.clone()
    operations.max_pool2d(x, 1).zero_()
    assert torch.equal(x, before)


class FlatGradient(torch.autograd.Function):
    """The identity, with a backward that views its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g.view(-1).view(g.shape)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Softmax(1)], ids=repr)
def test_gradients_can_be_viewed(layer: nn.Module) -> None:
    """The gradient penalty of WGAN-GP, and a Function whose backward views its gradient."""
    gradients = []
    for module in (layer, mg.from_torch(layer)):
        x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3), requires_grad=True)
        z = FlatGradient.apply(x)
        (grad,) = torch.autograd.grad(module(z).square().sum(), z, create_graph=True)
        (grad.view(2, -1).norm(2, dim=1) - 1).square().mean().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
