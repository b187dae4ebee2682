"""Values and gradients equal native PyTorch's: bit for bit on whole numbers, to rounding on all others.

The options of every operation, and PyTorch's counterparts, are in ``compare/operations.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import manualgrad
from compare.operation import Option, Shapes
from compare.operations import OPTIONS
from tests.conftest import run_forward_backward

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch warns that it copies the input


def combinations(option: Option) -> list[Option]:
    """The option with each set of keyword arguments that its operation is combined with."""
    sets = [more for more in option.operation.combined_with if not more.keys() & option.arguments.keys()]
    return [
        replace(
            option,
            name=", ".join([option.name] * bool(option.name) + [f"{key}={value}" for key, value in more.items()]),
            arguments={**option.arguments, **more},
        )
        for more in sets or [{}]
    ]


WIDE = list({case.title: case for option in OPTIONS if option.wide for case in combinations(option)}.values())
EXACT = [option for option in WIDE if option.operation.exact]
SELECTIONS = [  # results are chosen or moved, and never added up
    option
    for option in EXACT
    if option.operation.name in ("max_pool2d", "flatten", "relu in place") or option.arguments.get("subgradient") == 0
]
LONG = [option for option in OPTIONS if option.long]


def parametrize(options: list[Option]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("option", options, ids=lambda option: option.title)


def run_both(
    option: Option, shapes: Shapes, draw: Callable[[tuple[int, ...]], Tensor], our_device: str | None = None
) -> list[tuple[str, Tensor, Tensor]]:
    """Name, ours and native of the output and of every gradient, for inputs and an output gradient by ``draw``.

    Both run where ``draw`` makes the numbers, ours on ``our_device`` if there is one."""
    inputs, gradients = [draw(shape) for shape in shapes], []

    def same_gradient(output: Tensor) -> Tensor:
        if not gradients:
            gradients.append(draw(output.shape))
        return gradients[0].to(output.device)

    native = run_forward_backward(option.reference, inputs, same_gradient)
    ours = run_forward_backward(option.ours, [x.to(our_device or x.device) for x in inputs], same_gradient)
    assert ours.keys() == native.keys()
    return [(name, ours[name], native[name]) for name in native]


def whole_numbers(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Whole numbers from -2 to 2, so that there are many ties and zeros; half of the zeros are -0."""
    x = torch.randint(-2, 3, shape, device=device).to(dtype)
    return torch.where((x == 0) & (torch.rand(shape, device=device) < 0.5), -0.0, x)


def bits(x: Tensor) -> Tensor:
    """The bits of ``x`` as integers, which differ for -0 and 0."""
    return x.contiguous().view(torch.int64 if x.element_size() == 8 else torch.int32) if x.is_floating_point() else x


# --------------------------------------------------------------------------------------------- equality


@parametrize(EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_whole_numbers_give_native_bits(option: Option, dtype: torch.dtype, device: str) -> None:
    for name, ours, native in run_both(option, option.wide, lambda shape: whole_numbers(shape, dtype, device)):
        assert ours.dtype == native.dtype
        assert torch.equal(ours, native), name


@parametrize(SELECTIONS)
def test_zeros_have_native_signs(option: Option, device: str) -> None:
    """For selections only: in a sum of products, a zero's sign depends on the order of summation.

    Native's on the CPU: on CUDA PyTorch's have other signs in places."""
    draw = lambda shape: whole_numbers(shape, torch.float32, "cpu")  # noqa: E731
    for name, ours, native in run_both(option, option.wide, draw, device):
        assert torch.equal(bits(ours.cpu()), bits(native)), name


@parametrize(WIDE)
def test_float64_equals_native(option: Option, device: str) -> None:
    """To 1e-12 of the largest value: a sum has at most some 600 terms, each rounded to 1.1e-16 of it."""
    draw = lambda shape: torch.randn(shape, dtype=torch.float64, device=device)  # noqa: E731
    for name, ours, native in run_both(option, option.wide, draw):
        assert ours.dtype == native.dtype
        assert ours.shape == native.shape
        scale = native.abs().max().item()
        torch.testing.assert_close(ours, native, rtol=0, atol=1e-12 * scale, msg=lambda text, name=name: name + text)


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("function", ["max_pool2d", "max_pool2d padded", "relu", "flatten"])
def test_integers_give_native_integers(function: str, dtype: torch.dtype, device: str) -> None:
    """Native's on the CPU: on CUDA PyTorch has no pooling of integers."""
    info = torch.iinfo(dtype)
    x = torch.randint(max(info.min, -9), 9, (2, 3, 5, 6)).to(dtype)
    x[0, 0, :3, :3] = info.min  # the value that padding has
    ours, native = {
        "max_pool2d": (lambda x: manualgrad.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2)),
        "max_pool2d padded": (
            lambda x: torch.stack([t.long() for t in manualgrad.max_pool2d(x, 3, 2, 1, return_indices=True)]),
            lambda x: torch.stack([t.long() for t in F.max_pool2d(x, 3, 2, 1, return_indices=True)]),
        ),
        "relu": (manualgrad.relu, F.relu),
        "flatten": (manualgrad.flatten, lambda x: x.permute(0, 2, 3, 1).flatten(1)),
    }[function]
    result, expected = ours(x.to(device)).cpu(), native(x)
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)


