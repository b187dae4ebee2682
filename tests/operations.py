"""Every operation with every option, on inputs small enough for finite differences and free of ties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import manualgrad as mg
from manualgrad.ops.relu_in_place import relu_in_place


@dataclass(frozen=True)
class Operation:
    """``function`` of tensors made by ``inputs(dtype, device)``, all of which have a gradient."""

    name: str
    function: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    untied: bool = False

    def inputs(self, dtype: torch.dtype = torch.float64, device: object = "cpu") -> tuple[Tensor, ...]:
        """Random values; where ``untied``, no two of them and no one and zero are closer than 0.03."""
        generator = torch.Generator().manual_seed(len(self.name))
        tensors = []
        for shape in self.shapes:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            if self.untied:
                n = values.numel()
                order = torch.randperm(n, generator=generator).double()
                values = ((order - n / 2 + 0.5) / 16).reshape(shape)
            tensors.append(values.to(device=device, dtype=dtype).requires_grad_())
        return tuple(tensors)


def _labels(*shape: int, classes: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) * 7 % classes


def _cross_entropy(**options: object) -> Callable[[Tensor], Tensor]:
    def function(z: Tensor) -> Tensor:
        labels = _labels(*z.shape[:1], *z.shape[2:], classes=z.shape[1]).to(z.device)
        weight = options.get("weight")
        given = options if weight is None else {**options, "weight": weight.to(z)}
        return mg.softmax_cross_entropy(z, labels, **given)

    return function


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.25])

OPERATIONS = [
    Operation("conv2d", mg.conv2d, ((2, 2, 5, 4), (3, 2, 3, 2), (3,))),
    Operation("conv2d no bias", mg.conv2d, ((2, 2, 5, 4), (3, 2, 3, 2))),
    Operation("conv2d unbatched", mg.conv2d, ((2, 5, 4), (3, 2, 3, 2), (3,))),
    Operation("conv2d correlation", partial(mg.conv2d, flip_kernel=False), ((1, 2, 4, 4), (2, 2, 3, 2), (2,))),
    Operation("conv2d strides", partial(mg.conv2d, stride=(2, 3)), ((2, 1, 6, 7), (2, 1, 3, 2), (2,))),
    Operation("conv2d padding", partial(mg.conv2d, padding=(1, 2)), ((1, 1, 3, 4), (2, 1, 3, 2), (2,))),
    Operation("conv2d same", partial(mg.conv2d, padding="same"), ((1, 2, 4, 3), (2, 2, 2, 3), (2,))),
    Operation("conv2d dilation", partial(mg.conv2d, dilation=(1, 2)), ((1, 1, 4, 5), (2, 1, 2, 2), (2,))),
    Operation("conv2d groups", partial(mg.conv2d, groups=2), ((2, 4, 3, 4), (4, 2, 2, 2), (4,))),
    Operation(
        "conv2d all",
        partial(mg.conv2d, stride=2, padding=1, dilation=2, groups=2),
        ((1, 2, 5, 6), (4, 1, 2, 2), (4,)),
    ),
    Operation("conv2d 1x1", mg.conv2d, ((2, 2, 2, 3), (3, 2, 1, 1), (3,))),
    Operation("max_pool2d", mg.max_pool2d, ((2, 2, 4, 5),), untied=True),
    Operation("max_pool2d unbatched", mg.max_pool2d, ((2, 4, 5),), untied=True),
    Operation("max_pool2d overlapping", partial(mg.max_pool2d, kernel_size=3, stride=(1, 2)), ((1, 2, 5, 5),), True),
    Operation("max_pool2d gaps", partial(mg.max_pool2d, kernel_size=2, stride=3), ((1, 2, 5, 5),), True),
    Operation(
        "max_pool2d padding", partial(mg.max_pool2d, kernel_size=3, stride=2, padding=1), ((1, 2, 5, 4),), True
    ),
    Operation("max_pool2d dilation", partial(mg.max_pool2d, stride=1, dilation=(2, 1)), ((1, 2, 4, 4),), True),
    Operation("max_pool2d ceil", partial(mg.max_pool2d, kernel_size=(2, 3), ceil_mode=True), ((1, 2, 5, 4),), True),
    Operation("flatten", mg.flatten, ((2, 3, 2, 4),)),
    Operation("flatten unbatched", mg.flatten, ((3, 2, 4),)),
    Operation("dense", mg.dense, ((3, 4), (2, 4), (2,))),
    Operation("dense no bias", mg.dense, ((3, 4), (2, 4))),
    Operation("dense vector", mg.dense, ((4,), (2, 4), (2,))),
    Operation("dense many dims", mg.dense, ((2, 1, 3, 4), (2, 4), (2,))),
    Operation("dense one output", mg.dense, ((3, 4), (4,), ())),
    Operation("relu", mg.relu, ((3, 4),), untied=True),
    Operation("relu native", partial(mg.relu, subgradient=0.0), ((2, 3, 2),), untied=True),
    Operation("relu in place", lambda z: relu_in_place(z.clone()), ((2, 3, 2),), untied=True),
    Operation("softmax", mg.softmax, ((3, 4),)),
    Operation("softmax dim 0", partial(mg.softmax, dim=0), ((3, 2, 2),)),
    Operation("cross-entropy", _cross_entropy(), ((3, 4),)),
    Operation("cross-entropy sum", _cross_entropy(reduction="sum"), ((3, 4),)),
    Operation("cross-entropy none", _cross_entropy(reduction="none"), ((3, 4),)),
    Operation("cross-entropy weight", _cross_entropy(weight=WEIGHT), ((3, 4),)),
    Operation("cross-entropy ignore", _cross_entropy(ignore_index=0), ((3, 4),)),
    Operation("cross-entropy smoothing", _cross_entropy(label_smoothing=0.2, weight=WEIGHT), ((3, 4),)),
    Operation("cross-entropy images", _cross_entropy(reduction="none"), ((2, 4, 2, 1),)),
    Operation("cross-entropy probabilities", mg.softmax_cross_entropy, ((3, 4), (3, 4))),
    Operation(
        "cross-entropy probabilities none",
        partial(mg.softmax_cross_entropy, reduction="none", label_smoothing=0.1),
        ((2, 3, 2), (2, 3, 2)),
    ),
]


def names(operation: Operation) -> str:
    """For pytest's ids."""
    return operation.name.replace(" ", "-")
