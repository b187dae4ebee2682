"""Convolution's kernels for CUDA equal their formulas, computed in float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from manualgrad import kernels
from manualgrad.cuda import conv2d as host
from manualgrad.cuda import conv2d_operands, conv2d_tiles
from manualgrad.cuda.conv2d_precision import allows_tf32
from manualgrad.cuda.conv2d_tiles import gather_tile, wants_batch_last
from manualgrad.cuda.launch import Launcher
from manualgrad.functional import conv2d
from manualgrad.ops.conv2d import (
    conv2d_forward_nchw,
    conv2d_grad_input_nchw,
    conv2d_grad_weight_and_bias,
    conv2d_grad_weight_oihw,
)
from manualgrad.ops.conv2d_geometry import make_conv2d_geometry

NAN, INF = float("nan"), float("inf")
PACK, GEMM, SUM = "conv2d_pack", "conv2d_gather_gemm", "conv2d_sum_output"
PACK_IMAGES, DIRECT, SUM_W = "conv2d_pack_images", "conv2d_grad_weight", "conv2d_sum_grad_weight"
COPIES, BATCH_LAST = "conv2d_batch_last", "conv2d_grad_weight_batch_last"
DEPTHWISE = "conv2d_depthwise", "conv2d_depthwise_grad_input", "conv2d_depthwise_grad_weight"


@dataclass(frozen=True)
class Layer:
    """A convolution, and the launches that it takes: forward, input's gradient, weight's gradient."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    launches: tuple[list[str], list[str], list[str]]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    channels_last: bool = True
    flip_kernel: bool = True
    bias: bool = True


LAYERS = {
    "few channels, taps and channels on one axis": Layer(
        (2, 5, 4, 5), (6, 5, 3, 3), ([PACK, GEMM], [PACK, GEMM], [DIRECT]), padding=1
    ),
    "padding at the bottom and right only": Layer(
        (1, 4, 3, 3), (4, 4, 2, 2), ([PACK, GEMM], [PACK, GEMM], [DIRECT]), padding="same"
    ),
    "contiguous, phases, correlation": Layer(
        (2, 32, 5, 4), (32, 32, 3, 2), ([PACK, GEMM], [PACK, GEMM], [PACK_IMAGES, DIRECT]),
        stride=2, padding=(1, 0), channels_last=False, flip_kernel=False,
    ),
    "tails of tiles": Layer(
        (2, 72, 2, 3), (70, 72, 1, 2), ([PACK, GEMM], [PACK, GEMM], [DIRECT]), bias=False
    ),
    "groups, stride, dilation": Layer(
        (1, 8, 8, 9), (6, 4, 3, 2), ([PACK, GEMM], [PACK, GEMM], [DIRECT]),
        stride=(3, 2), padding=(1, 0), dilation=(2, 3), groups=2,
    ),
    "1x1, more stride than kernel": Layer(
        (2, 5, 5, 4), (7, 5, 1, 1), ([PACK, GEMM], [PACK, GEMM], [DIRECT]), stride=(2, 3)
    ),
    "RGB, contiguous, batch last": Layer(
        (10, 3, 5, 5), (4, 3, 3, 3), ([PACK, GEMM], [PACK, GEMM], [COPIES, BATCH_LAST, SUM_W]), stride=2, padding=1,
        channels_last=False,
    ),
    "groups, two blocks of the batch": Layer(
        (34, 4, 2, 2), (6, 2, 2, 1), ([PACK, GEMM], [PACK, GEMM], [COPIES, BATCH_LAST]), groups=2
    ),
    "one channel, two parts": Layer((2, 1, 13, 12), (3, 1, 1, 2), ([PACK, GEMM], [PACK, GEMM], [DIRECT, SUM_W])),
    "depthwise": Layer(
        (3, 6, 13, 14), (6, 1, 3, 2), ([DEPTHWISE[0]], [DEPTHWISE[1]], [DEPTHWISE[2], SUM_W]), stride=(1, 2),
        padding=1, groups=6,
    ),
    "depthwise, two outputs a channel": Layer(
        (2, 2, 4, 3), (4, 1, 3, 6), ([DEPTHWISE[0]], [DEPTHWISE[1]], [DEPTHWISE[2]]), padding=(1, 5), dilation=(1, 2),
        groups=2, channels_last=False,
    ),
}  # fmt: skip


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def operands(
    layer: Layer, device: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor | None, Any]:
    """x, w, b and the geometry of the layer, x in its memory format."""
    memory_format = torch.channels_last if layer.channels_last else torch.contiguous_format
    x = torch.randn(layer.x).to(device, dtype).contiguous(memory_format=memory_format)
    w = torch.randn(layer.w).to(device, dtype)
    b = torch.randn(layer.w[0]).to(device, dtype) if layer.bias else None
    geometry = make_conv2d_geometry(
        x, w, b, layer.stride, layer.padding, layer.dilation, layer.groups, layer.flip_kernel, layer.channels_last
    )
    return x, w, b, geometry


