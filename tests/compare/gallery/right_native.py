"""Native functions compared with themselves: correct, whatever their conventions and rounding errors.

Every function here draws sizes and options from the given random number generator, and returns a case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compare.case import Case
from tests.compare.gallery.wrong_function import randn

ELEMENTWISE: Sequence[Callable[[Tensor], Any]] = (
    F.gelu, F.silu, F.elu, F.softplus, F.mish, F.hardswish, F.leaky_relu, torch.relu, torch.tanh, torch.sigmoid,
    torch.sin, torch.exp, torch.abs, torch.square, torch.erf, torch.atan, torch.expm1, torch.nan_to_num,
)  # fmt: skip
ALONG_A_DIMENSION: Sequence[Callable[[Tensor, int], Any]] = (
    torch.softmax, torch.log_softmax, torch.logsumexp, torch.cumsum, torch.amax, torch.amin, torch.sum, torch.mean,
    torch.var, torch.sort, torch.max, torch.diff, torch.flip, torch.unbind, torch.std_mean,
)  # fmt: skip


def shape(rng: Random, least: int = 1, most: int = 3, largest: int = 6) -> tuple[int, ...]:
    """Draw a shape of ``least`` to ``most`` dimensions with sizes up to ``largest``."""
    return tuple(rng.choice([1, *range(2, largest + 1)]) for _ in range(rng.randint(least, most)))


def native_case(name: str, function: Callable[..., Any], make_inputs: Callable[[], Any], **options: Any) -> Case:
    return Case(f"native {name}", function, function, make_inputs, **options)


def elementwise(rng: Random) -> Case:
    function, sizes, scale = rng.choice(ELEMENTWISE), shape(rng, 0, 4), rng.choice([0.1, 1, 4])
    return native_case(f"{function.__name__} {sizes}", function, lambda: {"x": scale * torch.randn(sizes)})


def along_a_dimension(rng: Random) -> Case:
    function, sizes = rng.choice(ALONG_A_DIMENSION), shape(rng, 1, 4)
    sizes = tuple(max(2, n) for n in sizes)  # the variance of one number is NaN
    dim = rng.randrange(len(sizes))
    if function is torch.flip:
        return native_case(f"flip {sizes}", lambda x: torch.flip(x, (dim,)), randn(x=sizes))
    if function in (torch.var, torch.std_mean):
        return native_case(f"variance {sizes}", lambda x: function(x, (dim,)), randn(x=sizes), whole_numbers=False)
    return native_case(f"{function.__name__} {sizes} {dim}", lambda x: function(x, dim), randn(x=sizes))


def convolution(rng: Random) -> Case:
    groups, c_in, c_out = rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 3)
    kernel = (rng.randint(1, 3), rng.randint(1, 3))
    options = {
        "stride": (rng.randint(1, 2), rng.randint(1, 3)),
        "padding": (rng.randint(0, 2), rng.randint(0, 1)),
        "dilation": (rng.randint(1, 2), 1),
        "groups": groups,
    }
    x = (rng.choice([1, 2, 3]), groups * c_in, rng.randint(5, 8), rng.randint(5, 8))
    weight = (groups * c_out, c_in, *kernel)
    inputs = randn(x=x, weight=weight, **({"bias": weight[:1]} if rng.random() < 0.7 else {}))
    return native_case(f"conv2d {x} {weight} {options}", lambda *t: F.conv2d(*t, **options), inputs)


def other_convolutions(rng: Random) -> Case:
    if rng.random() < 0.5:
        x, weight = (2, 2, rng.randint(4, 9)), (3, 2, rng.randint(1, 4))
        return native_case(f"conv1d {x} {weight}", F.conv1d, randn(x=x, weight=weight, bias=(3,)))
    x, weight = (2, 3, rng.randint(2, 4), 3), (3, 2, 2, rng.randint(1, 3))
    return native_case(f"conv_transpose2d {x} {weight}", F.conv_transpose2d, randn(x=x, weight=weight))


def pooling(rng: Random) -> Case:
    kernel, x = rng.randint(2, 3), (rng.randint(1, 2), rng.randint(1, 3), rng.randint(4, 8), rng.randint(4, 8))
    options = {"stride": rng.randint(1, 3), "padding": rng.randint(0, 1), "ceil_mode": rng.random() < 0.5}
    if rng.random() < 0.5:
        options["count_include_pad"] = rng.random() < 0.5
        return native_case(f"avg_pool2d {x} {options}", lambda x: F.avg_pool2d(x, kernel, **options), randn(x=x))
    indices = rng.random() < 0.5
    return native_case(
        f"max_pool2d {x} {options}",
        lambda x: F.max_pool2d(x, kernel, **options, return_indices=indices),
        randn(x=x),
    )


def normalization(rng: Random) -> Case:
    n, c, h = rng.randint(2, 4), 2 * rng.randint(1, 2), rng.randint(2, 4)
    inputs = randn(x=(n, c, h, 3), weight=(c,), bias=(c,))
    kind = rng.choice(["batch", "group", "layer", "evaluated"])
    if kind == "batch":
        return native_case("batch_norm", lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), inputs)
    if kind == "group":
        return native_case("group_norm", lambda x, w, b: F.group_norm(x, 2, w, b), inputs, whole_numbers=False)
    if kind == "layer":
        return native_case("layer_norm", lambda x: F.layer_norm(x, x.shape[1:]), randn(x=(n, c, h)))
    mean, variance = torch.linspace(-1, 1, c), torch.linspace(0.5, 2, c)
    return native_case("batch_norm eval", lambda x, w, b: F.batch_norm(x, mean.to(x), variance.to(x), w, b), inputs)


def cross_entropy(rng: Random) -> Case:
    b, c = rng.choice([1, 3, 5]), rng.randint(2, 6)
    labels = torch.tensor([rng.randrange(c) for _ in range(b)])
    options = {
        "reduction": rng.choice(["mean", "sum", "none"]),
        "label_smoothing": rng.choice([0.0, 0.2]),
    }
    scale = rng.choice([1, 100])
    return native_case(
        f"cross_entropy ({b}, {c}) {options}",
        lambda z, labels: F.cross_entropy(z, labels, **options),
        lambda: {"z": scale * torch.randn(b, c), "labels": labels},
    )


def products(rng: Random) -> Case:
    b, m, n, k = (rng.randint(1, 5) for _ in range(4))
    name, function, shapes = rng.choice([
        ("bmm", torch.bmm, ((b, m, n), (b, n, k))),
        ("matmul", torch.matmul, ((b, m, n), (n, k))),
        ("linear", F.linear, ((m, n), (k, n), (k,))),
        ("bilinear", F.bilinear, ((m, n), (m, k), (b, n, k))),
        ("outer", torch.outer, ((m,), (n,))),
        ("dot", torch.dot, ((n,), (n,))),
        ("attention", F.scaled_dot_product_attention, ((b, 2, m, n), (b, 2, k, n), (b, 2, k, n))),
    ])  # fmt: skip
    return native_case(f"{name} {shapes}", function, randn(**{f"t{i}": s for i, s in enumerate(shapes)}))


def lookups(rng: Random) -> Case:
    rows, width = rng.randint(2, 6), rng.randint(1, 4)
    index = torch.tensor([rng.randrange(rows) for _ in range(rng.randint(1, 8))])
    if rng.random() < 0.5:
        return native_case("embedding", F.embedding, lambda: {"index": index, "table": torch.randn(rows, width)})
    indices = torch.tensor([[rng.randrange(rows) for _ in range(width)] for _ in range(5)])
    return native_case(
        "gather", lambda x, indices: x.gather(0, indices), lambda: {"x": torch.randn(rows, width), "indices": indices}
    )


def broadcasts(rng: Random) -> Case:
    function = rng.choice([torch.add, torch.mul, torch.sub, torch.maximum, torch.minimum, torch.atan2])
    a = shape(rng, 2, 3)
    b = tuple(rng.choice([n, 1]) for n in a)[rng.randint(0, 1) :]
    return native_case(
        f"{function.__name__} {a} {b}", function, randn(a=a, b=b), whole_numbers=function is not torch.atan2
    )


def several_outputs(rng: Random) -> Case:
    """Functions of several outputs, some of them integers, some of which depend on one input only."""
    rows = rng.randint(2, 6)
    name, function = rng.choice([
        ("chunk", lambda a, b: (*a.chunk(2), b.sum())),
        ("one each", lambda a, b: (a.exp(), b.cos())),
        ("topk", lambda a, b: (*a.topk(2, 0), a * b)),
        ("scalar and whole", lambda a, b: ((a * b).sum(), a + b)),
    ])  # fmt: skip
    return native_case(f"several_outputs outputs: {name}", function, randn(a=(rows, 3), b=(rows, 3)))


NATIVE = [
    elementwise, along_a_dimension, convolution, other_convolutions, pooling, normalization, cross_entropy, products,
    lookups,
    broadcasts, several_outputs,
]  # fmt: skip
