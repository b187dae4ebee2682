"""The table of operations and options: tests, ``compare gradients`` and ``compare speed`` take their cases from it.

A new operation needs one entry: an :class:`Operation` with PyTorch's counterpart, and an :class:`Option` for each
keyword argument that changes its formula. Shapes decide who runs an option: ``small`` (the second column) for finite
differences, ``wide`` (the third) for the comparison with PyTorch, ``long`` for rounding errors, ``network`` for
``compare speed``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

import manualgrad as mg
from compare import native_functions as native
from compare.operation import Operation, Option, Shapes
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from manualgrad.ops.relu_in_place import relu_in_place


def layer_of_a_larger_network(
    in_factor: int | None, out_factor: int, kernel: int, size: int
) -> Callable[[int, Sequence[int], int], Shapes]:
    """Shapes of a convolution of an eighth of the batch, whose channels are multiples of the first layer's, so that a
    test can make it small; None for RGB images."""

    def shapes(batch: int, channels: Sequence[int], hidden: int) -> Shapes:
        in_channels, out_channels = in_factor * channels[0] if in_factor else 3, out_factor * channels[0]
        x_shape = max(1, batch // 8), in_channels, size, size
        return x_shape, (out_channels, in_channels, kernel, kernel), (out_channels,)

    return shapes


def longest_conv2d_sum(input: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] = ()) -> int:
    """Terms of the longest sum in a convolution without options, or in one of its gradients."""
    N, _, H, W = input
    C_out, C_in, kH, kW = weight
    return max(N * (H - kH + 1) * (W - kW + 1), C_in * kH * kW, C_out * kH * kW)


def few_images(batch: int, channels: int, weight: tuple[int, ...]) -> Shapes:
    """Shapes of a convolution of 28x28 images: an eighth of the batch, since they have many channels, and no bias."""
    return (max(1, batch // 8), channels, 28, 28), weight


# fmt: off
conv = Operation("conv2d", ("input", "weight", "bias"), mg.conv2d, F.conv2d, native.conv2d,
    longest_sum=longest_conv2d_sum, combined_with=({}, {"flip_kernel": False}))
relu = Operation("relu", ("input",), mg.relu, F.relu, native.relu, takes_subgradient=True, untied=True)
in_place = Operation("relu in place", ("input",), lambda x: relu_in_place(x.clone()), lambda x: F.relu_(x.clone()),
    untied=True)
pool = Operation("max_pool2d", ("input",), mg.max_pool2d, native.max_pool2d, untied=True,
    census=native.tied_windows)
fused = Operation("conv2d_relu_max_pool2d", ("input", "weight", "bias"), conv2d_relu_max_pool2d,
    lambda input, weight, bias: F.max_pool2d(F.relu(F.conv2d(input, weight, bias)), 2), native.conv2d_relu_max_pool2d,
    takes_subgradient=True, kinks=True, longest_sum=longest_conv2d_sum, census=native.zeros_and_tied_windows)
flatten = Operation("flatten", ("input",), mg.flatten, lambda input: torch.flatten(input, 1), native.flatten)
dense = Operation("dense", ("input", "weight", "bias"), mg.dense, F.linear, native.dense,
    longest_sum=lambda input, weight, bias: max(input))
softmax = Operation("softmax", ("input",), mg.softmax, lambda input, dim=-1: F.softmax(input, dim),
    exact=False, scale=3, longest_sum=lambda input: input[-1])
cross_entropy = Operation("softmax_cross_entropy", ("input", "target"),
    native.with_default_target(mg.softmax_cross_entropy), native.with_default_target(F.cross_entropy),
    exact=False, scale=3, target="labels", longest_sum=math.prod,
    combined_with=[{"reduction": reduction} for reduction in ("mean", "sum", "none")])
probabilities = replace(cross_entropy, name="softmax_cross_entropy, probabilities", target="probabilities")

OPTIONS: list[Option] = [
    conv.option("", ((2, 2, 5, 4), (3, 2, 3, 2), (3,)), ((4, 3, 9, 8), (5, 3, 3, 2), (5,)), report=True),
    conv.option("flip_kernel=False", ((1, 2, 4, 4), (2, 2, 3, 2), (2,)), ((4, 3, 9, 8), (5, 3, 3, 2), (5,)),
        report=True, flip_kernel=False),
    conv.option("stride and padding", None, ((4, 3, 9, 8), (5, 3, 3, 4), (5,)),
        report=True, stride=(2, 3), padding=(1, 2)),
    conv.option("dilation and groups", None, ((4, 4, 9, 8), (6, 2, 3, 2), (6,)),
        report=True, dilation=(1, 2), groups=2),
    conv.option("square kernel", None, ((2, 3, 7, 6), (4, 3, 3, 3), (4,))),
    conv.option("without bias", ((2, 2, 5, 4), (3, 2, 3, 2)), ((2, 3, 7, 6), (4, 3, 3, 3))),
    conv.option("unbatched", ((2, 5, 4), (3, 2, 3, 2), (3,)), ((3, 6, 5), (4, 3, 3, 2), (4,))),
    conv.option("1x1 kernel", ((2, 2, 2, 3), (3, 2, 1, 1), (3,)), ((2, 3, 4, 5), (4, 3, 1, 1), (4,)),
        long=((16, 16, 14, 14), (8, 16, 1, 1), (8,))),
    conv.option("kernel of the input's size", None, ((2, 3, 4, 5), (4, 3, 4, 5), (4,))),
    conv.option("one channel", None, ((3, 1, 9, 30), (2, 1, 3, 2), (2,)), long=((16, 1, 28, 28), (4, 1, 5, 5), (4,))),
    conv.option("stride", ((2, 1, 6, 7), (2, 1, 3, 2), (2,)), ((2, 3, 11, 9), (4, 3, 3, 2), (4,)), stride=(3, 2)),
    conv.option("stride larger than the kernel", None, ((2, 2, 10, 9), (3, 2, 2, 2), (3,)), stride=(4, 3)),
    conv.option("padding", ((1, 1, 3, 4), (2, 1, 3, 2), (2,)), ((2, 3, 5, 6), (4, 3, 3, 3), (4,)), padding=(1, 2)),
    conv.option("padding of one number", None, ((2, 3, 5, 6), (4, 3, 3, 3), (4,)), padding=2),
    conv.option("padding of columns alone", None, ((2, 3, 5, 6), (4, 3, 3, 3), (4,)), padding=(0, 3)),
    conv.option("padding=1", long=((4, 16, 10, 10), (8, 16, 3, 3), (8,)), padding=1),
    conv.option("padding=same", ((1, 2, 4, 3), (2, 2, 2, 3), (2,)), ((2, 3, 5, 6), (4, 3, 3, 5), (4,)),
        padding="same"),
    conv.option("padding=same, even kernel", None, ((2, 3, 5, 6), (4, 3, 2, 4), (4,)), padding="same"),
    conv.option("padding=same, dilation", None, ((2, 3, 8, 9), (4, 3, 2, 4), (4,)), padding="same", dilation=(3, 1)),
    conv.option("padding=valid", None, ((2, 3, 5, 6), (4, 3, 3, 3), (4,)), padding="valid"),
    conv.option("dilation", ((1, 1, 4, 5), (2, 1, 2, 2), (2,)), ((2, 3, 9, 8), (4, 3, 3, 2), (4,)), dilation=(2, 3)),
    conv.option("groups", ((2, 4, 3, 4), (4, 2, 2, 2), (4,)), ((2, 4, 5, 6), (6, 2, 3, 3), (6,)),
        long=((16, 16, 14, 14), (8, 8, 3, 3), (8,)), groups=2),
    conv.option("depthwise", None, ((2, 3, 6, 5), (3, 1, 3, 3), (3,)), groups=3, padding=1),
    conv.option("depthwise, two outputs each", None, ((2, 3, 6, 5), (6, 1, 3, 3), (6,)), groups=3),
    conv.option("stride and groups", long=((4, 16, 11, 11), (8, 8, 3, 3), (8,)), stride=2, groups=2),
    conv.option("dilation, depthwise", long=((4, 8, 12, 12), (8, 1, 3, 3), (8,)), dilation=2, groups=8),
    conv.option("all options", ((1, 2, 5, 6), (4, 1, 2, 2), (4,)), ((2, 4, 9, 11), (6, 2, 2, 3), (6,)),
        stride=(2, 3), padding=(2, 1), dilation=(3, 2), groups=2),
    conv.option("first", network=lambda N, C, hidden: ((N, 1, 28, 28), (C[0], 1, 5, 5), (C[0],)), data=1),
    conv.option("second", network=lambda N, C, hidden: ((N, C[0], 12, 12), (C[1], C[0], 5, 5), (C[1],))),
    conv.option("3x3 on 56x56", network=layer_of_a_larger_network(4, 4, 3, 56), padding=1),
    conv.option("3x3 on 14x14", network=layer_of_a_larger_network(16, 16, 3, 14), padding=1),
    conv.option("1x1 on 14x14", network=layer_of_a_larger_network(16, 64, 1, 14)),
    conv.option("1x1 on 28x28, stride 2", network=layer_of_a_larger_network(16, 32, 1, 28), stride=2),
    conv.option("7x7 on RGB images of 224x224, stride 2", network=layer_of_a_larger_network(None, 4, 7, 224), data=1,
        stride=2, padding=3),
    conv.option("depthwise 3x3 of 128 channels", network=lambda N, C, hidden: few_images(N, 128, (128, 1, 3, 3)),
        padding=1, groups=128),
    conv.option("depthwise 7x7 of 128 channels", network=lambda N, C, hidden: few_images(N, 128, (128, 1, 7, 7)),
        padding=3, groups=128),
    conv.option("3x3 of 32 groups of 4", network=lambda N, C, hidden: few_images(N, 128, (128, 4, 3, 3)),
        padding=1, groups=32),

    relu.option("", ((3, 4),), ((4, 3, 7, 6),), report=True, long=((4, 3, 5, 7),),
        network=lambda N, C, hidden: ((N, C[0], 24, 24),)),
    relu.option("subgradient=0", ((2, 3, 2),), ((4, 3, 7, 6),), report=True, long=((4, 3, 5, 7),), subgradient=0.0),
    relu.option("subgradient=1", None, ((4, 3, 7, 6),), long=((4, 3, 5, 7),), subgradient=1),
    in_place.option("", ((2, 3, 2),), ((4, 3, 7, 6),)),

    pool.option("", ((2, 2, 4, 5),), ((4, 3, 9, 8),), report=True, long=((4, 8, 12, 12),),
        network=lambda N, C, hidden: ((N, C[0], 24, 24),)),
    pool.option("overlapping", ((1, 2, 5, 4),), ((4, 3, 9, 8),), report=True, kernel_size=3, stride=2, padding=1),
    pool.option("even image", None, ((2, 3, 6, 8),)),
    pool.option("unbatched", ((2, 4, 5),), ((3, 6, 8),)),
    pool.option("unbatched, return_indices", None, ((3, 6, 8),), return_indices=True),
    pool.option("kernel_size", None, ((2, 3, 7, 9),), kernel_size=(3, 2)),
    pool.option("kernel_size=1", None, ((2, 3, 5, 4),), kernel_size=1),
    pool.option("kernel_size of the image", None, ((2, 3, 5, 4),), kernel_size=(5, 4)),
    pool.option("stride", ((1, 2, 5, 5),), ((2, 3, 7, 9),), kernel_size=3, stride=(1, 2)),
    pool.option("stride=1", None, ((2, 3, 7, 9),), long=((4, 8, 12, 12),), kernel_size=3, stride=1),
    pool.option("stride larger than the window", ((1, 2, 6, 5),), ((2, 3, 9, 11),), kernel_size=2, stride=(4, 3)),
    pool.option("padding", None, ((2, 3, 7, 9),), kernel_size=(2, 4), stride=(1, 2), padding=(0, 2)),
    pool.option("many windows for each maximum", long=((4, 8, 24, 24),), kernel_size=9, stride=1, padding=4),
    pool.option("dilation", ((1, 2, 5, 4),), ((2, 3, 9, 8),), stride=1, dilation=(3, 2)),
    pool.option("dilation and padding", None, ((2, 3, 9, 8),), kernel_size=3, stride=2, padding=1, dilation=2),
    pool.option("ceil_mode", ((1, 2, 5, 4),), ((2, 3, 7, 8),), kernel_size=(2, 3), ceil_mode=True),
    pool.option("ceil_mode, overlapping", None, ((2, 3, 6, 8),), kernel_size=3, stride=2, ceil_mode=True),
    pool.option("ceil_mode and padding", None, ((2, 3, 6, 7),), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    pool.option("ceil_mode, window outside", None, ((2, 3, 5, 5),), kernel_size=1, stride=3, ceil_mode=True),
    pool.option("return_indices", None, ((2, 3, 7, 9),), kernel_size=3, stride=2, padding=1, return_indices=True),
    pool.option("all options", None, ((2, 3, 11, 10),), kernel_size=(3, 2), stride=(2, 3), padding=1,
        dilation=(2, 1), ceil_mode=True, return_indices=True),

    fused.option("", None, ((4, 3, 9, 8), (5, 3, 3, 2), (5,)), report=True),
    fused.option("first", network=lambda N, C, hidden: ((N, 1, 28, 28), (C[0], 1, 5, 5), (C[0],)), data=1),
    fused.option("second", network=lambda N, C, hidden: ((N, C[0], 12, 12), (C[1], C[0], 5, 5), (C[1],))),

    flatten.option("", ((2, 3, 2, 4),), ((4, 3, 5, 6),), report=True, long=((2, 3, 4, 5),),
        network=lambda N, C, hidden: ((N, C[1], 4, 4),)),
    flatten.option("unbatched", ((3, 2, 4),), ((3, 4, 5),), long=((3, 4, 5),)),
    flatten.option("1x1 images", None, ((2, 3, 1, 1),), long=((2, 3, 1, 1),)),

    dense.option("", ((3, 4), (2, 4), (2,)), ((8, 20), (12, 20), (12,)),
        report=True, long=((32, 784), (100, 784), (100,)),
        network=lambda N, C, hidden: ((N, 16 * C[1]), (hidden, 16 * C[1]), (hidden,))),
    dense.option("without bias", ((3, 4), (2, 4)), ((5, 7), (3, 7))),
    dense.option("unbatched", ((4,), (2, 4), (2,)), ((7,), (3, 7), (3,))),
    dense.option("leading dimensions", ((2, 1, 3, 4), (2, 4), (2,)), ((2, 4, 5, 7), (3, 7), (3,))),
    dense.option("one output", None, ((5, 7), (1, 7), (1,))),
    dense.option("weight of one output", None, ((5, 7), (7,))),
    dense.option("weight of one output, bias", ((3, 4), (4,), ()), ((2, 5, 7), (7,), ())),
    dense.option("4096 features", long=((8, 4096), (10, 4096), (10,))),
    dense.option("batch of 4096", long=((4096, 16), (8, 16), (8,))),

    softmax.option("", ((3, 4),), ((16, 10),), report=True, long=((16, 1000),),
        network=lambda N, C, hidden: ((N, 10),)),
    softmax.option("dim=0", ((3, 2, 2),), ((3, 4, 5),), long=((300, 20),), dim=0),
    softmax.option("dim=1", None, ((3, 4, 5),), long=((64, 10),), dim=1),
    *(softmax.option(f"dim={dim}", None, ((3, 4, 5),), dim=dim) for dim in (2, -1, -2, -3)),
    softmax.option("5 dimensions", None, ((2, 3, 4, 5, 2),), dim=1),
    *(softmax.option(f"1 dimension, dim={dim}", None, ((6,),), dim=dim) for dim in (0, -1)),
    *(softmax.option(f"a number, dim={dim}", None, ((),), dim=dim) for dim in (0, -1)),

    cross_entropy.option("", ((3, 4),), ((16, 10),), report=True, long=((128, 10),),
        network=lambda N, C, hidden: ((N, 10),)),
    cross_entropy.option("256x1000", network=lambda N, C, hidden: ((256, 1000),)),
    cross_entropy.option("4096x1000", network=lambda N, C, hidden: ((4096, 1000),)),
    cross_entropy.option("reduction=sum", ((3, 4),), long=((32, 1000),), reduction="sum"),
    cross_entropy.option("reduction=none", ((3, 4),), long=((128, 10),), reduction="none"),
    cross_entropy.option("unbatched", None, ((5,),)),
    cross_entropy.option("sequences", None, ((2, 3, 4),)),
    cross_entropy.option("images", None, ((2, 3, 4, 5),), long=((4, 10, 6, 6),)),
    cross_entropy.option("images, reduction=none", ((2, 4, 2, 1),), reduction="none"),
    cross_entropy.option("weight", ((3, 4),), ((6, 5),), weighted=True),
    cross_entropy.option("ignore_index", ((3, 4),), ((6, 3),), ignore_index=0),
    cross_entropy.option("smoothing", None, ((16, 10),), report=True, label_smoothing=0.1, reduction="sum"),
    cross_entropy.option("label_smoothing", None, ((6, 5),), label_smoothing=0.3),
    cross_entropy.option("weight and label_smoothing", ((3, 4),), long=((64, 10),),
        weighted=True, label_smoothing=0.1),
    cross_entropy.option("weight and label_smoothing=1", None, ((2, 5, 3),), weighted=True, label_smoothing=1.0),
    cross_entropy.option("all options", None, ((4, 3, 5),),
        long=((64, 10),), weighted=True, ignore_index=0, label_smoothing=0.1),

    probabilities.option("", ((3, 4),) * 2, ((16, 10),) * 2, report=True, long=((128, 10),) * 2),
    probabilities.option("reduction=sum", long=((32, 1000),) * 2, reduction="sum"),
    probabilities.option("reduction=none", long=((128, 10),) * 2, reduction="none"),
    probabilities.option("unbatched", None, ((5,),) * 2),
    probabilities.option("sequences", None, ((2, 3, 4),) * 2),
    probabilities.option("images", None, ((2, 3, 4, 5),) * 2, long=((4, 10, 6, 6),) * 2),
    probabilities.option("weight", None, ((6, 5),) * 2, weighted=True),
    probabilities.option("label_smoothing", None, ((6, 5),) * 2, label_smoothing=0.3),
    probabilities.option("label_smoothing, reduction=none", ((2, 3, 2),) * 2, label_smoothing=0.1, reduction="none"),
    probabilities.option("weight and label_smoothing", long=((64, 10),) * 2, weighted=True, label_smoothing=0.1),
    probabilities.option("weight and label_smoothing=1", None, ((2, 5, 3),) * 2, weighted=True, label_smoothing=1.0),
]
# fmt: on
