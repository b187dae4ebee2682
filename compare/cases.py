"""This project's own cases: every operation with its options, and the network, beside what PyTorch has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import manualgrad as mg
from compare.case import Case
from compare.native import native_twin, to_native
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d

HALF = "ReLU's derivative 1/2 at 0, equation (10)"


def half_relu(z: Tensor) -> Tensor:
    """``torch.maximum`` halves a tie, which is equation (10)."""
    return torch.maximum(z, z.new_zeros(()))


def tied_windows(x: Tensor, kernel_size: int = 2, stride: int | None = None, padding: int = 0) -> dict[str, int]:
    """How many pooling windows have their maximum more than once."""
    batch, channels = x.shape[:2]
    padded = F.pad(x, (padding,) * 4, value=-torch.inf)
    windows = F.unfold(padded, kernel_size, stride=stride or kernel_size).reshape(batch, channels, kernel_size**2, -1)
    often = (windows == windows.amax(2, keepdim=True)).sum(2)
    return {"windows": often.numel(), "windows with a tied maximum": int((often > 1).sum())}


def draw(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(shape) for shape in shapes)


def conv2d(name: str, x: tuple[int, ...], w: tuple[int, ...], **options: Any) -> Case:
    """A true convolution: natively the kernel is flipped first."""
    return Case(
        name,
        lambda input, weight, bias: mg.conv2d(input, weight, bias, **options),
        lambda input, weight, bias: F.conv2d(input, weight.flip(2, 3), bias, **options),
        draw(x, w, (w[0],)),
    )


def max_pool2d(name: str, x: tuple[int, ...], **options: Any) -> Case:
    return Case(
        name,
        lambda input: mg.max_pool2d(input, **options),
        lambda input: F.max_pool2d(input, **{"kernel_size": 2, **options}),
        draw(x),
        census=partial(tied_windows, **options),
    )


def cross_entropy(name: str, **options: Any) -> Case:
    return Case(
        name,
        lambda input, target: mg.softmax_cross_entropy(input, target, **options),
        lambda input, target: F.cross_entropy(input, target, **options),
        lambda: {"input": 3 * torch.randn(16, 10), "target": torch.randint(10, (16,))},
    )


def fused() -> Case:
    def native(relu: Callable[[Tensor], Tensor], input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.max_pool2d(relu(F.conv2d(input, weight.flip(2, 3), bias)), 2)

    def count(input: Tensor, weight: Tensor, bias: Tensor) -> dict[str, int]:
        z = F.conv2d(input, weight.flip(2, 3), bias)
        return {"z: exact zeros": int((z == 0).sum()), **tied_windows(z.relu())}

    return Case(
        "conv2d_relu_max_pool2d",
        lambda input, weight, bias: conv2d_relu_max_pool2d(input, weight, bias),
        partial(native, F.relu),
        draw((4, 3, 9, 8), (5, 3, 3, 2), (5,)),
        conventions={HALF: partial(native, half_relu)},
        census=count,
        kinks=True,
    )


def network(name: str, batch: int, whole_numbers: bool, **sizes: Any) -> Case:
    """J of a whole :class:`DocumentCNN`, as a function of images, labels and every weight and bias."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mg.DocumentCNN(**sizes)
    modules: Mapping[str, nn.Module] = {
        "ours": model,
        "half": native_twin(model),
        "relu": native_twin(mg.DocumentCNN(**sizes, subgradient=0.0)),
    }
    keys = [key for key, _ in model.named_parameters()]

    def native(kind: str, x: Tensor, labels: Tensor, *parameters: Tensor) -> Tensor:
        carried = to_native(dict(zip(keys, parameters, strict=True)), model)
        return F.cross_entropy(functional_call(modules[kind], carried, (x,)), labels)

    def ours(x: Tensor, labels: Tensor, *parameters: Tensor) -> Tensor:
        logits = functional_call(model, dict(zip(keys, parameters, strict=True)), (x,))
        return mg.softmax_cross_entropy(logits, labels)

    def inputs() -> dict[str, Tensor]:
        x = torch.randn(batch, 1, *_pair(sizes.get("image_size", 28)))
        labels = torch.randint(sizes.get("classes", 10), (batch,))
        # Drawn wide where they are to be rounded to whole numbers, so that not all become 0.
        parameters = {
            key: 0.3 * torch.randn_like(p) if whole_numbers else p.detach() for key, p in model.named_parameters()
        }
        return {"x": x, "labels": labels, **parameters}

    def count(x: Tensor, labels: Tensor, *parameters: Tensor) -> dict[str, int]:
        return _kinks(modules["relu"], to_native(dict(zip(keys, parameters, strict=True)), model), x)

    return Case(
        name,
        ours,
        partial(native, "relu"),
        inputs,
        conventions={HALF: partial(native, "half")},
        census=count,
        kinks=True,
        whole_numbers=whole_numbers,
    )


