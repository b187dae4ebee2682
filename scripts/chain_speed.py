"""Time of a training step, and memory kept for backward, with and without chains of layers computed together.

    python -m scripts.chain_speed [THREADS]

Float32 and channels_last. ``manualgrad/network/call_chains.py`` has the chains. The contenders take turns; a ratio is
that of the medians. With one thread, the default, times are the processor's time of this process, which other load
changes less. It needs torchvision.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg
from manualgrad import kernels
from manualgrad.network import call_chains
from scripts.model_speed import Shape, make_step
from scripts.taking_turns import stopwatch_from_arguments

ROUNDS = 30


class Mnist(nn.Module):
    """The network of PyTorch's MNIST example, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, 1), nn.Conv2d(32, 64, 3, 1)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.relu(x)
        x = self.conv2(x)
        x = F.relu(x)
        x = F.max_pool2d(x, 2)
        x = torch.flatten(x, 1)
        x = self.fc1(x)
        x = F.relu(x)
        return self.fc2(x)


class Cifar(nn.Module):
    """The network of PyTorch's tutorial with CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(F.relu(self.fc2(x)))


def three_dense_layers() -> nn.Module:
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def models() -> dict[str, tuple[Callable[[], nn.Module], Shape]]:
    from torchvision import models as torchvision_models

    return {
        "MNIST example": (Mnist, (64, 1, 28, 28)),
        "CIFAR-10 tutorial": (Cifar, (64, 3, 32, 32)),
        "three dense layers": (three_dense_layers, (64, 1, 28, 28)),
        "squeezenet1_1": (torchvision_models.squeezenet1_1, (8, 3, 96, 96)),
        "vgg11_bn's layers before the dense ones": (lambda: torchvision_models.vgg11_bn().features, (4, 3, 64, 64)),
        "resnet18": (torchvision_models.resnet18, (2, 3, 224, 224)),
    }


def mib_kept(model: nn.Module, x: Tensor) -> float:
    """Memory that autograd keeps for backward, without parameters."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = model(x)
    y.sum().backward()
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(kept.values()) / 2**20


def without_chains(step: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        with patch.object(call_chains, "CHAINS", frozenset()):
            step()

    return call


def main() -> None:
    stopwatch = stopwatch_from_arguments("python -m scripts.chain_speed", __doc__)
    print(kernels.available())
    for name, (make, shape) in models().items():
        torch.manual_seed(0)
        model, _ = mg.from_torch(make().to(memory_format=torch.channels_last), functional=True, report=True)
        x = torch.randn(shape).to(memory_format=torch.channels_last)
        classifier = nn.Sequential(model, nn.Flatten())
        step = make_step(classifier, x, torch.zeros(shape[0], dtype=torch.long))
        times = stopwatch.times({"together": step, "one by one": without_chains(step)}, ROUNDS, warmup=2)
        together, one_by_one = (1e3 * statistics.median(times[side]) for side in ("together", "one by one"))
        kept = mib_kept(model, x)
        with patch.object(call_chains, "CHAINS", frozenset()):
            kept_one_by_one = mib_kept(model, x)
        print(
            f"{name}: {together:.2f} ms, one by one {one_by_one:.2f} ms, ratio {together / one_by_one:.3f}; "
            f"kept {kept:.1f} MiB, one by one {kept_one_by_one:.1f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
