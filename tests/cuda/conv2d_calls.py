"""Calls of convolution's kernels for CUDA, for ``kernel_calls.py``: layers of resnet18 and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from manualgrad.cuda import conv2d, conv_relu
from manualgrad.cuda.launch import Launcher
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry

Call = Callable[[Launcher], Any]


def _empty(*shape: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=memory_format)


def _calls(
    name: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], *, stride: int = 1, padding: int = 0,
    groups: int = 1, dtype: torch.dtype = torch.float32, tf32: bool = False, channels_last: bool = True,
    only: str = "", relu: str = "",
) -> Iterator[tuple[str, Call]]:  # fmt: skip
    def call(of: str) -> Call:
        def run(launch: Launcher) -> Any:
            x, w = (_empty(*shape, dtype=dtype, channels_last=channels_last) for shape in (x_shape, w_shape))
            b = torch.empty(w_shape[0], dtype=dtype)
            geometry = make_conv2d_geometry(x, w, b, stride, padding, 1, groups, False, channels_last)
            size = geometry.windows.output_size(*geometry.input_size)
            g = _empty(x_shape[0], w_shape[0], *size, dtype=dtype, channels_last=channels_last)
            before = torch.backends.cudnn.conv.fp32_precision
            torch.backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
            try:
                if of == "relu forward":
                    return conv_relu.conv_relu_forward(launch, x, w, b, geometry)
                if of == "relu backward":
                    return conv_relu.conv_relu_backward(launch, g, g, x, w, (True, True, True), geometry)
                if of == "relu sign forward":
                    return conv_relu.conv_relu_sign_forward(launch, x, w, b, geometry)
                if of.startswith("relu sign "):
                    sign = torch.empty_like(g, dtype=torch.int8)
                    needs_x = of == "relu sign backward"
                    return conv_relu.conv_relu_backward(launch, g, sign, x, w, (needs_x, True, True), geometry, 0.5)
                if of == "relu grad_weight":
                    return conv_relu.conv_relu_backward(launch, g, g, x, None, (False, True, True), geometry)
                if of == "forward":
                    return conv2d.conv2d_forward(launch, x, w, b, geometry)
                if of == "grad_input":
                    return conv2d.conv2d_grad_input(launch, g, w, geometry)
                if groups > 1:
                    return conv2d.conv2d_grad_weight(launch, g, x, geometry)
                return conv2d.conv2d_grad_weight_and_bias(launch, g, x, geometry)
            finally:
                torch.backends.cudnn.conv.fp32_precision = before

        return run

    with_relu = (f"{relu} forward", f"{relu} backward")
    for of in (only,) if only else with_relu if relu else ("forward", "grad_input", "grad_weight"):
        yield f"conv2d {name} {of}", call(of)


CALLS: dict[str, Call] = {
    name: call
    for calls in (
        _calls("3x3", (32, 64, 56, 56), (64, 64, 3, 3), padding=1),
        _calls("3x3 7x7", (32, 512, 7, 7), (512, 512, 3, 3), padding=1),
        _calls("3x3 s2", (32, 64, 56, 56), (128, 64, 3, 3), stride=2, padding=1, only="grad_input"),
        _calls("3x3 s2 tf32", (32, 128, 28, 28), (256, 128, 3, 3), stride=2, padding=1, tf32=True),
        _calls("3x3 bf16", (32, 64, 56, 56), (64, 64, 3, 3), padding=1, dtype=torch.bfloat16),
        _calls("3x3 s2 fp16", (32, 256, 14, 14), (512, 256, 3, 3), stride=2, padding=1, dtype=torch.float16),
        _calls("contiguous", (4, 64, 28, 28), (64, 64, 3, 3), padding=1, channels_last=False),
        _calls(
            "contiguous bf16", (4, 64, 28, 28), (64, 64, 3, 3), padding=1, dtype=torch.bfloat16, channels_last=False,
            only="grad_weight",
        ),
        _calls("RGB", (32, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
        _calls("RGB bf16", (32, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3, dtype=torch.bfloat16),
        _calls("RGB 3x3", (32, 3, 224, 224), (64, 3, 3, 3), padding=1, only="grad_input"),
        _calls("digits", (64, 1, 28, 28), (16, 1, 5, 5)),
        _calls("digits tf32", (64, 1, 28, 28), (16, 1, 5, 5), tf32=True, only="grad_weight"),
        _calls("depthwise", (32, 192, 28, 28), (192, 1, 3, 3), stride=2, padding=1, groups=192),
        _calls("depthwise contiguous", (32, 192, 28, 28), (192, 1, 3, 3), padding=1, groups=192, channels_last=False),
        _calls("3x3", (32, 64, 56, 56), (64, 64, 3, 3), padding=1, relu="relu"),
        _calls("3x3 7x7", (32, 512, 7, 7), (512, 512, 3, 3), padding=1, relu="relu"),
        _calls("3x3 bf16", (32, 64, 56, 56), (64, 64, 3, 3), padding=1, dtype=torch.bfloat16, relu="relu"),
        _calls("contiguous", (4, 64, 28, 28), (64, 64, 3, 3), padding=1, channels_last=False, relu="relu"),
        _calls("RGB", (32, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3, only="relu forward"),
        _calls("RGB", (32, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3, only="relu grad_weight"),
        _calls("depthwise", (32, 192, 28, 28), (192, 1, 3, 3), padding=1, groups=192, only="relu forward"),
        _calls("3x3", (32, 64, 56, 56), (64, 64, 3, 3), padding=1, relu="relu sign"),
        _calls("3x3 7x7", (32, 512, 7, 7), (512, 512, 3, 3), padding=1, only="relu sign forward"),
        _calls(
            "contiguous bf16", (4, 64, 28, 28), (64, 64, 3, 3), padding=1, dtype=torch.bfloat16, channels_last=False,
            relu="relu sign",
        ),
        _calls("RGB", (32, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3, only="relu sign grad_weight"),
        _calls("depthwise", (32, 192, 28, 28), (192, 1, 3, 3), padding=1, groups=192, only="relu sign forward"),
    )
    for name, call in calls
}  # fmt: skip
