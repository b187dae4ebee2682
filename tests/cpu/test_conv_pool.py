"""Promise: the compiled P(R(C + b)) gives what the formula gives, in every instruction set, on every branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from manualgrad import kernels
from manualgrad.cpu import conv_pool, jit, team
from manualgrad.cpu.pool_index import DEAD, ZERO
from manualgrad.ops import conv_relu_pool
from manualgrad.ops.conv2d import conv2d_forward
from manualgrad.ops.conv_relu_pool import conv2d_relu_max_pool2d
from manualgrad.ops.layout import from_nchw, from_oihw, to_nchw

pytestmark = pytest.mark.usefixtures("kernels_as_before")


def sets() -> tuple[str, ...]:
    try:
        return jit.instruction_sets()
    except jit.Unavailable:
        return ()


every_set = pytest.mark.parametrize(
    "instructions",
    [
        pytest.param(name, marks=pytest.mark.skipif(name not in sets(), reason=f"this processor has no {name}"))
        for name in jit.LANES
    ],
)


@dataclass(frozen=True)
class Case:
    """x (B, R, H, W), w (K, R, P, Q): H = P + extra rows, W likewise."""

    images: int
    channels: int
    outputs: int
    kernel: tuple[int, int]
    extra: tuple[int, int]
    flip: bool = True
    subgradient: float = 0.5
    bias: bool = True
    threads: int = 1

    def tensors(self, draw: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        size = [k + more for k, more in zip(self.kernel, self.extra, strict=True)]
        x = draw(self.images, self.channels, *size)
        return x, draw(self.outputs, self.channels, *self.kernel), draw(self.outputs) if self.bias else None

    def geometry(self, x: Tensor, w: Tensor, b: Tensor | None) -> conv_relu_pool.Geometry:
        return conv_relu_pool.geometry_of(x, w, b, 1, 0, self.flip, self.subgradient)


CASES = st.builds(
    Case,
    images=st.sampled_from([0, 1, 2, 3, 7]),
    channels=st.sampled_from([1, 2, 3, 4, 5, 8, 16, 17, 32]),
    outputs=st.sampled_from([1, 7, 8, 9, 16, 24, 32, 33, 64, 70]),
    kernel=st.one_of(st.just((5, 5)), st.tuples(st.integers(1, 7), st.integers(1, 7))),
    extra=st.tuples(st.integers(1, 7), st.integers(1, 12)),
    flip=st.booleans(),
    subgradient=st.sampled_from([0, 0.5, 1]),
    bias=st.booleans(),
    threads=st.integers(1, 4),
)
# The shapes of DocumentCNN, and those where tiles of every size and both ways to Δw occur.
SHAPES = [
    Case(3, 1, 16, (5, 5), (23, 23)),
    Case(3, 16, 32, (5, 5), (7, 7)),
    Case(2, 32, 64, (5, 5), (7, 7), threads=2),
    Case(2, 3, 48, (7, 6), (6, 11), flip=False),
    Case(2, 5, 70, (6, 7), (2, 3), subgradient=0),
    Case(1, 1, 1, (1, 1), (1, 1)),
]


def whole(*shape: int) -> Tensor:
    """Whole numbers, so that sums are exact, and many of them zero, so that there are ties."""
    return torch.randint(-1, 2, shape).float()


def strange(*shape: int) -> Tensor:
    """Whole numbers, and here and there one that is not finite."""
    values = torch.randint(-1, 2, shape).float()
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan])[torch.randint(3, shape)]
    return torch.where(torch.rand(shape) < 0.02, odd, values)


def by_formula(x, w, b, g, geometry) -> list[Tensor]:
    kernels.choose("off")
    z = conv2d_forward(from_nchw(x), from_oihw(w), b, geometry.convolution)
    pooled, code = (to_nchw(t) for t in conv_relu_pool.relu_pool_forward(z, geometry))
    return [pooled, code, *conv_relu_pool.conv_relu_pool_backward(g, x, w, code, geometry, (True, True, True))]


def by_kernel(instructions, x, w, b, g, geometry) -> list[Tensor]:
    """Through the door that the Function uses; gradients of x and w are None where the formula has to serve."""
    kernels.choose(instructions)
    pooled, code = conv_relu_pool.kernels.forward(x, w, b, geometry)
    found = conv_relu_pool.kernels.backward(g, x, w, code, geometry, (True, True))
    return [
        pooled,
        code,
        *(found or conv_relu_pool.conv_relu_pool_backward(g, x, w, code, geometry, (True, True, True))),
    ]


def same(ours: Tensor, expected: Tensor) -> bool:
    return ours.shape == expected.shape and torch.equal(ours.nan_to_num(77), expected.nan_to_num(77))


NAMES = ("value", "code", "gradient of x", "gradient of w", "gradient of b")


def compare(instructions: str, case: Case, draw: Callable[..., Tensor], seed: int = 0) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(case.threads)
    x, w, b = case.tensors(draw)
    geometry = case.geometry(x, w, b)
    g = draw(case.images, case.outputs, *geometry.pooling.count)
    expected = by_formula(x, w, b, g, geometry)
    for name, ours, theirs in zip(NAMES, by_kernel(instructions, x, w, b, g, geometry), expected, strict=True):
        assert same(ours, theirs), f"{name} in {instructions}"


@every_set
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=CASES, draw=st.sampled_from([whole, strange]), seed=st.integers(0, 2**32))
@example(case=SHAPES[0], draw=whole, seed=0)
@example(case=SHAPES[1], draw=whole, seed=0)
@example(case=SHAPES[1], draw=strange, seed=0)
@example(case=SHAPES[2], draw=whole, seed=0)
@example(case=SHAPES[3], draw=whole, seed=0)
@example(case=SHAPES[4], draw=whole, seed=0)
@example(case=SHAPES[5], draw=whole, seed=0)
def test_kernels_equal_formulas_bit_for_bit(instructions, case, draw, seed):
    compare(instructions, case, draw, seed)


@every_set
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("images", [1, 7, 63, 64, 65, 150])
def test_batches_and_threads(instructions, images, threads):
    for channels, outputs in ((1, 16), (16, 8)):
        compare(instructions, Case(images, channels, outputs, (5, 5), (5, 4), threads=threads), whole)


@every_set
@pytest.mark.parametrize("window", range(0, 6**4, 216))
def test_windows_of_every_sign(instructions, window):
    """All windows of −1, −0, 0, 1, ∞ and NaN, 216 at a time: z itself goes in, through a kernel of one 1."""
    values = torch.tensor([-1.0, -0.0, 0.0, 1.0, torch.inf, torch.nan])
    x = torch.cartesian_prod(*[values] * 4)[window : window + 216].reshape(216, 1, 2, 2)
    case = Case(216, 1, 1, (1, 1), (1, 1))
    w, b = torch.ones(1, 1, 1, 1), torch.zeros(1)
    geometry, g = case.geometry(x, w, b), torch.arange(1.0, 217).view(216, 1, 1, 1)
    expected = by_formula(x, w, b, g, geometry)
    for name, ours, theirs in zip(NAMES, by_kernel(instructions, x, w, b, g, geometry), expected, strict=True):
        assert same(ours, theirs), name


@every_set
def test_any_byte_may_come_as_a_code(instructions):
    """A hook on saved tensors can hand anything back: what is no code is taken as dead."""
    code = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    x, w, g = torch.ones(4, 1, 16, 16), torch.ones(1, 1, 1, 1), torch.ones(4, 1, 8, 8)
    shapes = (x.shape, w.shape)
    dx, dw, db = conv_pool.backward(jit.code(instructions), g, x, w, code, shapes, True, 0.5)
    assert db.item() == dw.item() == dx.sum().item() == 4 + 0.5
    assert {ZERO, DEAD} == {254, 255}


@every_set
@pytest.mark.parametrize("case", SHAPES[:3], ids=str)
@pytest.mark.parametrize("images", [8, 100])
def test_errors_are_at_most_twice_natives(instructions, case, images):
    """Against float64: the worst value, the median gradient; 2 units in the last place of the largest number are
    free."""
    kernels.choose(instructions)
    x, w, b = replace(case, images=images).tensors(torch.randn)
    w = w / w[0].numel() ** 0.5
    leaves = [t.requires_grad_() for t in (x, w, b)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    g = torch.randn_like(conv2d_relu_max_pool2d(*leaves))

    def native(x, w, b):
        return F.max_pool2d(F.relu(F.conv2d(x, w.flip(2, 3), b)), 2)

    truth = torch.autograd.grad(native(*exact), exact, g.double())
    # Where two values of a window nearly tie, float32 sends δ elsewhere, native in other windows than ours: the worst
    # place shows who had such a window, the median who rounds worse.
    ours = torch.autograd.grad(conv2d_relu_max_pool2d(*leaves), leaves, g)
    theirs = torch.autograd.grad(native(*leaves), leaves, g)
    assert type(conv2d_relu_max_pool2d(*leaves).grad_fn).__name__ == "ConvReLUPoolFunctionBackward"
    for name, mine, their, exactly in zip("xwb", ours, theirs, truth, strict=True):
        free = 2 * torch.finfo(torch.float32).eps * exactly.abs().max()
        median = [(found - exactly).abs().median() for found in (mine, their)]
        assert median[0] <= 2 * median[1] + free, name
    value, expected = conv2d_relu_max_pool2d(*leaves).double(), native(*exact)
    error, native_error = (value - expected).abs().max(), (native(*leaves).double() - expected).abs().max()
    assert error <= 2 * native_error + 2 * torch.finfo(torch.float32).eps * expected.abs().max()


@every_set
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_two_runs_have_the_same_bits(instructions, threads):
    kernels.choose(instructions)
    torch.set_num_threads(threads)
    leaves = [t.requires_grad_() for t in Case(70, 16, 32, (5, 5), (7, 7)).tensors(torch.randn)]
    first, second = (
        [out, *torch.autograd.grad(out.square().sum(), leaves)]
        for out in (conv2d_relu_max_pool2d(*leaves) for _ in range(2))
    )
    assert all(map(torch.equal, first, second))


# ------------------------------------------------------------------------------- what is taken, and what is not


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The kernels that ran, in order."""
    seen: list[str] = []
    run = team.run

    def noting(code, kernel, slots, arguments):
        seen.append(kernel)
        run(code, kernel, slots, arguments)

    monkeypatch.setattr(team, "run", noting)
    return seen


