"""The seven operations as modules, with the argument names and the initialization of ``torch.nn``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from manualgrad import functional
from manualgrad.ops import checks
from manualgrad.ops.conv2d_geometry import as_padding
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from manualgrad.ops.targets import Reduction
from manualgrad.ops.tracers import NotScriptable
from manualgrad.ops.windows import Windows

Device = str | torch.device | int | None


class _Layer(NotScriptable, nn.Module):
    """Module of one operation, for type checkers: a call returns a Tensor, where ``nn.Module`` has Any."""

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...


class _WeightedLayer(_Layer):
    """Module with a weight and an optional bias, both drawn uniformly from ±1/√fan_in as in ``torch.nn``.

    fan_in is the number of inputs of one output.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], bias: bool, device: Device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from torch's random generator."""
        bound = 1 / math.sqrt(max(1, self.weight[0].numel()))
        with torch.no_grad():
            for parameter in self.parameters(recurse=False):
                parameter.uniform_(-bound, bound)


class Conv2d(_WeightedLayer):
    """:func:`manualgrad.functional.conv2d` with a weight (C_out, C_in / groups, kH, kW) and a bias (C_out,).

    Arguments are those of ``torch.nn.Conv2d``, except that padding is always with zeros (no ``padding_mode``), and
    that there is ``flip_kernel``: True is the convolution of equation (1), False is PyTorch's correlation.

    Raises:
        ValueError: numbers of channels, sizes or groups do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        flip_kernel: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        groups = checks.as_integer("Conv2d", "groups", groups, minimum=1)
        in_channels = checks.as_integer("Conv2d", "in_channels", in_channels, minimum=1)
        out_channels = checks.as_integer("Conv2d", "out_channels", out_channels, minimum=1)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: in_channels and out_channels must be divisible by groups={groups}, got {in_channels} and "
                f"{out_channels}"
            )
        kernel_size = checks.as_pair("Conv2d", "kernel_size", kernel_size, minimum=1)
        super().__init__((out_channels, in_channels // groups, *kernel_size), bias, device, dtype)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride = checks.as_pair("Conv2d", "stride", stride, minimum=1)
        self.dilation = checks.as_pair("Conv2d", "dilation", dilation, minimum=1)
        as_padding(padding, Windows(kernel_size, self.stride, dilation=self.dilation))
        self.padding = (
            padding if isinstance(padding, str) else checks.as_pair("Conv2d", "padding", padding, minimum=0)
        )
        self.groups, self.flip_kernel = groups, flip_kernel

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            flip_kernel=self.flip_kernel,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, flip_kernel={self.flip_kernel}"
        )


class ConvReLUMaxPool2d(Conv2d):
    """:class:`Conv2d`, :class:`ReLU` and 2×2 :class:`MaxPool2d` as one operation, with equal results.

    Arguments are the first five of :class:`Conv2d` and ``subgradient`` of :class:`ReLU`. Parameters are those of
    Conv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        *,
        subgradient: float = 0.5,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, device=device, dtype=dtype)
        checks.require_fraction("ConvReLUMaxPool2d", "subgradient", subgradient)
        self.subgradient = subgradient

    def forward(self, input: Tensor) -> Tensor:
        return conv2d_relu_max_pool2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            subgradient=self.subgradient,
            flip_kernel=self.flip_kernel,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, subgradient={self.subgradient}"


class MaxPool2d(NotScriptable, nn.Module):
    """:func:`manualgrad.functional.max_pool2d` with the arguments of ``torch.nn.MaxPool2d``; 2×2 by default."""

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]: ...

    def __init__(
        self,
        kernel_size: int | tuple[int, int] = 2,
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        checks.as_pair("MaxPool2d", "kernel_size", kernel_size, minimum=1)
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}, return_indices={self.return_indices}"
        )


class Flatten(_Layer):
    """:func:`manualgrad.functional.flatten`, in the (row, column, channel) order of equation (5)."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.flatten(input)


class Dense(_WeightedLayer):
    """:func:`manualgrad.functional.dense` with the arguments of ``torch.nn.Linear``.

    The weight is (out_features, in_features), the bias (out_features,).

    Raises:
        ValueError: in_features is below 0, or out_features below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_features = checks.as_integer("Dense", "in_features", in_features, minimum=0)
        out_features = checks.as_integer("Dense", "out_features", out_features, minimum=1)
        super().__init__((out_features, in_features), bias, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, input: Tensor) -> Tensor:
        return functional.dense(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class ReLU(_Layer):
    """:func:`manualgrad.functional.relu`; ``subgradient`` is the derivative at 0, ½ in the formula sheet."""

    def __init__(self, *, subgradient: float = 0.5) -> None:
        super().__init__()
        checks.require_fraction("ReLU", "subgradient", subgradient)
        self.subgradient = subgradient

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input, subgradient=self.subgradient)

    def extra_repr(self) -> str:
        return f"subgradient={self.subgradient}"


class Softmax(_Layer):
    """:func:`manualgrad.functional.softmax` along ``dim``."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return functional.softmax(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class SoftmaxCrossEntropyLoss(NotScriptable, nn.Module):
    """:func:`manualgrad.functional.softmax_cross_entropy` with the arguments of ``torch.nn.CrossEntropyLoss``."""

    weight: Tensor | None

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, target: Tensor) -> Tensor: ...

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            raise ValueError(
                f"SoftmaxCrossEntropyLoss: reduction must be one of {get_args(Reduction)}, got {reduction!r}"
            )
        self.register_buffer("weight", weight)
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.softmax_cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        return (
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"
        )
