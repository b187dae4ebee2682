"""Cases of ``compare`` for this project: the reported options of every operation, and the network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import manualgrad as mg
from compare.case import Case
from compare.native_functions import tied_windows
from compare.native_network import native_twin, to_native
from compare.operation import Option
from compare.operations import OPTIONS
from compare.random_state import seeded

HALF = "ReLU's derivative 1/2 at 0, equation (10)"


def all_cases() -> list[Case]:
    """Cases of the operations, then of the networks."""
    return [*operation_cases(), *network_cases()]


def operation_cases() -> list[Case]:
    """One case for each reported option in the table of operations."""
    return [operation_case(option) for option in OPTIONS if option.report]


def network_cases() -> list[Case]:
    """The network of (22) and (23): small, on whole numbers too; and in its default sizes, with its own weights."""
    small = {"image_size": 12, "channels": (3, 4), "kernel_size": 3, "hidden": (8,), "classes": 5}
    return [
        network_case("DocumentCNN, small", 4, True, **small),
        network_case("DocumentCNN", 16, False),
    ]


def operation_case(option: Option) -> Case:
    """The option's function beside PyTorch's, on inputs of its wide shapes."""
    operation, native, conventions = option.operation, option.reference, {}
    if operation.takes_subgradient and "subgradient" not in option.arguments:
        native, conventions = partial(option.reference, subgradient=0.0), {HALF: option.reference}
    return Case(
        option.title,
        option.ours,
        native,
        partial(draw_inputs, option),
        conventions,
        option.count if operation.census else None,
        operation.kinks,
        whole_numbers=operation.target != "probabilities",  # rounded probabilities do not add up to 1
    )


def draw_inputs(option: Option) -> dict[str, Tensor]:
    """Normally distributed tensors, and a target drawn at random, under the names of the arguments."""
    operation, (first, *others) = option.operation, option.wide
    tensors = [operation.scale * torch.randn(first), *map(torch.randn, others)]
    if operation.target == "probabilities":
        tensors[1] = tensors[1].softmax(1)
    if operation.target == "labels":
        tensors.append(torch.randint(first[1], (first[0], *first[2:])))
    return dict(zip(operation.tensors, tensors, strict=True))


def network_case(name: str, batch: int, whole_numbers: bool, **sizes: Any) -> Case:
    """The loss of a whole :class:`DocumentCNN`, as a function of images, labels and every weight and bias."""
    with seeded(0):
        model = mg.DocumentCNN(**sizes)
    modules: Mapping[str, nn.Module] = {
        "half": native_twin(model),
        "relu": native_twin(mg.DocumentCNN(**sizes, subgradient=0.0)),
    }
    names = [name for name, _ in model.named_parameters()]

    def native_parameters(parameters: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return to_native(dict(zip(names, parameters, strict=True)), model)

    def native(module: str, x: Tensor, labels: Tensor, *parameters: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(modules[module], native_parameters(parameters), (x,)), labels)

    def ours(x: Tensor, labels: Tensor, *parameters: Tensor) -> Tensor:
        logits = functional_call(model, dict(zip(names, parameters, strict=True)), (x,))
        return mg.softmax_cross_entropy(logits, labels)

    def inputs() -> dict[str, Tensor]:
        size = sizes.get("image_size", 28)
        x = torch.randn(batch, 1, *((size, size) if isinstance(size, int) else size))
        labels = torch.randint(sizes.get("classes", 10), (batch,))
        # Drawn wide where they are to be rounded to whole numbers, so that not all become 0.
        parameters = {
            name: 0.3 * torch.randn_like(p) if whole_numbers else p.detach() for name, p in model.named_parameters()
        }
        return {"x": x, "labels": labels, **parameters}

    def census(x: Tensor, labels: Tensor, *parameters: Tensor) -> dict[str, int]:
        return count_kinks(modules["relu"], native_parameters(parameters), x)

    return Case(
        name,
        ours,
        partial(native, "relu"),
        inputs,
        conventions={HALF: partial(native, "half")},
        census=census,
        kinks=True,
        whole_numbers=whole_numbers,
    )


def count_kinks(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> dict[str, int]:
    """Exact zeros that the ReLUs of a native network get, and tied windows of its pooling layers."""
    counts = {"ReLU inputs": 0, "ReLU inputs that are exactly 0": 0, "windows": 0, "windows with a tied maximum": 0}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (z,) = inputs
        if isinstance(layer, nn.ReLU):
            counts["ReLU inputs"] += z.numel()
            counts["ReLU inputs that are exactly 0"] += int((z == 0).sum())
        else:
            for key, n in tied_windows(z).items():
                counts[key] += n

    layers = [layer for layer in module if isinstance(layer, (nn.ReLU, nn.MaxPool2d))]
    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    functional_call(module, parameters, (x,))
    for hook in hooks:
        hook.remove()
    return counts