FORWARD, BACKWARD = ["arrange", "forward"], ["arrange", "backward", "collect"]
needs_kernels = pytest.mark.skipif(not sets(), reason="there are no kernels for this machine")


@needs_kernels
def test_the_kernels_are_used(calls):
    x, w, b = (t.requires_grad_() for t in Case(3, 2, 4, (3, 3), (4, 4)).tensors(torch.randn))
    out = conv2d_relu_max_pool2d(x, w, b)
    assert calls == FORWARD
    for upstream in (torch.randn_like(out), torch.ones(()).expand(out.shape), torch.randn(3, 4, 2, 2)):
        calls.clear()
        torch.autograd.grad(out, (x, w, b), upstream, retain_graph=True)
        assert calls == BACKWARD
    calls.clear()
    torch.autograd.grad(conv2d_relu_max_pool2d(x.detach(), w, None), w, torch.ones_like(out))
    assert calls == [*FORWARD, "backward", "collect"]


@needs_kernels
@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (True, True, True), (False, False, True)]
)
def test_each_gradient_is_the_same_without_the_others(needed):
    tensors = Case(3, 4, 8, (3, 2), (4, 5)).tensors(torch.randn)
    everything = [t.clone().requires_grad_() for t in tensors]
    all_of_them = torch.autograd.grad(conv2d_relu_max_pool2d(*everything).sum(), everything)
    leaves = [t.clone().requires_grad_(wanted) for t, wanted in zip(tensors, needed, strict=True)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(conv2d_relu_max_pool2d(*leaves).sum(), wanted))
    for expected, is_wanted in zip(all_of_them, needed, strict=True):
        if is_wanted:
            torch.testing.assert_close(next(found), expected)


