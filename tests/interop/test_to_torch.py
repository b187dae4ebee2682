"""Promise: ``to_torch`` makes our layers native ones that compute the same, or leaves and lists them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg
from tests.interop.model_runs import CLOSE, run
from tests.ops.test_purity import OperatorRecorder

IMAGE = (2, 4, 7, 6)
LAYERS = {
    "Conv2d": (lambda: mg.nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2), nn.Conv2d, IMAGE),
    "Conv2d, same": (lambda: mg.nn.Conv2d(4, 3, (4, 3), padding="same", bias=False), nn.Conv2d, IMAGE),
    "Conv2d, flip_kernel=False": (lambda: mg.nn.Conv2d(4, 3, 3, flip_kernel=False), nn.Conv2d, IMAGE),
    "MaxPool2d": (lambda: mg.nn.MaxPool2d(), nn.MaxPool2d, IMAGE),
    "MaxPool2d, all options": (lambda: mg.nn.MaxPool2d(3, (2, 1), 1, (2, 1), True, True), nn.MaxPool2d, IMAGE),
    "Flatten": (lambda: mg.nn.Flatten(), nn.Sequential, IMAGE),
    "Dense": (lambda: mg.nn.Dense(6, 3), nn.Linear, IMAGE),
    "ReLU": (lambda: mg.nn.ReLU(subgradient=0), nn.ReLU, IMAGE),
    "Softmax": (lambda: mg.nn.Softmax(), nn.Softmax, IMAGE),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("make", "native", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_becomes_a_native_one_that_computes_the_same(make, native: type, shape: tuple[int, ...]) -> None:
    ours = make().double()
    converted, report = mg.to_torch(ours, report=True)
    assert type(converted) is native and not report.left
    assert not {"flip_kernel", "subgradient"} & vars(converted).keys()
    x = torch.randn(shape, dtype=torch.float64)
    results, expected = run(converted, x), run(ours, x)
    if getattr(ours, "flip_kernel", False):
        assert "mirrored" in str(report)
        assert torch.equal(converted.weight, ours.weight.flip(2, 3))
        results["weight"] = results["weight"].flip(2, 3)
    torch.testing.assert_close(results, expected, **CLOSE)
    assert repr(converted)  # reads attributes of the native layer


def test_the_loss_becomes_native() -> None:
    ours = mg.nn.SoftmaxCrossEntropyLoss(torch.tensor([1.0, 2, 3]), 1, "sum", 0.2)
    converted = mg.to_torch(ours)
    assert type(converted) is nn.CrossEntropyLoss
    z, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    torch.testing.assert_close(converted(z, labels), ours(z, labels))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("subgradient", [0, 0.5])
def test_document_cnn_becomes_a_sequential_with_the_same_names(fused: bool, subgradient: float) -> None:
    shape = {"image_size": (18, 20), "channels": (3, 4), "hidden": (6,), "classes": 5}
    model = mg.DocumentCNN(**shape, fused=fused, subgradient=subgradient, dtype=torch.float64).eval()
    converted, report = mg.to_torch(model, report=True)
    assert type(converted) is nn.Sequential
    assert list(converted.state_dict()) == list(model.state_dict())
    assert [name for name, _ in converted.named_children()] == [
        "conv0", "relu0", "pool0", "conv1", "relu1", "pool1", "flatten", "dense2", "relu2", "dense3"
    ]  # fmt: skip
    assert not any(m.training for m in converted.modules())
    assert [entry.name for entry in report.left] == (["relu0", "relu1", "relu2"] if subgradient else [])
    assert all("any_subgradient" in entry.why for entry in report.left)
    x = torch.randn(4, 1, 18, 20, dtype=torch.float64)
    results, expected = run(converted, x), run(model, x)
    for name in results:
        if name.startswith("conv") and name.endswith("weight"):
            results[name] = results[name].flip(2, 3)
    torch.testing.assert_close(results, expected, **CLOSE)


def test_any_subgradient_makes_every_layer_native() -> None:
    model = mg.DocumentCNN(image_size=16, channels=(2,), hidden=(3,))
    converted, report = mg.to_torch(model, any_subgradient=True, report=True)
    assert not report.left
    assert all(type(m).__module__.startswith("torch") for m in converted.modules())
    converted_back = mg.from_torch(converted)
    x = torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(converted_back(x), model(x))
    with OperatorRecorder() as recorder:
        converted_back(x).sum().backward()
    assert not recorder.forbidden()


def test_a_fused_layer_outside_document_cnn_becomes_three() -> None:
    ours = nn.Sequential(mg.nn.ConvReLUMaxPool2d(2, 3, 3, 2, 1, subgradient=0), nn.BatchNorm2d(3)).double()
    called: list[str] = []
    ours[0].register_forward_hook(lambda *_: called.append("pooled"))
    converted, report = mg.to_torch(ours, report=True)
    assert [type(m) for m in converted[0]] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    assert "conv, relu and pool; the kernel is flipped" in str(report)
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(converted(x), ours(x), **CLOSE)
    assert called == ["pooled", "pooled"]


def test_hooks_that_no_native_layer_can_keep_are_refused() -> None:
    model = mg.DocumentCNN(image_size=16, channels=(2,))
    model.conv0.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="the hooks of conv0 cannot be kept"):
        mg.to_torch(model)


def test_a_shared_kernel_is_flipped_once() -> None:
    first, second = mg.nn.Conv2d(2, 2, 3), mg.nn.Conv2d(2, 2, 3)
    second.weight = first.weight
    ours = nn.Sequential(first, second, first)
    converted = mg.to_torch(ours)
    assert converted[0] is converted[2] and converted[0].weight is converted[1].weight
    x = torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(converted(x), ours(x))


def test_a_shared_kernel_that_cannot_be_flipped_is_named() -> None:
    ours = nn.Sequential(mg.nn.Conv2d(2, 2, 3), mg.nn.Conv2d(2, 2, 3, flip_kernel=False))
    with pytest.raises(ValueError, match=r"0\.weight is flipped for PyTorch, so it cannot be shared"):
        mg.to_torch(ours, copy_parameters=False)
    ours[1].weight = ours[0].weight
    with pytest.raises(ValueError, match=r"0\.weight is flipped for PyTorch, but is also 1\.weight, which is not"):
        mg.to_torch(ours)


class OwnForward(mg.nn.Dense):
    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


def test_a_subclass_of_ours_is_left_and_listed() -> None:
    converted, report = mg.to_torch(nn.Sequential(OwnForward(2, 2), nn.Linear(2, 2)), report=True)
    assert type(converted[0]) is OwnForward
    assert [(entry.name, "a subclass" in entry.why) for entry in report.left] == [("0", True)]


def test_flipping_keeps_the_memory_format() -> None:
    ours = mg.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    assert mg.to_torch(ours).weight.stride() == ours.weight.stride()
