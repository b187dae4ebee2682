"""Promise: the capability matrix of ``compare`` shows what works, and gives the reason for what fails."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compare.capabilities import (
    CAPABILITIES,
    FAILS,
    FLOAT32,
    NOT_APPLICABLE,
    QUICK,
    WORKS,
    CapabilityResult,
    Outcome,
    run_capabilities,
)
from compare.capabilities.outcome import NO_NATIVE
from compare.capabilities.section import section
from compare.case import Case
from compare.cases import operation_cases
from manualgrad import kernels
from tests.compare.defective_functions import DEFECTIVE_FUNCTIONS, DefectiveFunction, inputs
from tests.compare.defective_parts import PicklableProduct, Product, multiply, product

COPIES = "deepcopy and pickle"
STREAM = "side stream"  # of CUDA alone


def verdicts(results: list[CapabilityResult], side: str = "ours") -> dict[str, str]:
    return {row.capability: f"{getattr(row, side).verdict} {getattr(row, side).reason}".strip() for row in results}


def test_every_capability_has_a_defective_function():
    assert {defective.capability for defective in DEFECTIVE_FUNCTIONS} == set(CAPABILITIES) - {STREAM}


@pytest.mark.parametrize(
    "defective", DEFECTIVE_FUNCTIONS, ids=lambda function: f"{function.capability}: {function.name}"
)
def test_a_lacking_capability_is_found_with_its_reason(defective: DefectiveFunction):
    (row,) = run_capabilities(defective.case(), only=[defective.capability])
    assert row.native == Outcome(WORKS, counts=row.native.counts)
    assert row.ours.verdict == FAILS
    assert re.search(defective.reason, row.ours.reason), row.ours.reason
    assert row.is_lacking


def test_a_function_with_every_capability_passes_every_check():
    by_capability = verdicts(run_capabilities(Case("product", lambda x, w: product(x, w), multiply, inputs)))
    assert by_capability.pop(COPIES).startswith(NOT_APPLICABLE)
    assert by_capability.pop(STREAM) == "not applicable streams are CUDA's"
    assert by_capability == dict.fromkeys([name for name in CAPABILITIES if name not in (COPIES, STREAM)], WORKS)


def image_inputs() -> tuple[Tensor, ...]:
    return torch.randn(2, 2, 5, 4), torch.randn(3, 2, 2, 2), torch.randn(3)


NATIVE = {
    "linear": (F.linear, lambda: (torch.randn(3, 4), torch.randn(2, 4), torch.randn(2))),
    "conv2d, relu, max_pool2d": (lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2), image_inputs),
    "cross_entropy": (F.cross_entropy, lambda: (torch.randn(3, 5), torch.randint(5, (3,)))),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (4,), w, b), lambda: (torch.randn(3, 4), *torch.randn(2, 4))),
    "three outputs, one of them indices": (
        lambda x, y: (*torch.topk(x * y, 2), y.exp()),
        lambda: {"x": torch.randn(3, 4), "y": torch.randn(3, 4)},
    ),
    "identity": (lambda x: x, lambda: (torch.randn(3),)),
    "scalar output": (lambda x, y: x @ y, lambda: (torch.randn(4), torch.randn(4))),
    "complex intermediate result": (lambda x: torch.fft.fft(x).abs().square(), lambda: (torch.randn(3, 4),)),
}


@pytest.mark.parametrize("name", NATIVE)
def test_native_compared_with_itself_lacks_nothing(name):
    function, make_inputs = NATIVE[name]
    rows = run_capabilities(Case(name, function, function, make_inputs), only=QUICK)
    assert [row for row in rows if row.is_lacking] == []
    assert [(row.ours.verdict, row.ours.counts) for row in rows] == [
        (row.native.verdict, row.native.counts) for row in rows
    ]
    failed = {row.capability for row in rows if row.native.verdict == FAILS}
    assert failed <= {"saves only what is needed"}, verdicts(rows, "native")  # convolution always saves both operands


def test_without_a_native_function_ours_alone_is_shown_and_nothing_is_lacking():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    case = Case("doubled", Doubled.apply, None, lambda: torch.randn(3, 4))
    results = run_capabilities(case, only=("empty batch", "forward mode", "deterministic"))
    assert [row.native for row in results] == [NO_NATIVE] * 3
    assert [row.ours.verdict for row in results] == [FAILS, WORKS, WORKS]
    assert not any(row.is_lacking for row in results)
    text = str(section(results))
    assert "1 case has no native function: ours works in 2 cells there, and no cell is a failure." in text
    assert "NoneType" not in text


def test_modules_with_parameters():
    pair = [nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)) for _ in range(2)]
    case = Case.from_modules("two layers", *pair, lambda: {"input": torch.randn(5, 4)})
    by_capability = verdicts(run_capabilities(case, only=[*QUICK, "vmap"]))
    assert by_capability.pop("threads").startswith("not applicable functional_call")
    assert by_capability.pop(COPIES).startswith(NOT_APPLICABLE)
    assert by_capability.pop(STREAM).startswith(NOT_APPLICABLE)
    assert set(by_capability.values()) == {WORKS}
    module_case = Case("module", PicklableProduct(), multiply, inputs)
    assert verdicts(run_capabilities(module_case, only=[COPIES])) == {COPIES: WORKS}


class WrongInFloat32(Product):
    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        if g.dtype is torch.float32 and not g.is_contiguous():
            g = 1.001 * g
        return product(g, w), product(g, x)


def test_a_fault_in_float32_alone_is_found_and_named():
    case = Case("float32", WrongInFloat32.apply, multiply, inputs)
    (row,) = run_capabilities(case, only=["non-contiguous gradients"])
    assert row.is_lacking and re.match("float32: gradient .* is off by", row.ours.reason)
    assert set(FLOAT32) < set(CAPABILITIES)
    assert verdicts(run_capabilities(case, only=["func.grad", "batched vjp"])) == {
        "func.grad": WORKS,
        "batched vjp": WORKS,
    }


@pytest.mark.skipif(not kernels.available().instructions, reason=str(kernels.available()))
def test_float32_goes_through_a_kernel():
    (case,) = [case for case in operation_cases() if case.name.startswith("conv2d_relu_max_pool2d")]
    explanation = kernels.explain(run_capabilities, case, only=["deterministic"])
    (row,) = explanation.result
    assert row.ours.verdict == WORKS
    by_kernel = [record for record in explanation.records if record.computed_by == "cpu kernel"]
    assert {record.formula for record in by_kernel} == {"conv_relu_pool_forward", "conv_relu_pool_backward"}
    assert all(record.arguments.startswith("float32") for record in by_kernel)


def test_native_is_judged_by_central_differences():
    class WrongDoubleBackward(Product):
        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return product(g, w.detach()), product(g, x)

    case = Case("both wrong", WrongDoubleBackward.apply, WrongDoubleBackward.apply, inputs)
    (row,) = run_capabilities(case, only=["double backward"])
    assert "by central differences" in row.native.reason
    assert "by central differences" in row.ours.reason, "without a native result, ours is judged by differences too"
    assert not row.is_lacking
    right = Case("native wrong", multiply, WrongDoubleBackward.apply, inputs)
    assert verdicts(run_capabilities(right, only=["double backward"])) == {"double backward": WORKS}


def test_at_a_kink_no_function_lacks_a_capability():
    case = Case("at 0", lambda x: torch.maximum(x, torch.zeros_like(x)), F.relu, lambda: (torch.zeros(3),))
    rows = run_capabilities(case, only=["double backward", "gradcheck, fast", "gradcheck, slow"])
    assert not any(row.is_lacking for row in rows)
    assert {row.native.verdict for row in rows} == {FAILS}, "finite differences are wrong at the kink"


def test_an_exception_becomes_an_outcome_and_a_keyboard_interrupt_does_not():
    def broken(x, w):
        raise RuntimeError("first line\nsecond line")

    rows = run_capabilities(Case("broken", broken, multiply, inputs), only=QUICK)
    reasons = {row.ours.reason for row in rows if row.capability not in (COPIES, STREAM)}
    assert all("RuntimeError: first line" in reason and "second" not in reason for reason in reasons)
    assert {row.native.verdict for row in rows} == {WORKS, NOT_APPLICABLE}

    def interrupted(x, w):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_capabilities(Case("interrupted", interrupted, multiply, inputs), only=["hooks"])


def test_a_function_without_floating_point_inputs():
    rows = run_capabilities(Case("integers", lambda n: n + 1, lambda n: n + 1, lambda: (torch.arange(3),)))
    assert all(row.ours == Outcome(NOT_APPLICABLE, "no input is a floating-point number") for row in rows)


def test_memory_allocated_before_the_run_is_no_leak():
    constant = torch.randn(3, 4, dtype=torch.float64)
    case = Case("constant", *[lambda x, w: x * w * constant.view(4, 3).view(3, 4)] * 2, inputs)
    assert verdicts(run_capabilities(case, only=["no memory leaks", "checkpoint"])) == {
        "no memory leaks": WORKS,
        "checkpoint": WORKS,
    }


def test_an_unknown_capability_is_named():
    with pytest.raises(ValueError, match="unknown capability: flying; expected names from double backward"):
        run_capabilities(Case("product", multiply, multiply, inputs), only=["flying"])


def test_random_state_grad_mode_and_warning_filters_are_restored():
    state, grad = torch.get_rng_state(), torch.is_grad_enabled()
    filters = list(warnings.filters)
    dropout = Case("dropout", lambda x: F.dropout(x), lambda x: F.dropout(x), lambda: (torch.randn(50),))
    (row,) = run_capabilities(dropout, only=["deterministic"])
    assert "other bits" in row.native.reason
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled() is grad
    assert warnings.filters == filters


def test_a_warning_that_the_function_gives_is_shown():
    def warns(x, w):
        warnings.warn("mind the gap", stacklevel=1)
        return x * w

    with pytest.warns(UserWarning, match="mind the gap"):
        run_capabilities(Case("warns", warns, multiply, inputs), only=["hooks"])