@needs_kernels
@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t,
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        lambda t: torch.cat([t, t], 3)[..., ::2],
        lambda t: t[:1].expand_as(t),
        lambda t: torch.view_as_complex(torch.stack([t, t], -1)).conj().imag,  # its negative bit is set
    ],
)
def test_any_layout(layout, calls):
    x, w, b = Case(3, 2, 4, (3, 3), (4, 4)).tensors(whole)
    x, w = layout(x).requires_grad_(), layout(w).requires_grad_()
    out = conv2d_relu_max_pool2d(x, w, b)
    upstream = layout(whole(*out.shape))
    found = [out, *torch.autograd.grad(out, (x, w), upstream)]
    assert calls == FORWARD + BACKWARD
    kernels.choose("off")
    out = conv2d_relu_max_pool2d(x, w, b)
    assert all(map(torch.equal, found, [out, *torch.autograd.grad(out, (x, w), upstream)]))
    assert calls == FORWARD + BACKWARD


class Subclass(Tensor):
    pass


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"stride": (1, 2)}, {"padding": 1}, {"padding": "same"}, {"dtype": torch.float64},
     {"dtype": torch.bfloat16}, {"kind": Subclass}],
    ids=str,
)  # fmt: skip
def test_the_formula_takes_the_rest(options, calls):
    dtype, kind = options.pop("dtype", torch.float32), options.pop("kind", Tensor)
    x, w, b = (t.to(dtype).as_subclass(kind) for t in Case(3, 2, 4, (3, 3), (6, 6)).tensors(torch.randn))
    conv2d_relu_max_pool2d(x.requires_grad_(), w, b, **options).sum().backward()
    assert not {"forward", "backward"} & set(calls)
    assert x.grad is not None


