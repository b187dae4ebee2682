"""Time of single kernels on a GPU, each alone in a CUDA graph: ours over native's.

    python -m scripts.cuda_kernel_speed [TEXT ...]

Forward and both gradients of the convolutions of resnet18, vgg11 and ``DocumentCNN``, and forward and backward of
each with the ReLU behind it, in float32 without TF32, in TF32 and in bfloat16; forward and backward of max pooling;
the cross-entropy loss with its gradient. With TEXT only the groups whose names contain one of them, such as
"grad_weight, float32". Each side runs in the memory format that is faster for it. Results are compared with float64
first; errors are relative to a result's norm. Ratios are medians over the rounds.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import manualgrad as mg
from compare.speed.cuda_benchmark import CUDA_MODES, CudaRow, CudaSpeed, compare_cuda_speed
from compare.speed.cuda_subjects import LAYOUTS, Step, Subject, operation_subject
from compare.speed.interleaving import ratios_by_round
from compare.speed.timer import Timer, timer_for
from manualgrad.cuda import launch
from manualgrad.dispatch import by_kernel
from manualgrad.ops.conv2d import (
    conv2d_backward,
    conv2d_forward_nchw,
    conv2d_grad_input_nchw,
    conv2d_grad_weight_oihw,
)
from manualgrad.ops.conv2d_geometry import Conv2dGeometry, make_conv2d_geometry
from manualgrad.ops.conv_relu import conv_relu_forward
from manualgrad.ops.max_pool2d import max_pool2d_backward, max_pool2d_forward
from manualgrad.ops.max_pool2d_geometry import make_max_pool2d_geometry
from manualgrad.ops.relu import relu_backward

Call = Callable[[], Tensor | list[Tensor]]

# Name: (N, C_in, H, W), C_out, kernel size, stride, padding.
CONVOLUTIONS = {
    "7x7 stride 2, 3-64 @224": ((32, 3, 224, 224), 64, 7, 2, 3),
    "3x3, 64-64 @56": ((32, 64, 56, 56), 64, 3, 1, 1),
    "3x3 stride 2, 64-128 @56": ((32, 64, 56, 56), 128, 3, 2, 1),
    "3x3, 128-128 @28": ((32, 128, 28, 28), 128, 3, 1, 1),
    "3x3 stride 2, 128-256 @28": ((32, 128, 28, 28), 256, 3, 2, 1),
    "3x3, 256-256 @14": ((32, 256, 14, 14), 256, 3, 1, 1),
    "3x3 stride 2, 256-512 @14": ((32, 256, 14, 14), 512, 3, 2, 1),
    "3x3, 512-512 @7": ((32, 512, 7, 7), 512, 3, 1, 1),
    "1x1 stride 2, 64-128 @56": ((32, 64, 56, 56), 128, 1, 2, 0),
    "1x1 stride 2, 128-256 @28": ((32, 128, 28, 28), 256, 1, 2, 0),
    "1x1 stride 2, 256-512 @14": ((32, 256, 14, 14), 512, 1, 2, 0),
    "3x3, 3-64 @224": ((32, 3, 224, 224), 64, 3, 1, 1),
    "3x3, 64-128 @112": ((32, 64, 112, 112), 128, 3, 1, 1),
    "5x5, 1-16 @28, batch 64": ((64, 1, 28, 28), 16, 5, 1, 0),
    "5x5, 16-32 @12, batch 64": ((64, 16, 12, 12), 32, 5, 1, 0),
    "5x5, 1-16 @28, batch 4096": ((4096, 1, 28, 28), 16, 5, 1, 0),
    "5x5, 16-32 @12, batch 4096": ((4096, 16, 12, 12), 32, 5, 1, 0),
}
# Name: (N, C, H, W), kernel size, stride, padding.
POOLINGS = {
    "3x3 stride 2, 64 @112": ((32, 64, 112, 112), 3, 2, 1),
    "2x2, 16 @24": ((4096, 16, 24, 24), 2, 2, 0),
    "2x2, 64 @224": ((32, 64, 224, 224), 2, 2, 0),
}
LOSSES = {f"({n}, {classes})": (n, classes) for n, classes in ((64, 10), (4096, 10), (32, 1000), (8192, 1000))}

# What the precision of float32 tensors is called: those of compare.speed.cuda_benchmark.PRECISIONS.
PRECISIONS = {"float32": (torch.float32, "float32"), "TF32": (torch.float32, "default"),
              "bfloat16": (torch.bfloat16, "default")}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Subjects whose ratios have one geometric mean; ``precision`` is one of PRECISIONS."""

    name: str
    precision: str
    subjects: Sequence[Subject]