def formula(function: Any, *args: Any) -> Tensor:
    """The result of the formula in float64."""
    return function.__wrapped__(*(x.double() if isinstance(x, Tensor) else x for x in args))


def assert_near(actual: Tensor, expected: Tensor, bound: float) -> float:
    """Compare by the norm of the difference; return the error."""
    error = float((actual.double() - expected).norm() / expected.norm())
    assert error < bound, f"an error of {error:.1e}, expected less than {bound:.1e}"
    return error


def check(layer: Layer, device: str, launches: list[str], dtype: torch.dtype, bound: float) -> list[float]:
    """Compare the three formulas of a layer, their strides and launches, and the bias's sum; return the errors."""
    x, w, b, geometry = operands(layer, device, dtype)
    memory_format = torch.channels_last if layer.channels_last else torch.contiguous_format
    errors, launched = [], []
    g = torch.randn(layer.x[0], layer.w[0], *geometry.windows.output_size(*geometry.input_size)).to(device, dtype)
    g = g.contiguous(memory_format=memory_format)
    for function, args in (
        (conv2d_forward_nchw, (x, w, b)), (conv2d_grad_input_nchw, (g, w)), (conv2d_grad_weight_oihw, (g, x))
    ):  # fmt: skip
        launches.clear()
        if layer.bias and function is conv2d_grad_weight_oihw:
            actual, grad_b = conv2d_grad_weight_and_bias(g, x, geometry)
            assert grad_b.dtype is dtype
            assert_near(grad_b, g.double().sum((0, 2, 3)), bound)
        else:
            actual = function(*args, geometry)
        launched.append(list(launches))
        assert actual.dtype is dtype
        assert actual.is_contiguous(memory_format=memory_format)
        errors.append(assert_near(actual, formula(function, *args, geometry), bound))
    assert tuple(launched) == layer.launches or dtype is not torch.float32
    return errors


@pytest.mark.parametrize("name", LAYERS)
def test_float32_equals_the_formula(kernel_device, launches, name) -> None:
    with tf32(False):
        check(LAYERS[name], kernel_device, launches, torch.float32, 6e-7)