@needs_kernels
def test_what_is_differentiated_again_is_computed_by_formulas(calls):
    x, w, b = (t.requires_grad_() for t in Case(3, 2, 4, (3, 3), (4, 4)).tensors(torch.randn))
    out = conv2d_relu_max_pool2d(x, w, b)
    calls.clear()
    first = torch.autograd.grad(out.square().sum(), (x, w), create_graph=True)
    assert not calls
    torch.autograd.grad(first[0].square().sum(), (x, w))
    calls.clear()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(conv2d_relu_max_pool2d(dual, w, b)).tangent is not None
    assert "backward" not in calls


@needs_kernels
def test_a_compiled_graph_has_them_as_operators(calls):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    x, w, b = (t.requires_grad_() for t in Case(3, 2, 4, (3, 3), (4, 4)).tensors(torch.randn))
    expected = conv2d_relu_max_pool2d(x, w, b)
    gradients = torch.autograd.grad(expected.square().sum(), (x, w, b))
    torch._dynamo.reset()
    calls.clear()
    out = torch.compile(conv2d_relu_max_pool2d, fullgraph=True, backend="aot_eager")(x, w, b)
    assert calls == FORWARD
    assert torch.equal(out, expected)
    assert all(map(torch.equal, torch.autograd.grad(out.square().sum(), (x, w, b)), gradients))
    assert calls == FORWARD + BACKWARD
    x, w, b = x.detach(), w.detach(), b.detach()
    pooled, code = torch.ops.manualgrad.conv_relu_pool(x, w, b, True)
    torch.library.opcheck(torch.ops.manualgrad.conv_relu_pool.default, (x, w, b, True))
    shapes = (list(x.shape), list(w.shape))
    arguments = (torch.randn_like(pooled), x, None, code, *shapes, True, 0.5)
    torch.library.opcheck(torch.ops.manualgrad.conv_relu_pool_backward.default, arguments)


# -------------------------------------------------------------------------------------------------- the door


@needs_kernels
def test_shapes_that_do_not_fit_are_refused_at_the_door():
    code = jit.code(sets()[0])
    x, w, b = Case(3, 2, 4, (3, 3), (4, 4)).tensors(torch.randn)
    pooled, codes = conv_pool.forward(code, x, w, b, True)
    shapes = (x.shape, w.shape)
    for bad in [(x[:, :1], w, b), (x, w, b[:3]), (x[0], w, b), (x[:, :, :3], w, b), (x, w.double(), b)]:
        with pytest.raises(ValueError, match=r"conv_pool: got|kernels: expected|conv_pool: no window"):
            conv_pool.forward(code, *bad, True)
    for g, a, c, d in [(pooled[:2], x, w, codes), (pooled, x[:2], w, codes), (pooled, x, w[:2], codes),
                       (pooled, x, w, codes[:, :, :1]), (pooled, x, w, codes.int())]:  # fmt: skip
        with pytest.raises(ValueError, match=r"conv_pool: got|kernels: expected|conv_pool: no window"):
            conv_pool.backward(code, g, a, c, d, shapes, True, 0.5)


@needs_kernels
def test_memory_that_was_taken_away_is_noticed():
    x, w, b = Case(3, 2, 4, (3, 3), (4, 4)).tensors(torch.randn)
    x.untyped_storage().resize_(16)
    with pytest.raises(ValueError, match="in 16 bytes"):
        conv_relu_pool.conv_relu_pool_forward(x, w, b, conv_relu_pool.geometry_of(x, w, b, 1, 0, True, 0.5))
