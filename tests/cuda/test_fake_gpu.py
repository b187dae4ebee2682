"""Promise: a step on a GPU has all of its tensors there, and Python waits for none of them; seen without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manualgrad as mg
from manualgrad import backprop, from_torch, kernels
from manualgrad import nn as ours
from tests.cuda.fake_gpu import FakeGPU, backward, fake_gpu

pytest.importorskip("triton", reason="kernels for CUDA are written in Triton")
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="other tests run on the GPU"),
    pytest.mark.usefixtures("restore_kernels"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]


@pytest.fixture
def gpu(monkeypatch) -> Iterator[FakeGPU]:
    with fake_gpu(monkeypatch) as mode:
        yield mode


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="cuda", dtype=dtype)


def labels(*shape: int) -> Tensor:
    return torch.zeros(shape, device="cuda", dtype=torch.int64)


def make_document_cnn() -> nn.Module:
    return mg.DocumentCNN()


def make_unfused() -> nn.Module:
    model = mg.DocumentCNN()
    model.fused = False
    return model


def make_list() -> nn.Module:
    return mg.Sequential(
        ours.Conv2d(1, 4, 3, padding=2, dilation=2), ours.ReLU(), ours.MaxPool2d(3, 2, 1), ours.Flatten(),
        ours.Dense(4 * 14 * 14, 10),
    )  # fmt: skip


def make_converted() -> nn.Module:
    """Groups, depthwise, strides, normalisation, in-place ReLU, and a linear layer behind a mean."""
    return from_torch(nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10), nn.Softmax(1),
    ))  # fmt: skip


MODELS = {"plan": make_document_cnn, "layers": make_unfused, "list": make_list, "converted": make_converted}


@pytest.mark.parametrize("computed_by", ["kernels", "formulas"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_a_model_stays_on_the_gpu(gpu, name, dtype, computed_by):
    kernels.choose("off" if computed_by == "formulas" else "auto")
    model = MODELS[name]()
    with gpu:
        model = gpu.move(model, dtype)
        backward(mg.softmax_cross_entropy(model(images(2, 1, 28, 28, dtype=dtype)), labels(2)))
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert bool(gpu.launches) == (computed_by == "kernels")


@pytest.mark.parametrize("computed_by", ["kernels", "formulas"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_recursion_stays_on_the_gpu(gpu, dtype, computed_by):
    kernels.choose("off" if computed_by == "formulas" else "auto")
    model = make_document_cnn()
    with gpu:
        x, y = images(2, 1, 28, 28, dtype=dtype), labels(2)
        model = gpu.move(model, dtype)
        for updates in (backprop.descend(model, x, y, 0.1), backprop.per_example(model, x, y)):
            assert all(delta.device.type == "cuda" for delta in updates.deltas)


def losses(z: Tensor) -> list[Tensor]:
    """The loss of each kind of target, with each option."""
    rows, (n, classes, pixels) = z.movedim(1, -1), z.shape
    weight, y = images(classes), torch.softmax(images(n, pixels, classes), -1)
    return [
        *(
            mg.softmax_cross_entropy(z, labels(n, pixels), w, reduction=reduction, label_smoothing=smoothing).sum()
            for w in (None, weight)
            for reduction in ("mean", "sum", "none")
            for smoothing in (0.0, 0.1)
        ),
        mg.softmax_cross_entropy(rows.flatten(0, 1), y.flatten(0, 1), weight, label_smoothing=0.1),
        mg.softmax(z).sum(),
    ]


@pytest.mark.parametrize("computed_by", ["kernels", "formulas"])
def test_losses_stay_on_the_gpu(gpu, computed_by):
    kernels.choose("off" if computed_by == "formulas" else "auto")
    with gpu:
        z = images(2, 5, 3).requires_grad_()
        for loss in losses(z):
            backward(loss)
            assert z.grad is not None and z.grad.shape == z.shape
    assert bool(gpu.launches) == (computed_by == "kernels")


def mix_devices(x: Tensor) -> Any:
    return x + torch.ones(3)


def read_a_value(x: Tensor) -> Any:
    return x.sum().item()


@pytest.mark.parametrize("mistake", [mix_devices, read_a_value], ids=lambda mistake: mistake.__name__)
def test_the_fake_gpu_refuses_what_a_real_one_would_not_do_at_once(gpu, mistake: Callable[[Tensor], Any]):
    with gpu, pytest.raises(Exception, match=r"same device|DataDependent|aten\._local_scalar_dense"):
        mistake(images(3))
