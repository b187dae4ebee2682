"""The operations of manualgrad compared with native ones, with every option."""

from __future__ import annotations

from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

import manualgrad
from compare.case import Case
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from tests.compare.gallery.planted_faults import half_relu, network
from tests.compare.gallery.right_native import shape
from tests.compare.gallery.wrong_function import randn


def convolution(rng: Random) -> Case:
    groups, c_in, c_out, flip = rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 3), rng.random() < 0.5
    kernel = (rng.randint(1, 3), rng.randint(1, 3))
    same = rng.random() < 0.2 and kernel[0] % 2 and kernel[1] % 2
    options = {
        "stride": 1 if same else (rng.randint(1, 2), rng.randint(1, 3)),
        "padding": "same" if same else (rng.randint(0, 2), rng.randint(0, 1)),
        "dilation": (rng.randint(1, 2), 1),
        "groups": groups,
    }
    batch = rng.choice([(), (1,), (2,), (3,)])
    x, weight = (*batch, groups * c_in, rng.randint(5, 8), rng.randint(5, 8)), (groups * c_out, c_in, *kernel)
    inputs = randn(input=x, weight=weight, **({"bias": weight[:1]} if rng.random() < 0.7 else {}))

    def native(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.conv2d(x, w.flip(2, 3) if flip else w, b, **options)

    return Case(
        f"our conv2d {x} {weight} {options}",
        lambda *t: manualgrad.conv2d(*t, **options, flip_kernel=flip),
        native,
        inputs,
    )


def pooling(rng: Random) -> Case:
    kernel = (rng.randint(1, 3), rng.randint(2, 3))
    options = {
        "kernel_size": kernel,
        "stride": rng.choice([None, 1, (2, 3)]),
        "padding": (kernel[0] // 2, rng.randint(0, 1)),
        "dilation": (1, rng.randint(1, 2)),
        "ceil_mode": rng.random() < 0.5,
        "return_indices": rng.random() < 0.3,
    }
    x = (*rng.choice([(), (1,), (3,)]), rng.randint(1, 3), rng.randint(5, 8), rng.randint(5, 8))
    return Case(
        f"our max_pool2d {x} {options}",
        lambda x: manualgrad.max_pool2d(x, **options),
        lambda x: F.max_pool2d(x, **options),
        randn(input=x),
    )


def dense(rng: Random) -> Case:
    in_features, out_features, batch = rng.randint(1, 6), rng.randint(1, 5), shape(rng, 0, 2, 4)
    inputs = randn(
        input=(*batch, in_features),
        weight=(out_features, in_features),
        **({"bias": (out_features,)} if rng.random() < 0.7 else {}),
    )
    return Case(f"our dense {batch} {(out_features, in_features)}", manualgrad.dense, F.linear, inputs)


def relu(rng: Random) -> Case:
    sizes, subgradient = shape(rng, 0, 4), rng.choice([0.0, 0.5])
    conventions = {"derivative 1/2 at 0": half_relu} if subgradient and rng.random() < 0.5 else {}
    native = half_relu if subgradient and not conventions else torch.relu
    return Case(
        f"our relu {sizes} {subgradient}",
        lambda x: manualgrad.relu(x, subgradient=subgradient),
        native,
        randn(input=sizes),
        conventions=conventions,
    )


def softmax(rng: Random) -> Case:
    sizes, scale = shape(rng, 1, 4), rng.choice([1, 30, 1000])
    dim = rng.randrange(-len(sizes), len(sizes))
    return Case(
        f"our softmax {sizes} {dim} times {scale}",
        lambda x: manualgrad.softmax(x, dim),
        lambda x: torch.softmax(x, dim),
        lambda: {"input": scale * torch.randn(sizes)},
    )


def cross_entropy(rng: Random) -> Case:
    b, c, scale = rng.choice([1, 3, 5]), rng.randint(2, 6), rng.choice([1, 100])
    labels = torch.tensor([rng.randrange(c) for _ in range(b)])
    options = {"reduction": rng.choice(["mean", "sum", "none"]), "label_smoothing": rng.choice([0.0, 0.2])}
    weighted = rng.random() < 0.5
    if rng.random() < 0.3:
        return Case(
            f"our softmax_cross_entropy of probabilities {(b, c)} {options}",
            lambda z, y: manualgrad.softmax_cross_entropy(z, y, **options),
            lambda z, y: F.cross_entropy(z, y, **options),
            lambda: {"input": torch.randn(b, c), "target": torch.randn(b, c).softmax(1)},
            whole_numbers=False,
        )
    if b > 1 and rng.random() < 0.5:
        labels[0] = options["ignore_index"] = -1

    def weight(z: Tensor) -> Tensor | None:
        return torch.linspace(0.5, 2, c).to(z) if weighted else None

    return Case(
        f"our softmax_cross_entropy {(b, c)} {options}",
        lambda z, labels: manualgrad.softmax_cross_entropy(z, labels, weight(z), **options),
        lambda z, labels: F.cross_entropy(z, labels, weight(z), **options),
        lambda: {"input": scale * torch.randn(b, c), "target": labels},
    )


def flatten(rng: Random) -> Case:
    sizes = tuple(rng.randint(1, 4) for _ in range(4))
    return Case(
        f"our flatten {sizes}", manualgrad.flatten, lambda x: x.permute(0, 2, 3, 1).flatten(1), randn(input=sizes)
    )


def fused(rng: Random) -> Case:
    half, h, w, c_out = rng.random() < 0.5, rng.randint(5, 9), rng.randint(5, 9), rng.randint(1, 3)
    stride, padding = rng.randint(1, 2), rng.randint(0, 1)

    def native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        z = F.conv2d(x, weight.flip(2, 3), bias, stride, padding)
        return F.max_pool2d(half_relu(z) if half else z.relu(), 2)

    return Case(
        f"our conv2d_relu_max_pool2d {(h, w, c_out)}",
        lambda *t: conv2d_relu_max_pool2d(*t, stride, padding, subgradient=0.5 if half else 0.0),
        native,
        randn(input=(2, 2, h, w), weight=(c_out, 2, 3, 2), bias=(c_out,)),
        kinks=True,
    )


def whole_network(rng: Random) -> Case:
    channels = tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 2)))
    hidden = tuple(rng.randint(2, 6) for _ in range(rng.randint(0, 2)))
    options = {"fused": rng.random() < 0.5, "subgradient": rng.choice([0.0, 0.5])}
    return network(channels, hidden, rng.randint(1, 3), **options)


OURS = [convolution, pooling, dense, relu, softmax, cross_entropy, flatten, fused, whole_network]