def groups(device: str) -> list[Group]:
    """List the groups to measure."""
    result = []
    for of in ("forward", "grad_input", "grad_weight", "with ReLU forward", "with ReLU backward"):
        layers = {name: layer for name, layer in CONVOLUTIONS.items() if of != "grad_input" or layer[0][1] > 3}
        for precision, (dtype, _) in PRECISIONS.items():
            make = [_subject(n, functools.partial(_convolution, of, *v), dtype, device) for n, v in layers.items()]
            result.append(Group(f"conv2d {of}, {precision}", precision, make))
    for of in ("forward", "backward"):
        for precision in ("float32", "bfloat16"):
            dtype = PRECISIONS[precision][0]
            make = [_subject(n, functools.partial(_pooling, of, *v), dtype, device) for n, v in POOLINGS.items()]
            result.append(Group(f"max_pool2d {of}, {precision}", precision, make))
    losses = {n: (mg.softmax_cross_entropy, F.cross_entropy, (shape, ())) for n, shape in LOSSES.items()}
    result.append(Group("cross-entropy, float32", "float32", [operation_subject(n, device, losses) for n in losses]))
    return result


def _subject(name: str, call: Callable[..., Call], dtype: torch.dtype, device: str) -> Subject:
    """A subject of one call; ``call(dtype, device, side, layout)`` makes it."""

    def make(side: str, layout: str, compiled: bool) -> Step | None:
        run = call(dtype, device, side, layout)
        return None if compiled else lambda: _as_list(run())

    @functools.cache
    def exact() -> list[Tensor]:
        return _as_list(call(torch.float64, device, "native", "contiguous", rounded_to=dtype)())

    return Subject(name, make, None, expected=lambda side, layout: exact())


