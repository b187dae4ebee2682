"""Promise: finite differences determine a gradient to 1e-9, and their error is a bound in every element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function, gradcheck

from compare.gradients.finite_differences import FiniteDifference, finite_differences

FLOAT, COMPLEX = torch.float64, torch.complex128


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def incoming(n: int, output: Tensor) -> Tensor:
    return normal(*output.shape, seed=100 + n, dtype=output.dtype)


def differences(function: Callable[..., Any], *inputs: Tensor) -> list[FiniteDifference]:
    named = {str(n): tensor for n, tensor in enumerate(inputs)}
    names = [name for name, tensor in named.items() if tensor.is_floating_point() or tensor.is_complex()]
    return list(finite_differences(function, named, incoming, names).values())


def autograd(function: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    leaves = [t.clone().requires_grad_(t.is_floating_point() or t.is_complex()) for t in inputs]
    result = function(*leaves)
    outputs = [(n, o) for n, o in enumerate(result if isinstance(result, tuple) else (result,)) if o.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return list(torch.autograd.grad([o for _, o in outputs], wanted, [incoming(n, o) for n, o in outputs]))


def rows(x: Tensor) -> Tensor:
    return x.view(2, 6)


# Functions of 12 numbers, some with the scale of their input, of which they may make numbers near 1.
OF_ANY_SCALE: dict[str, Callable[[Tensor, float], Any]] = {
    "exp": lambda x, s: (x / s).exp(),
    "tanh": lambda x, s: (x / s).tanh(),
    "softmax": lambda x, s: rows(x / s).softmax(1),
    "log_softmax": lambda x, s: rows(x / s).log_softmax(1),
    "reciprocal": lambda x, s: 1 / x,
    "x**5": lambda x, s: x**5,
    "log": lambda x, s: x.abs().log(),
    "norm": lambda x, s: rows(x).norm(dim=1),
    "layer_norm": lambda x, s: F.layer_norm(rows(x), (6,), eps=1e-5 * s * s),
    "far from 0": lambda x, s: F.layer_norm(rows(x) + 1000 * s, (6,), eps=0),
    "cumprod": lambda x, s: rows(x / s).cumprod(1),
    "sum of squares": lambda x, s: x.square().sum(),
    "matmul": lambda x, s: (rows(x) @ rows(x).T, (x / s).sin()),
}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", OF_ANY_SCALE)
def test_the_error_is_a_bound_and_small_for_smooth_functions(name, scale):
    def function(x: Tensor) -> Any:
        return OF_ANY_SCALE[name](x, scale)

    x = scale * normal(12)
    (result,), (expected,) = differences(function, x), autograd(function, x)
    assert bool(((result.gradient - expected).abs() <= result.error).all())
    assert float((result.error / expected.abs()).median()) < (1e-8 if name == "far from 0" else 1e-9)
    assert float(result.error.max() / expected.abs().max()) < 1e-7


SMOOTH: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "conv2d": (F.conv2d, (normal(2, 1, 4, 3), normal(2, 1, 2, 2), normal(2))),
    "attention": (
        F.scaled_dot_product_attention,
        (normal(1, 4, 3), normal(1, 4, 3, seed=1), normal(1, 4, 3, seed=2)),
    ),
    "solve": (torch.linalg.solve, (normal(4, 4), normal(4, 2))),
    "indices and a scalar": (lambda n, x, s: (x[n] * s).cos(), (torch.tensor([0, 2, 2]), normal(4), normal(1)[0])),
    "several outputs, one of integers": (lambda x: (x.exp(), x.argsort(), x.prod()), (normal(5),)),
    "zeros in a product": (lambda x: x.prod(1), (torch.tensor([[0.0, 2, 3], [0, 0, 1]], dtype=FLOAT),)),
    "ReLU network": (lambda x, a, b: F.relu(F.relu(x @ a) @ b), (normal(4, 5), normal(5, 8), normal(8, 3))),
    "mixed magnitudes": (lambda x: x.exp().cumsum(0), (torch.linspace(-20, 20, 12, dtype=FLOAT),)),
    "complex exp": (torch.exp, (normal(6, dtype=COMPLEX),)),
    "complex abs": (torch.abs, (normal(6, dtype=COMPLEX),)),
    "not holomorphic": (lambda z: z.conj() * z * z + z.real, (normal(6, dtype=COMPLEX),)),
    "complex matmul": (torch.matmul, (normal(2, 3, dtype=COMPLEX), normal(3, 2, dtype=COMPLEX))),
    "complex output": (torch.fft.fft, (normal(7),)),
    "real and complex": (lambda x, z: x * z / z.abs(), (normal(4), normal(4, dtype=COMPLEX))),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_functions_of_other_shapes_and_dtypes(name):
    function, inputs = SMOOTH[name]
    for result, expected in zip(differences(function, *inputs), autograd(function, *inputs), strict=True):
        assert (result.gradient.shape, result.gradient.dtype) == (expected.shape, expected.dtype)
        assert bool(((result.gradient - expected).abs() <= result.error).all())
        assert float(result.error.max() / expected.abs().max()) < 1e-8


def test_an_error_of_1e_6_that_gradcheck_passes_is_seen():
    class Tanh(Function):
        @staticmethod
        def forward(ctx, x):
            y = x.tanh()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, g):
            (y,) = ctx.saved_tensors
            return g * (1 - y * y) * (1 + 1e-6)

    x = normal(30)
    assert gradcheck(Tanh.apply, x.clone().requires_grad_())
    (result,), (wrong,) = differences(Tanh.apply, x), autograd(Tanh.apply, x)
    assert bool(((result.gradient - wrong).abs() > 1e3 * result.error).all())


WHOLE = torch.tensor([-2.0, -1, 0, 1, 2, 1, 0, 1], dtype=FLOAT)
TIED = torch.tensor([-2.0, -1, 1, 1, 2, 1, 0, 3], dtype=FLOAT)
AT_KINKS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, list[bool]]] = {
    "relu": (F.relu, WHOLE, [x == 0 for x in WHOLE]),
    "abs": (torch.abs, WHOLE, [x == 0 for x in WHOLE]),
    "clamp": (lambda x: x.clamp(-1, 1), WHOLE, [abs(x) == 1 for x in WHOLE]),
    "tied maximum": (lambda x: x.view(2, 4).amax(1), TIED, [False, False, True, True] + [False] * 4),
    "tied windows": (lambda x: F.max_pool1d(x[None], 2)[0], TIED, [False, False, True, True] + [False] * 4),
    "sorted ties": (lambda x: x.sort()[0], WHOLE, [x in (0, 1) for x in WHOLE]),
    "norm at 0": (torch.norm, torch.zeros(3, dtype=FLOAT), [True] * 3),
    "square root at 0": (torch.sqrt, WHOLE.abs(), [x == 0 for x in WHOLE]),
    "rounded halves": (torch.round, WHOLE / 2, [abs(x) == 1 for x in WHOLE]),
    "a jump": (lambda x: x + (x > 0), WHOLE, [x == 0 for x in WHOLE]),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_KINKS)
def test_kinks_ties_and_jumps_are_not_determined_and_their_neighbours_are(name):
    function, x, kinks = AT_KINKS[name]
    (result,), (expected,) = differences(function, x), autograd(function, x)
    assert result.error.isinf().tolist() == [bool(kink) for kink in kinks]
    determined = ~result.error.isinf()
    assert bool(((result.gradient - expected).abs() <= result.error)[determined].all())
    assert float(result.error[determined].amax() if determined.any() else 0) < 1e-9


def test_a_near_kink_takes_smaller_steps():
    x = torch.tensor([1e-2, -1e-3, 1e-4, -1e-5, 1e-6], dtype=FLOAT)
    (result,), (expected,) = (
        differences(lambda x: F.leaky_relu(x, 0.5), x),
        autograd(lambda x: F.leaky_relu(x, 0.5), x),
    )
    determined = ~result.error.isinf()
    assert bool(determined[:3].all()), "a kink at less than 1e-4 may be too near"
    assert bool(((result.gradient - expected).abs() <= result.error)[determined].all())


@pytest.mark.parametrize("stairs", [1 / 256, 0.1])
def test_quantisers_are_constant_between_their_jumps(stairs):
    (result,) = differences(lambda x: (x / stairs).round() * stairs, normal(20))
    determined = ~result.error.isinf()
    assert int(determined.sum()) >= 18
    assert bool((result.gradient.abs() <= result.error)[determined].all())


def test_the_noise_of_the_function_is_part_of_the_error():
    x = normal(8)
    (result,) = differences(lambda x: (1e8 + x) - 1e8, x)
    assert bool(((result.gradient - incoming(0, x)).abs() <= result.error).all())
    assert 1e-9 < float(result.error.min()) < float(result.error.max()) < 1e-4
    (result,), (expected,) = differences(lambda x: x.float().tanh().double(), x), autograd(torch.tanh, x)
    determined = ~result.error.isinf()
    assert bool(((result.gradient - expected).abs() <= result.error)[determined].all())
    assert bool(determined.any()) and float(result.error.min()) > 1e-9


def test_a_function_finer_than_the_first_steps():
    x = normal(12)
    (result,), (expected,) = differences(lambda x: (1e6 * x).sin(), x), autograd(lambda x: (1e6 * x).sin(), x)
    determined = ~result.error.isinf()
    assert int(determined.sum()) >= 10
    assert bool(((result.gradient - expected).abs() <= result.error)[determined].all())


def test_steps_stay_inside_of_the_domain():
    def strict_log(x: Tensor) -> Tensor:
        if bool((x <= 0).any()):
            raise ValueError("x must be positive")
        return x.log()

    x = torch.tensor([1e-9, 1e-3, 1, 1e4], dtype=FLOAT)
    for function in (strict_log, torch.log):
        (result,) = differences(function, x)
        assert bool(((result.gradient - incoming(0, x) / x).abs() <= result.error).all())
        assert bool((result.error < 1e-9 / x).all())
    with pytest.raises(ValueError, match="x must be positive"):
        differences(strict_log, -x)
    (result,) = differences(torch.asin, torch.ones(2, dtype=FLOAT))
    assert result.error.isinf().all() and result.gradient.isnan().all()


def test_infinite_outputs_need_an_incoming_gradient_of_0():
    def masked(x: Tensor) -> Tensor:
        return x.masked_fill(torch.eye(3, dtype=torch.bool), -math.inf).log_softmax(1)

    x = normal(3, 3)
    assert differences(masked, x)[0].error.isinf().all()
    weights = torch.where(masked(x).isfinite(), incoming(0, x), 0.0)
    result = finite_differences(masked, {"x": x}, lambda n, output: weights, ["x"])["x"]
    (expected,) = torch.autograd.grad(masked(x.requires_grad_()), x, weights)
    assert bool(((result.gradient - expected).abs() <= result.error).all()) and float(result.error.max()) < 1e-9


def test_large_inputs_are_sampled_and_every_input_takes_part(monkeypatch):
    monkeypatch.setattr("compare.gradients.finite_differences.MAX_ELEMENTS", 100)
    inputs = {"x": normal(20, 10), "w": normal(1, 10), "b": normal(1)}
    result = finite_differences(F.linear, inputs, incoming, inputs)
    counts = {name: int(difference.checked.sum()) for name, difference in result.items()}
    assert sum(counts.values()) == pytest.approx(100, abs=3) and counts["b"] == 1
    assert bool((result["x"].gradient.isnan() == ~result["x"].checked).all())
    assert bool((result["x"].error.isinf() == ~result["x"].checked).all())


def test_functions_may_write_into_their_arguments_and_use_random_numbers():
    x, state = normal(20), torch.get_rng_state()
    original = x.clone()
    (result,) = differences(lambda x: F.dropout(x.mul_(2), 0.5), x)
    ratio = result.gradient / incoming(0, x)
    assert torch.equal(x, original) and torch.equal(state, torch.get_rng_state())
    assert {round(r, 9) for r in ratio.abs().tolist()} == {0.0, 4.0}


def test_wrong_arguments_are_named():
    x = normal(2)
    with pytest.raises(ValueError, match=r"expected names of floating-point or complex inputs, got \['n', 'y'\]"):
        finite_differences(lambda x, n: x, {"x": x, "n": torch.arange(2)}, incoming, ["x", "n", "y"])
    with pytest.raises(ValueError, match=r"incoming gradient of output 0: expected shape \(2,\), got \(3,\)"):
        finite_differences(torch.exp, {"x": x}, lambda n, output: normal(3), ["x"])
