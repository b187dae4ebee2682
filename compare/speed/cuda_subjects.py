"""Operations and whole models for the comparison of speed on CUDA: one training step of ours and of native."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import manualgrad as mg
from compare.models import torchvision_models
from compare.models.torchvision_models import ModelOptions

Step = Callable[[], Sequence[Tensor]]  # returns the loss or the output, and the gradients
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Subject:
    """Something that ours and native compute.

    Attributes:
        make: ``make(side, layout, compiled)`` returns a step, or None if there is no such contender; side is "ours"
            or "native", layout one of ``layouts``, or for ours of ``our_layouts``.
        numbytes: bytes that a step must read and write at least, None if nobody knows.
        layouts: the memory formats that differ for it.
        tolerance: error of a result, relative to its norm, above which a contender is wrong. It finds gross mistakes;
            ``python -m compare gradients`` compares with float64.
        expected: ``expected(side, layout)`` returns the results in float64; None: those of native's first step.
        batch: number of images, for the plot; None leaves the subject out of it.
        our_layouts: variants of ours; None: those of ``layouts``.
    """

    name: str
    make: Callable[[str, str, bool], Step | None]
    numbytes: int | None
    layouts: Sequence[str] = tuple(LAYOUTS)
    tolerance: float = 0.02  # near ties of a maximum differ by rounding, and TF32 rounds to 11 bits
    expected: Callable[[str, str], Sequence[Tensor]] | None = None
    batch: int | None = None
    our_layouts: Sequence[str] | None = None


DEEP_TOLERANCE = 0.3  # rounding of TF32 reverses signs and maxima in each layer of a network


def model_subject(name: str, options: ModelOptions) -> Subject:
    """A classification model of torchvision, and what ``from_torch`` makes of it, with the cross-entropy loss.

    Dropout is off on both sides: it would draw other numbers for each contender."""

    def make(side: str, layout: str, compiled: bool) -> Step:
        from torchvision.ops import StochasticDepth  # imported here, because torchvision takes seconds to import

        model = torchvision_models.make_native_model(name, 0, options).to(memory_format=LAYOUTS[layout])
        for module in model.modules():
            if isinstance(module, nn.Dropout | StochasticDepth):
                module.eval()
        if side == "ours":
            model = torchvision_models.convert_model(model, options)[0]
        torch.manual_seed(0)
        x = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
        labels = torch.randint(torchvision_models.CLASSES, (options.batch,), device=options.device)
        return _model_step(model, x.contiguous(memory_format=LAYOUTS[layout]), labels, side, compiled)

    return Subject(f"{name}, batch {options.batch} at {options.size}", make, None, tolerance=DEEP_TOLERANCE)


def _model_step(model: nn.Module, x: Tensor, labels: Tensor, side: str, compiled: bool) -> Step:
    loss_of = mg.softmax_cross_entropy if side == "ours" else F.cross_entropy
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss_function(x: Tensor, labels: Tensor) -> Tensor:
        return loss_of(model(x), labels)

    loss = torch.compile(loss_function, dynamic=False) if compiled else loss_function

    def step() -> list[Tensor]:
        for parameter in parameters:
            parameter.grad = None
        value = loss(x, labels)
        value.backward()
        return [value.detach(), *(parameter.grad for parameter in parameters if parameter.grad is not None)]

    return step


# Name: ours, native, and the shapes of the tensors; the first is the data, which needs a gradient where it has one.
Operation = tuple[Callable[..., Tensor], Callable[..., Tensor], Sequence[tuple[int, ...]]]


def _convolution(x: tuple[int, ...], w: tuple[int, ...], **options: Any) -> Operation:
    return partial(mg.functional.conv2d, flip_kernel=False, **options), partial(F.conv2d, **options), (x, w, w[:1])


OPERATIONS: dict[str, Operation] = {
    "conv2d 7x7 stride 2, 3-64 @224": _convolution((32, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    "conv2d 3x3, 64 @56": _convolution((32, 64, 56, 56), (64, 64, 3, 3), padding=1),
    "conv2d 3x3 stride 2, 128-256 @28": _convolution((32, 128, 28, 28), (256, 128, 3, 3), stride=2, padding=1),
    "conv2d 3x3, 512 @7": _convolution((32, 512, 7, 7), (512, 512, 3, 3), padding=1),
    "conv2d 1x1 stride 2, 64-128 @56": _convolution((32, 64, 56, 56), (128, 64, 1, 1), stride=2),
    "conv2d 5x5, 16-32 @12": _convolution((4096, 16, 12, 12), (32, 16, 5, 5)),
    "max_pool2d 3x3 stride 2 @112": (
        partial(mg.functional.max_pool2d, kernel_size=3, stride=2, padding=1),
        partial(F.max_pool2d, kernel_size=3, stride=2, padding=1), ((32, 64, 112, 112),),
    ),
    "max_pool2d 2x2 @24": (mg.functional.max_pool2d, partial(F.max_pool2d, kernel_size=2), ((4096, 16, 24, 24),)),
    "relu": (partial(mg.functional.relu, subgradient=0), F.relu, ((32, 64, 112, 112),)),
    "softmax": (mg.functional.softmax, partial(F.softmax, dim=-1), ((8192, 1000),)),
    "softmax_cross_entropy": (mg.functional.softmax_cross_entropy, F.cross_entropy, ((8192, 1000), ())),
    "dense": (mg.functional.dense, F.linear, ((4096, 1024), (1024, 1024), (1024,))),
}  # fmt: skip


def operation_subject(name: str, device: str, operations: dict[str, Operation] = OPERATIONS) -> Subject:
    """Forward and backward of one operation; () in the shapes stands for labels."""
    ours, native, shapes = operations[name]
    numel = sum(torch.Size(shape).numel() for shape in shapes if shape)

    def make(side: str, layout: str, compiled: bool) -> Step:
        torch.manual_seed(0)
        tensors = []
        for shape in shapes:
            if not shape:
                tensors.append(torch.randint(shapes[0][1], shapes[0][:1], device=device))
                continue
            memory_format = LAYOUTS[layout] if len(shape) == 4 else torch.contiguous_format
            x = torch.randn(shape, device=device).contiguous(memory_format=memory_format)
            tensors.append(x.requires_grad_())
        leaves = [x for x in tensors if x.requires_grad]
        function = ours if side == "ours" else native
        if side == "ours" and "channels_last" in inspect.signature(function).parameters:
            function = partial(function, channels_last=layout == "channels_last")
        if compiled:
            function = torch.compile(function, dynamic=False)
        g: list[Tensor] = []  # one gradient for all steps, as the layer above would give

        def step() -> list[Tensor]:
            out = function(*tensors)
            if not g:
                torch.manual_seed(1)
                g.append(torch.empty_like(out).copy_(torch.randn(out.shape, device=device)))
            return [out.detach(), *torch.autograd.grad(out, leaves, g[0])]

        return step

    layouts = tuple(LAYOUTS) if any(len(shape) == 4 for shape in shapes) else tuple(LAYOUTS)[:1]
    numbytes = 4 * 2 * numel  # float32 numbers that forward reads, and their gradients
    return Subject(name, make, numbytes, layouts)