def _kinks(twin: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> dict[str, int]:
    """Over all layers of the native network: exact zeros that ReLUs are given, and pooling windows with ties."""
    counts = {"ReLU inputs": 0, "ReLU inputs that are exactly 0": 0, "windows": 0, "windows with a tied maximum": 0}

    def see(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.ReLU):
            counts["ReLU inputs"] += given[0].numel()
            counts["ReLU inputs that are exactly 0"] += int((given[0] == 0).sum())
        else:
            for key, n in tied_windows(given[0]).items():
                counts[key] += n

    watched = [layer for layer in twin if isinstance(layer, (nn.ReLU, nn.MaxPool2d))]
    hooks = [layer.register_forward_pre_hook(see) for layer in watched]
    functional_call(twin, parameters, (x,))
    for hook in hooks:
        hook.remove()
    return counts


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def operations() -> list[Case]:
    """One case for each operation and the options that change its formula."""
    return [
        conv2d("conv2d", (4, 3, 9, 8), (5, 3, 3, 2)),
        conv2d("conv2d, stride and padding", (4, 3, 9, 8), (5, 3, 3, 4), stride=(2, 3), padding=(1, 2)),
        conv2d("conv2d, dilation and groups", (4, 4, 9, 8), (6, 2, 3, 2), dilation=(1, 2), groups=2),
        Case(
            "conv2d, flip_kernel=False",
            partial(mg.conv2d, flip_kernel=False),
            F.conv2d,
            lambda: dict(zip(("input", "weight", "bias"), draw((4, 3, 9, 8), (5, 3, 3, 2), (5,))(), strict=True)),
        ),
        max_pool2d("max_pool2d", (4, 3, 9, 8)),
        max_pool2d("max_pool2d, overlapping", (4, 3, 9, 8), kernel_size=3, stride=2, padding=1),
        Case("flatten", mg.flatten, lambda input: input.permute(0, 2, 3, 1).flatten(1), draw((4, 3, 5, 6))),
        Case("dense", mg.dense, F.linear, draw((8, 20), (12, 20), (12,))),
        Case("relu", mg.relu, F.relu, draw((4, 3, 7, 6)), conventions={HALF: half_relu}),
        Case("relu, subgradient=0", partial(mg.relu, subgradient=0.0), F.relu, draw((4, 3, 7, 6))),
        Case("softmax", mg.softmax, partial(F.softmax, dim=-1), lambda: (3 * torch.randn(16, 10),)),
        cross_entropy("softmax_cross_entropy"),
        cross_entropy("softmax_cross_entropy, smoothing", label_smoothing=0.1, reduction="sum"),
        Case(
            "softmax_cross_entropy, probabilities",
            mg.softmax_cross_entropy,
            F.cross_entropy,
            lambda: {"input": 3 * torch.randn(16, 10), "target": torch.randn(16, 10).softmax(1)},
            whole_numbers=False,  # rounded, they would no longer be probabilities
        ),
        fused(),
    ]


def networks() -> list[Case]:
    """The network of (22) and (23): small, on whole numbers too; and in its default sizes, with its own weights."""
    small = {"image_size": 12, "channels": (3, 4), "kernel_size": 3, "hidden": (8,), "classes": 5}
    return [
        network("DocumentCNN, small", 4, True, **small),
        network("DocumentCNN", 16, False),
    ]


def every_case() -> Sequence[Case]:
    """All of them, operations first."""
    return [*operations(), *networks()]