def _as_list(result: Tensor | list[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else result


def _random(shape: Sequence[int], rounded_to: torch.dtype, dtype: torch.dtype, device: str, layout: str) -> Tensor:
    x = torch.randn(tuple(shape)).to(rounded_to).to(device, dtype)
    return x.contiguous(memory_format=LAYOUTS[layout])


def _conv_relu_backward(g: Tensor, r: Tensor, x: Tensor, w: Tensor, geometry: Conv2dGeometry) -> list[Tensor]:
    """Gradients of x and w, by the kernel, and by its parts where it does not compute the call."""
    needs_grad = True, True, False
    grads = by_kernel("conv_relu_backward", g, r, x, w, needs_grad, geometry)
    return list((grads or conv2d_backward(relu_backward(g, r, 0), x, w, needs_grad, geometry))[:2])


def _convolution(
    of: str, shape: Sequence[int], out_channels: int, kernel: int, stride: int, padding: int, dtype: torch.dtype,
    device: str, side: str, layout: str, rounded_to: torch.dtype | None = None,
) -> Call:  # fmt: skip
    torch.manual_seed(0)
    size = [(length + 2 * padding - kernel) // stride + 1 for length in shape[2:]]
    shapes = shape, (out_channels, shape[1], kernel, kernel), (shape[0], out_channels, *size)
    x, w, g = (_random(s, rounded_to or dtype, dtype, device, layout) for s in shapes)
    r = g.roll(1, 0).clamp(min=0).contiguous(memory_format=LAYOUTS[layout])  # a ReLU's result that is not g's
    if side == "ours":
        geometry = make_conv2d_geometry(x, w, None, stride, padding, 1, 1, False, layout == "channels_last")
        return {
            "forward": lambda: conv2d_forward_nchw(x, w, None, geometry),
            "grad_input": lambda: conv2d_grad_input_nchw(g, w, geometry),
            "grad_weight": lambda: conv2d_grad_weight_oihw(g, x, geometry),
            "with ReLU forward": lambda: conv_relu_forward(x, w, None, geometry),
            "with ReLU backward": lambda: _conv_relu_backward(g, r, x, w, geometry),
        }[of]
    if of == "forward":
        return lambda: F.conv2d(x, w, None, stride, padding)
    if of == "with ReLU forward":
        return lambda: F.conv2d(x, w, None, stride, padding).relu_()
    if of == "with ReLU backward":
        both = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, True, False]
        relu_grad = torch.ops.aten.threshold_backward
        return lambda: list(torch.ops.aten.convolution_backward(relu_grad(g, r, 0), x, w, None, *both)[:2])
    number = ("grad_input", "grad_weight").index(of)
    options = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [number == 0, number == 1, False]
    return lambda: torch.ops.aten.convolution_backward(g, x, w, None, *options)[number]


def _pooling(
    of: str, shape: Sequence[int], kernel: int, stride: int, padding: int, dtype: torch.dtype, device: str, side: str,
    layout: str, rounded_to: torch.dtype | None = None,
) -> Call:  # fmt: skip
    torch.manual_seed(0)
    x = _random(shape, rounded_to or dtype, dtype, device, layout)
    options = [kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], False
    y, indices = torch.ops.aten.max_pool2d_with_indices(x, *options)
    g = _random(y.shape, rounded_to or dtype, dtype, device, layout)
    if side == "native":
        if of == "forward":
            return lambda: torch.ops.aten.max_pool2d_with_indices(x, *options)[0]
        return lambda: torch.ops.aten.max_pool2d_with_indices_backward(g, x, *options, indices)
    channels_last = layout == "channels_last"
    geometry = make_max_pool2d_geometry(tuple(shape), kernel, stride, padding, 1, False, channels_last)
    images = x.permute(0, 2, 3, 1)
    if of == "forward":
        return lambda: max_pool2d_forward(images, geometry)[0].permute(0, 3, 1, 2)
    index = max_pool2d_forward(images, geometry)[1].permute(0, 3, 1, 2)
    return lambda: max_pool2d_backward(g, index, geometry)


def summary(group: Group, result: CudaSpeed) -> list[str]:
    """A line for each subject, and one with the geometric mean, the largest ratio and the errors."""
    ulp = torch.finfo(PRECISIONS[group.precision][0]).eps
    lines, ratios, inaccurate = [], dict[str, float](), list[str]()
    for name in result.flops:
        ours, native = (
            [r for r in result.rows if (r.subject, r.side) == (name, side)] for side in ("ours", "native")
        )
        if not ours or not native:
            lines.append(f"  {name}: no comparison, since a side has no time")
            continue
        best, best_native = min(ours, key=_seconds), min(native, key=_seconds)
        ratios[name] = ratios_by_round(best.rounds, best_native.rounds).median
        error, native_error = (max(row.error for row in side) for side in (ours, native))
        if error > 2 * native_error + 2 * ulp:
            inaccurate.append(name)
        lines.append(
            f"  {name}: {1e6 * best.seconds:.1f} µs ({best.layout}), {ratios[name]:.2f} x native's "
            f"{1e6 * best_native.seconds:.1f} µs ({best_native.layout}); errors {error:.1e}, {native_error:.1e}"
        )
    lines += [f"  not measured: {label}: {reason}" for label, reason in result.not_measured]
    lines += [f"  wrong: {sentence}" for sentence in result.wrong + result.errors]
    if ratios:
        worst = max(ratios, key=lambda name: ratios[name])
        mean = statistics.geometric_mean(ratios.values())
        lines.append(f"{group.name}: geometric mean {mean:.2f}, at most {ratios[worst]:.2f} ({worst})")
    if inaccurate:
        lines.append(f"{group.name}: errors above 2 x native's + 2 ulp: {'; '.join(inaccurate)}")
    return lines


def _seconds(row: CudaRow) -> float:
    return row.seconds


def measure(group: Group, timer: Timer, device: str = "cuda", **options: object) -> CudaSpeed:
    """Measure a group, by default in CUDA graphs. Options are those of ``compare_cuda_speed``."""
    modes = {"CUDA graph": CUDA_MODES["CUDA graph"]}
    precisions = (PRECISIONS[group.precision][1],)
    return compare_cuda_speed(
        group.subjects, timer, **{"device": device, "modes": modes, "precisions": precisions, **options}
    )


def main(arguments: Sequence[str]) -> int:
    reason = launch.why_none() if torch.cuda.is_available() else "PyTorch finds no CUDA device"
    if reason:
        print(f"cuda_kernel_speed: {reason}", file=sys.stderr)
        return 2
    chosen = [g for g in groups("cuda") if not arguments or any(text in g.name for text in arguments)]
    if not chosen:
        print(f"cuda_kernel_speed: no group has {' or '.join(arguments)} in its name", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; microseconds of a CUDA graph")
    is_wrong = False
    for group in chosen:
        result = measure(group, timer_for("cuda"))
        print("\n".join(summary(group, result)), flush=True)
        is_wrong = is_wrong or bool(result.wrong or result.errors)
    return 1 if is_wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
