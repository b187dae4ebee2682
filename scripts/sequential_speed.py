"""Time of a training step of a converted ``nn.Sequential``: as one program, layer by layer, and native.

    python -m scripts.sequential_speed

The network has three convolutions and two hidden layers. The three variants take turns; a ratio is the median of the
rounds. Times are the main thread's processor time with one thread of torch.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

import manualgrad as mg
from manualgrad import kernels

ROUNDS = 30


def make_network() -> nn.Sequential:
    """Convolutions of 16, 32 and 64 channels with ReLU and 2x2 pooling, for images of 28x28; dense layers."""
    layers: list[nn.Module] = []
    for in_channels, out_channels, kernel in ((1, 16, 3), (16, 32, 3), (32, 64, 2)):
        layers += [nn.Conv2d(in_channels, out_channels, kernel), nn.ReLU(), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    for in_features, out_features in ((256, 128), (128, 64)):
        layers += [nn.Linear(in_features, out_features), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def step_seconds(model: nn.Module, x: torch.Tensor) -> float:
    """Processor seconds of one forward and backward."""
    model.zero_grad(set_to_none=True)
    start = time.thread_time()
    model(x).sum().backward()
    return time.thread_time() - start


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    native = make_network()
    program = mg.from_torch(native)
    models = {"native": native, "program": program, "layers": nn.Sequential(*mg.from_torch(native))}
    for batch_size in (1, 64, 512):
        x = torch.randn(batch_size, 1, 28, 28)
        torch.testing.assert_close(program(x), native(x), rtol=1e-4, atol=1e-5)
        print(kernels.explain(program, x))
        rounds = [{name: step_seconds(model, x) for name, model in models.items()} for _ in range(ROUNDS)][2:]
        for name in ("program", "layers"):
            ratio = statistics.median(seconds[name] / seconds["native"] for seconds in rounds)
            print(f"  batch {batch_size}: {name} / native {ratio:.2f}")


if __name__ == "__main__":
    main()