# --------------------------------------------------------------------------------------------- precision


def ulp(exact: Tensor, dtype: torch.dtype) -> float:
    """The distance between neighbouring numbers of ``dtype`` near the largest absolute value of ``exact``.

    Rounding the exact result costs up to half of it, so no finer bound on the largest error can hold. The test allows
    two of them: ours and native may each round differently from the other, once at the end and once before.
    """
    info, largest = torch.finfo(dtype), exact.abs().max().item()
    if largest < info.smallest_normal:
        return info.smallest_normal * info.eps
    return info.eps * 2.0 ** math.floor(math.log2(largest))


class Errors(NamedTuple):
    """Largest errors of one output or gradient, and the ulp of its exact values."""

    name: str
    ours: float
    native: float
    ulp: float


def largest_errors(option: Option, dtype: torch.dtype, device: str, seed: int) -> list[Errors]:
    """Errors of the output and of every gradient against float64 on the same rounded inputs."""
    torch.manual_seed(seed)
    draws = []

    def draw(shape: tuple[int, ...]) -> Tensor:
        x = torch.randn(shape, device=device)
        if option.operation.target == "probabilities" and len(draws) == 1:
            x = x.softmax(1)  # losses of both signs would cancel in their sum, and its relative error be arbitrary
        draws.append(x.to(dtype))
        return draws[-1]

    try:
        results = run_both(option, option.long, draw)
    except RuntimeError as error:
        if "not implemented for" in str(error):
            pytest.skip(f"native PyTorch has no such kernel: {error}")
        raise
    *inputs, gradient = (x.double() for x in draws)
    exact_results = run_forward_backward(option.reference, inputs, lambda _: gradient)
    errors = []
    for name, ours, native in results:
        exact = exact_results[name].double()
        assert exact.isfinite().all()
        ours_error, native_error = ((x.double() - exact).abs().max().item() for x in (ours, native))
        errors.append(Errors(name, ours_error, native_error, ulp(exact, dtype)))
    return errors


@parametrize(LONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_natives_and_2_ulp(option: Option, dtype: torch.dtype, device: str) -> None:
    """In each of three draws, not on the average."""
    for seed in range(3):
        for error in largest_errors(option, dtype, device, seed):
            assert error.ours <= 2 * error.native + 2 * error.ulp, error


def test_float16_mean_of_a_large_batch_does_not_overflow(device: str) -> None:
    """The sum of 300,000 losses exceeds float16's 65,504, so the native mean overflows; the exact one is near 2.8."""
    z = torch.randn(300_000, 10, device=device).half()
    y = torch.randint(10, (300_000,), device=device)
    exact_results = run_forward_backward(lambda z: F.cross_entropy(z, y), [z.double()], torch.ones_like)
    ours = run_forward_backward(lambda z: manualgrad.softmax_cross_entropy(z, y), [z], torch.ones_like)
    for name, exact in exact_results.items():  # computed in float32 and rounded once, so within one ulp
        error = (ours[name].double() - exact).abs().max().item()
        assert error <= ulp(exact, torch.float16), name
    if device == "cpu":
        assert not F.cross_entropy(z, y).isfinite()