@pytest.mark.parametrize(
    "name",
    [
        "few channels, taps and channels on one axis", "groups, two blocks of the batch",
        pytest.param("tails of tiles", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_tf32_rounds_operands_to_nearest(kernel_device, launches, name) -> None:
    with tf32(True):
        errors = check(LAYERS[name], kernel_device, launches, torch.float32, 5e-4)  # 2^-11 for one product
    assert min(errors) > 1e-5, "the products were not in TF32"


@pytest.mark.parametrize(
    "name",
    [
        "contiguous, phases, correlation", "depthwise",
        pytest.param("few channels, taps and channels on one axis", marks=pytest.mark.slow),
        pytest.param("1x1, more stride than kernel", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_float16_accumulates_in_float32(kernel_device, launches, name) -> None:
    check(LAYERS[name], kernel_device, launches, torch.float16, 4e-4)  # results are rounded to 2^-11 at most


@pytest.fixture
def bfloat16_products(kernel_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter multiply bfloat16 numbers: it multiplies their bits as whole numbers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.create_dot

    def create_dot(self: Any, *operands: Any) -> Any:
        a, b = (
            TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)
            if x.data.dtype == "uint16"
            else x
            for x in operands[:2]
        )
        return original(self, a, b, *operands[2:])

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def test_bfloat16_of_whole_numbers_is_exact(kernel_device, bfloat16_products, launches) -> None:
    """Sums below 256 need no rounding, which the interpreter does differently."""
    x, w, b, geometry = operands(LAYERS["few channels, taps and channels on one axis"], kernel_device)
    x, w, b = (t.sign().bfloat16() for t in (x, w, b))
    g = torch.randn(2, 6, 4, 5).to(kernel_device).sign().bfloat16()
    for function, args in (
        (conv2d_forward_nchw, (x, w, b)), (conv2d_grad_input_nchw, (g, w)), (conv2d_grad_weight_oihw, (g, x))
    ):  # fmt: skip
        assert torch.equal(function(*args, geometry).double(), formula(function, *args, geometry))
    assert launches == [PACK, GEMM, PACK, GEMM, PACK_IMAGES, DIRECT]


@pytest.mark.parametrize(("channels", "channels_last"), [(17, True), (72, False)])
def test_long_sums_in_parts(kernel_device, launches, monkeypatch, channels, channels_last) -> None:
    monkeypatch.setitem(conv2d_tiles._FEW, "3xtf32", (1.6, 2))  # sums of two blocks or more are long
    layer = Layer((1, channels, 2, 3), (33, channels, 2, 2), ([], [], []), channels_last=channels_last)
    x, w, b, geometry = operands(layer, kernel_device)
    with tf32(False):
        assert_near(conv2d_forward_nchw(x, w, b, geometry), formula(conv2d_forward_nchw, x, w, b, geometry), 6e-7)
    assert launches == [PACK, GEMM, SUM]


def test_half_types_copy_the_batch_last_for_few_channels_and_large_kernels(kernel_device, launches) -> None:
    x, _, _, geometry = operands(Layer((9, 2, 5, 6), (3, 2, 5, 5), ([], [], [])), kernel_device, torch.float16)
    g = torch.randn(9, 3, 1, 2).to(kernel_device, torch.float16)
    assert_near(conv2d_grad_weight_oihw(g, x, geometry), formula(conv2d_grad_weight_oihw, g, x, geometry), 4e-4)
    assert launches == [COPIES, BATCH_LAST]


def test_float16_weight_in_channels_last_order_is_read_in_place(kernel_device, launches) -> None:
    x, w, b, geometry = operands(LAYERS["contiguous, phases, correlation"], kernel_device, torch.float16)
    x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    assert_near(conv2d_forward_nchw(x, w, b, geometry), formula(conv2d_forward_nchw, x, w, b, geometry), 4e-4)
    assert launches == [GEMM]


@pytest.mark.parametrize("name", ["contiguous, phases, correlation", "groups, two blocks of the batch", "depthwise"])
def test_64_bit_offsets(kernel_device, launches, monkeypatch, name) -> None:
    monkeypatch.setattr(conv2d_operands, "INT32_NUMEL", 1)
    with tf32(False):
        check(LAYERS[name], kernel_device, launches, torch.float32, 6e-7)


SPECIAL = {
    "infinity": INF, "minus infinity": -INF, "NaN as GPUs make it": 0x7FFFFFFF, "its negative": 0xFFFFFFFF - 2**32
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of NumPy, in the interpreter
@pytest.mark.parametrize(
    ("special", "allowed"), [*((special, False) for special in SPECIAL), ("infinity", True), ("its negative", True)]
)
def test_numbers_that_are_not_finite(kernel_device, special, allowed) -> None:
    """An infinite number times the low part of another has a sign of its own: the small products must not count."""
    value = SPECIAL[special]
    if isinstance(value, int):
        value = torch.tensor(value, dtype=torch.int32).view(torch.float32)
    x, w, b, geometry = operands(Layer((1, 4, 4, 4), (2, 4, 1, 1), ([], [], [])), kernel_device)
    g = torch.randn(1, 2, 4, 4).to(kernel_device)
    x_special, w_special, g_special = x.clone(), w.clone(), g.clone()
    x_special[0, 1, 1, 2], w_special[1, 2], g_special[0, 1, 3, 3] = value, value, value
    calls = (
        (conv2d_forward_nchw, (x_special, w, b)),
        (conv2d_forward_nchw, (x, w_special, b)),
        (conv2d_grad_input_nchw, (g_special, w)),
        (conv2d_grad_input_nchw, (g, w_special)),
        (conv2d_grad_weight_oihw, (g_special, x)),
        (conv2d_grad_weight_oihw, (g, x_special)),
    )
    with tf32(allowed):
        for function, args in calls:
            actual, expected = function(*args, geometry), formula(function, *args, geometry)
            assert not expected.isfinite().all()
            torch.testing.assert_close(
                actual.double(), expected, rtol=2e-2, atol=2e-2, equal_nan=True
            )  # as in TF32, 100 times coarser than what the other tests allow: here only the special numbers count


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        (LAYERS["few channels, taps and channels on one axis"], "3xtf32"),
        (LAYERS["padding at the bottom and right only"], "tf32"),
        (Layer((1, 10, 2, 3), (3, 10, 1, 2), ([], [PACK, GEMM], [])), "half"),
    ],
    ids=["taps and channels on one axis", "padding at two sides", "more channels than are summed at a time"],
)
def test_weights_that_are_not_finite_at_the_border(kernel_device, launches, layer, precision) -> None:
    """The input's gradient has no product with the padding around g, which would be 0 · w."""
    dtype = torch.float16 if precision == "half" else torch.float32
    x, w, _, geometry = operands(layer, kernel_device, dtype)
    w[1, 2, 0, 0], w[2, 1, -1, -1] = INF, NAN
    g = torch.randn(x.shape[0], w.shape[0], *geometry.windows.output_size(*geometry.input_size))
    g = g.to(kernel_device, dtype)
    with tf32(precision == "tf32"):
        actual = conv2d_grad_input_nchw(g, w, geometry)
    expected = formula(conv2d_grad_input_nchw, g, w, geometry)
    assert not expected.isfinite().all() and expected.isfinite().any()
    torch.testing.assert_close(actual.double(), expected, rtol=5e-3, atol=5e-3, equal_nan=True)
    assert launches == [PACK, GEMM]


def views(x: Tensor) -> dict[str, Tensor]:
    """Tensors like ``x`` whose numbers lie elsewhere: each strided, sliced or expanded."""
    return {
        "sliced": torch.cat([x, x], 1)[:, : x.shape[1]],
        "sliced, channels_last": torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
        "rows apart": torch.cat([x, x], 3)[..., : x.shape[3]],
        "expanded batch": x[:1].expand_as(x),
        "expanded": x[:1, :1, :1, :1].expand_as(x),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }


@pytest.mark.parametrize(
    ("view", "batch"),
    [
        ("rows apart", 2), ("expanded", 2), ("sliced", 9), ("expanded batch", 9),
        *(
            pytest.param(view, batch, marks=pytest.mark.slow)
            for view, batch in (
                ("sliced", 2), ("sliced, channels_last", 2), ("transposed", 2), ("expanded batch", 2), ("expanded", 9)
            )
        ),
    ],
)  # fmt: skip
def test_other_memory_orders(kernel_device, launches, view, batch) -> None:
    layer = Layer((batch, 6, 3, 3), (2, 6, 2, 2), ([], [], []), flip_kernel=False)
    x, w, b, geometry = operands(layer, kernel_device)
    g = torch.randn(batch, 2, 2, 2).to(kernel_device)
    x, w, g = views(x)[view], views(w)[view], views(g)[view]
    b = b[:1].expand(2)
    with tf32(False):
        for function, args in (
            (conv2d_forward_nchw, (x, w, b)), (conv2d_grad_input_nchw, (g, w)), (conv2d_grad_weight_oihw, (g, x))
        ):  # fmt: skip
            assert_near(function(*args, geometry), formula(function, *args, geometry), 6e-7)
    assert (BATCH_LAST in launches) == (batch > 8)


def test_depthwise_reads_views_in_place(kernel_device, launches) -> None:
    x, _, _, geometry = operands(LAYERS["depthwise"], kernel_device)
    g = torch.randn(3, 6, *geometry.windows.output_size(13, 14)).to(kernel_device)
    with tf32(False):
        for view in ("sliced", "rows apart", "expanded"):
            args = views(g)[view], views(x)[view]
            assert_near(
                conv2d_grad_weight_oihw(*args, geometry), formula(conv2d_grad_weight_oihw, *args, geometry), 6e-7
            )
    assert set(launches) == {DEPTHWISE[2], SUM_W}


@pytest.mark.parametrize("groups", [1, 4])
def test_batch_0(kernel_device, launches, groups) -> None:
    layer = Layer((0, 4, 3, 3), (4, 4 // groups, 2, 2), ([], [], []), groups=groups)
    x, w, b, geometry = operands(layer, kernel_device)
    assert conv2d_forward_nchw(x, w, b, geometry).shape == (0, 4, 2, 2)
    g = x.new_empty(0, 4, 2, 2)
    assert conv2d_grad_input_nchw(g, w, geometry).shape == x.shape
    for grad, parameter in zip(conv2d_grad_weight_and_bias(g, x, geometry), (w, b), strict=True):
        assert torch.equal(grad, torch.zeros_like(parameter))
    assert launches == []


def test_forward_backward_and_double_backward(kernel_device, launches) -> None:
    """Forward takes two launches, backward five. Kernels compute second derivatives too."""
    tensors = [torch.randn(s).to(kernel_device) for s in ((9, 3, 4, 4), (4, 3, 2, 2), (4,), (9, 4, 3, 3))]

    def second_derivatives(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, w, b, v)]
        y = conv2d(*leaves[:3])
        first = torch.autograd.grad(y, leaves[:3], leaves[3], create_graph=True)
        launched.append(list(launches))
        second = torch.autograd.grad(sum((t**2).sum() for t in first[:2]), leaves[:2] + leaves[3:])
        return [t.detach() for t in (*first, *second)]

    launched: list[list[str]] = []
    with tf32(False):
        actual = second_derivatives(*tensors)
    assert launched == [[PACK, GEMM, PACK, GEMM, COPIES, BATCH_LAST, SUM_W]]
    assert launches.count(GEMM) >= 4
    launches.clear()
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    with tf32(False):
        explanation = kernels.explain(lambda: torch.autograd.grad(conv2d(*leaves), leaves, tensors[3]))
    assert launches == launched[0]
    assert [record.formula for record in explanation.records] == [
        "conv2d_forward_nchw", "conv2d_grad_input_nchw", "conv2d_grad_weight_and_bias"
    ]  # fmt: skip
    for a, e in zip(explanation.result, actual[:3], strict=True):
        assert_near(a, e.double(), 3e-7)
    for a, e in zip(actual, second_derivatives(*(t.double() for t in tensors)), strict=True):
        assert_near(a, e, 1e-6)


def test_forward_mode(kernel_device, launches) -> None:
    tensors = [torch.randn(s).to(kernel_device) for s in ((2, 3, 3, 3), (4, 3, 2, 2), (4,))] * 2

    def tangent(*tensors: Tensor) -> Tensor:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip(tensors[:3], tensors[3:], strict=True)]
            return forward_ad.unpack_dual(conv2d(*duals)).tangent

    with tf32(False):
        assert_near(tangent(*tensors), tangent(*(t.double() for t in tensors)), 6e-7)
    assert launches == [PACK, GEMM] * 3


@pytest.mark.filterwarnings("error")
def test_the_flags_of_native_convolutions_say_whether_tf32_is_used() -> None:
    backends = torch.backends
    before = backends.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    try:
        for allowed in (False, True):
            backends.cudnn.allow_tf32 = allowed
            assert allows_tf32() is allowed
        backends.cudnn.conv.fp32_precision = "none"
        for precision in ("tf32", "ieee"):
            backends.fp32_precision = precision
            assert allows_tf32() is (precision == "tf32")
        backends.cudnn.conv.fp32_precision = "tf32"
        assert allows_tf32()
        backends.cuda.matmul.fp32_precision = "ieee"
        with backends.cudnn.flags(enabled=False):
            assert not allows_tf32()
    finally:
        backends.cudnn.allow_tf32 = True
        backends.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision = before


class PrecisionLauncher(Launcher):
    """Notes the precisions of products and runs nothing."""

    def __init__(self) -> None:
        self.precisions = set[str]()

    def __call__(self, *args: Any, **constants: Any) -> None:
        if "BM" in constants:
            self.precisions.add(constants["PRECISION"])


def test_the_most_specific_flag_that_is_set_gives_the_precision_of_all_three_products() -> None:
    """PyTorch's rule: the operation's flag, then that of the backend, then the general one; "none" is not set."""
    backends = torch.backends
    flags = backends.cudnn.conv, backends.cudnn, backends
    before = [flag.fp32_precision for flag in flags]
    x, w, b, geometry = operands(LAYERS["few channels, taps and channels on one axis"], "cpu")
    g = torch.randn(2, 6, 4, 5)
    try:
        for settings in itertools.product(("none", "ieee", "tf32"), repeat=3):
            for flag, precision in reversed([*zip(flags, settings, strict=True)]):
                flag.fp32_precision = precision
            launcher = PrecisionLauncher()
            host.conv2d_forward(launcher, x, w, b, geometry)
            host.conv2d_grad_input(launcher, g, w, geometry)
            host.conv2d_grad_weight_and_bias(launcher, g, x, geometry)
            first = next((precision for precision in settings if precision != "none"), "none")
            assert launcher.precisions == {"tf32" if first == "tf32" else "3xtf32"}, settings
    finally:
        for flag, precision in reversed([*zip(flags, before, strict=True)]):
            flag.fp32_precision = precision


def test_unsupported_calls_name_the_reason() -> None:
    x, w, b, geometry = operands(LAYERS["one channel, two parts"], "cpu")
    assert host.unsupported_conv2d_forward(x.double(), w.double(), None, geometry) == "a tensor is float64"
    assert host.unsupported_conv2d_forward(x[..., 1:], w, b, geometry) == "the geometry is not that of the images"
    many = torch.empty(2**16, 1, 1, 1)
    groups = make_conv2d_geometry(torch.empty(1, 2**15, 1, 1), many, None, 1, 0, 1, 2**15, True)
    assert host.unsupported_conv2d_forward(torch.empty(1, 2**15, 1, 1), many, None, groups).startswith(
        "there are too"
    )
    steps = make_conv2d_geometry(x, w, b, 256, 0, 1, 1, True)
    assert host.unsupported_conv2d_grad_input(x[..., :1, :1], w, steps) == "the stride is too large"


def test_tiles_are_those_that_were_measured() -> None:
    many, few = 32 * 56 * 56, 32 * 7 * 7
    assert gather_tile("3xtf32", few, 512, 512 * 9, 132).parts == 3
    assert gather_tile("3xtf32", many, 64, 64 * 9, 132).parts == 1
    assert gather_tile("tf32", few, 512, 512 * 9, 132).parts == 2
    assert gather_tile("tf32", 32 * 14 * 14, 256, 256 * 9, 132).parts == 1
    assert gather_tile("half", many, 128, 64 * 9, 132).rows == 128
    assert gather_tile("half", few, 512, 512 * 9, 132).rows == 64
    assert gather_tile("half", many, 16, 75, 132).columns == 16
    assert wants_batch_last("3xtf32", 9, 3, 9)
    assert not wants_batch_last("3xtf32", 8, 64, 9)
    assert not wants_batch_last("half", 64, 64, 9)


class CountingLauncher(Launcher):
    """Counts launches and runs nothing."""

    count = 0

    def __call__(self, *args: Any, **constants: Any) -> None:
        self.count += 1


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_takes_at_most_three_launches_forward_and_five_backward(dtype, channels_last) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for channels, size, out_channels, kernel, stride in (
        (3, 224, 64, 7, 2), (64, 56, 64, 3, 1), (64, 56, 128, 3, 2), (128, 28, 128, 3, 1), (256, 14, 512, 3, 2),
        (512, 7, 512, 3, 1), (64, 7, 512, 3, 1), (512, 7, 64, 3, 1), (256, 14, 512, 1, 2), (1, 28, 16, 5, 1),
    ):  # fmt: skip
        x = torch.empty(32, channels, size, size, dtype=dtype, memory_format=memory_format)
        w = torch.empty(out_channels, channels, kernel, kernel, dtype=dtype, memory_format=memory_format)
        geometry = make_conv2d_geometry(x, w, None, stride, kernel // 2, 1, 1, False, channels_last)
        forward, backward = CountingLauncher(), CountingLauncher()
        g = host.conv2d_forward(forward, x, w, None, geometry)
        host.conv2d_grad_input(backward, g, w, geometry)
        host.conv2d_grad_weight_and_bias(backward, g, x, geometry)
        assert forward.count <= 3, w.shape
        assert backward.count <= 5, w.shape
