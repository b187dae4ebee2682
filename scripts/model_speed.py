"""Time of a training step of converted models, beside the models that they were made from.

    python -m scripts.model_speed [THREADS [NAME ...]]

Forward, cross-entropy and backward in float32, with the allocator tuned. Each side runs in both memory layouts, and
the faster one counts. The contenders take turns; a ratio is that of the medians. With one thread, the default, times
are the processor's time of this process, which other load changes less. It needs torchvision and, for three models,
timm.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import manualgrad as mg
from manualgrad import kernels
from scripts.taking_turns import stopwatch_from_arguments

ROUNDS = 5
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Shape = tuple[int, int, int, int]


def lenet5() -> nn.Module:
    features = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    features += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))


def small_vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for in_channels, channels in ((3, 32), (32, 64)):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 10))


def all_convolutional() -> nn.Module:
    layers: list[nn.Module] = []
    for in_channels, channels in ((3, 48), (48, 96)):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(96, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def models() -> dict[str, tuple[Callable[[], nn.Module], Shape]]:
    """Constructors of the models and shapes of their images, by name."""
    from torchvision import models as torchvision_models

    result: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
        "LeNet-5": (lenet5, (64, 1, 28, 28)),
        "small VGG": (small_vgg, (32, 3, 32, 32)),
        "all convolutional": (all_convolutional, (32, 3, 32, 32)),
    }
    for name, shape in {
        "resnet18": (8, 3, 64, 64), "vgg11_bn": (8, 3, 64, 64), "squeezenet1_1": (8, 3, 96, 96),
        "mobilenet_v3_small": (8, 3, 64, 64), "resnext50_32x4d": (4, 3, 64, 64), "shufflenet_v2_x0_5": (8, 3, 64, 64),
    }.items():  # fmt: skip
        result[name] = getattr(torchvision_models, name), shape
    vgg = torchvision_models.vgg11_bn
    result["vgg11_bn"] = lambda: nn.Sequential(vgg().features, nn.Flatten(), nn.Linear(2048, 10)), (8, 3, 64, 64)
    try:
        import timm
    except ImportError:
        print("timm is not installed: ConvMixer, convnext_atto and efficientnet_b0 are left out")
        return result
    mixer = timm.models.convmixer.ConvMixer
    result["ConvMixer"] = lambda: mixer(256, 4, kernel_size=7, patch_size=4), (4, 3, 64, 64)
    for name in ("convnext_atto", "efficientnet_b0"):
        result[name] = lambda name=name: timm.create_model(name), (4, 3, 64, 64)  # type: ignore[misc]
    return result


def make_step(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), labels).backward()

    return step


def main() -> None:
    known = models()
    stopwatch = stopwatch_from_arguments("python -m scripts.model_speed", __doc__, list(known))
    print(kernels.available())
    ratios = []
    for name in stopwatch.names:
        make, shape = known[name]
        torch.manual_seed(0)
        native, x, labels = make().train(), torch.randn(shape), torch.randint(10, shape[:1])
        steps = {}
        for layout, memory_format in LAYOUTS.items():
            model, images = copy.deepcopy(native).to(memory_format=memory_format), x.to(memory_format=memory_format)
            steps["native", layout] = make_step(model, images, labels)
            steps["ours", layout] = make_step(mg.from_torch(model), images, labels)
        times = stopwatch.times(steps, ROUNDS, warmup=2)
        ours, best = (
            min(statistics.median(times[side, layout]) for layout in LAYOUTS) for side in ("ours", "native")
        )
        ratios.append(ours / best)
        print(f"{name}: ours {1e3 * ours:.1f} ms, native {1e3 * best:.1f} ms, ratio {ratios[-1]:.2f}", flush=True)
    print(f"geometric mean of {len(ratios)}: {statistics.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
