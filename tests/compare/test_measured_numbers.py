"""Promise: the numbers of a comparison, its tolerances and its conventions are right."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import Function

import compare
import manualgrad as mg
from compare.cases import HALF
from compare.gradients.measure import measure
from compare.gradients.tolerance import Sensitivity, ulp
from compare.gradients.variants import Variant
from compare.native_functions import relu as native_relu
from tests.compare.gallery.wrong_function import hand_written, randn

FLOAT32, NO_SENSITIVITY = Variant(torch.float32), Sensitivity()


def row_of(ours, oracle, native=None, variant=FLOAT32, sensitivity=NO_SENSITIVITY, conventions=None):
    ours, oracle = torch.tensor(ours), torch.tensor(oracle, dtype=torch.float64)
    native = oracle.float() if native is None else torch.tensor(native)
    return measure("case", "output", variant, ours, native, oracle, sensitivity, conventions or {})


def test_the_numbers_of_a_row():
    row, wrong = row_of([1.0, -2.0, 4.5], [1.0, -2.0, 4.0], native=[1.0, -2.25, 4.0])
    assert (row.error, row.native_error, row.ratio) == (0.5, 0.25, 2)
    assert row.relative == 0.125
    assert row.ulps == 0.5 / 2**-21  # float32 numbers from 4 to 8 are 2**-21 apart
    assert row.tolerance == 2 * 0.25 + 2 * 2**-21
    assert row.tolerance_used == pytest.approx(0.5 / row.tolerance)
    assert (row.index, row.ours_value, row.native_value, row.oracle_value) == ((2,), 4.5, 4.0, 4.0)
    assert row.cosine == pytest.approx((1 + 4 + 18) / math.sqrt(25.25 * 21))
    assert row.status == "close" and not wrong.any()


def test_status_of_a_row():
    assert row_of([1.0, 2.0], [1.0, 2.0])[0].status == "equal"
    assert row_of([1.0, 2.0 + 2**-24], [1.0, 2.0])[0].status == "equal"  # rounded to the same float32
    assert row_of([1.0, 2.0 + 2**-20], [1.0, 2.0])[0].status == "wrong"
    assert row_of([1.0, 2.0 + 2**-20], [1.0, 2.0], sensitivity=Sensitivity(2**-20))[0].status == "close"
    row, _ = row_of([1.0, 0.5], [1.0, 0.0], conventions={"half": torch.tensor([1.0, 0.5])})
    assert (row.status, row.explained, row.unexplained) == ("explained", {"half": 1}, 0)
    row, _ = row_of([1.5, 0.5], [1.0, 0.0], conventions={"half": torch.tensor([1.0, 0.5])})
    assert (row.status, row.explained, row.unexplained) == ("wrong", {"half": 1}, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_infinities_and_nan_must_be_the_same_in_both(value):
    assert row_of([1.0, value], [1.0, 2.0])[0].status == "wrong"
    assert row_of([1.0, 2.0], [1.0, value])[0].status == "wrong"
    assert row_of([1.0, value], [1.0, value])[0].status == "equal"
    # native overflows in this dtype; ours may overflow too, or be correct
    assert row_of([1.0, value], [1.0, 2.0], native=[1.0, value])[0].status == "equal"
    assert row_of([1.0, 2.0], [1.0, 2.0], native=[1.0, value])[0].status == "close"
    # where native's overflow made NaN, ours may be infinite; where it is infinite, nothing else
    assert row_of([1.0, value], [1.0, 2.0], native=[1.0, math.nan])[0].unexplained == 0
    assert row_of([1.0, value], [1.0, 2.0], native=[1.0, -value])[0].unexplained == (not math.isnan(value))


def at_kinks(mask, spread, norm_change=0.0):
    """Sensitivity of a quantity some of whose elements jump."""
    return Sensitivity(
        jumps=torch.tensor(mask), spread=torch.tensor(spread, dtype=torch.float64), norm_change=norm_change
    )


def test_a_jump_is_the_tolerance_of_its_own_element():
    jump = at_kinks([False, True, False], [0.0, 2.0, 0.0])
    row, _ = row_of([1.0, 2.0, 3.0], [1.0, 0.0, 3.0], sensitivity=jump)
    assert (row.status, row.at_kinks, row.by_norm) == ("close", 1, False)
    row, wrong = row_of([1.0, 2.1, 3.0], [1.0, 0.0, 3.0], sensitivity=jump)
    assert row.status == "wrong" and wrong.tolist() == [False, True, False]
    row, wrong = row_of([1.2, 2.0, 3.6], [1.0, 0.0, 3.0], sensitivity=jump)
    assert row.status == "wrong" and wrong.tolist() == [True, False, True]


def test_elements_at_kinks_are_accepted_together_by_their_norm_and_no_others():
    ours, oracle = [1.0, 9.0, 5.0], [1.0, 8.0, 5.0]
    row, _ = row_of(ours, oracle, sensitivity=at_kinks([False, True, True], [0.0, 0.5, 2.0], norm_change=2.0))
    assert (row.status, row.by_norm) == ("close", True)
    row, _ = row_of(ours, oracle, sensitivity=at_kinks([False, True, True], [0.0, 0.5, 0.5], norm_change=0.5))
    assert row.status == "wrong"
    row, _ = row_of(
        [2.0, *ours[1:]], oracle, sensitivity=at_kinks([False, True, True], [0.0, 0.5, 2.0], norm_change=9.0)
    )
    assert (row.status, row.index) == ("wrong", (0,))


def test_a_kink_that_native_crossed_is_no_tolerance_of_others():
    oracle = torch.linspace(1, 2, 40, dtype=torch.float64).tolist()
    native = [*oracle[:-1], 0.0]
    row, _ = row_of(native, oracle, native=native)
    assert (row.status, row.at_kinks) == ("equal", 1)
    row, wrong = row_of([1.2 * value for value in oracle], oracle, native=native)
    assert row.status == "wrong" and wrong[:-1].all()


def test_ulp():
    assert ulp(1.0, torch.float32) == 2**-23
    assert ulp(1.99, torch.bfloat16) == 2**-7
    assert ulp(0.0, torch.float16) == 2**-24


@pytest.mark.parametrize("factor", [1e-10, -1e-10, 1e-12])
def test_tolerances_are_tight_in_float64(factor):
    """Detect that all elements are off by 1e-12; gradcheck allows 1e-3."""

    class SlightlyOff(Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * (1 + factor)

    case = compare.Case("slightly off", SlightlyOff.apply, torch.clone, lambda: torch.randn(5, 4))
    assert not compare.compare(case, dtypes=[torch.float64]).ok


FORMULAS = {
    "square": (torch.square, lambda g, x: 2 * g * x, randn(x=(6, 8))),
    "relu": (torch.relu, lambda g, x: g * (x > 0), randn(x=(6, 8))),
    "matrix product": (torch.matmul, lambda g, x, w: (g @ w.mT, x.mT @ g), randn(x=(6, 8), w=(8, 4))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_factor_of_a_few_units_in_the_last_place_is_found(name, dtype):
    forward, backward, make_inputs = FORMULAS[name]
    factor = 1 + 8 * torch.finfo(dtype).eps

    def scaled(*tensors):
        gradients = backward(*tensors)
        return tuple(factor * g for g in gradients) if isinstance(gradients, tuple) else factor * gradients

    for formula, is_right in ((backward, True), (scaled, False)):
        case = compare.Case(name, hand_written(forward, formula), forward, make_inputs)
        assert compare.compare(case, dtypes=[dtype]).ok == is_right


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_wrong_element_of_ten_thousand_is_found(dtype):
    def backward(g, x):
        gradient = 2 * g * x
        gradient[37, 41] *= 1.1
        return gradient

    def make_inputs():
        x = torch.randn(100, 100)
        x[37, 41] = 3.0
        return {"x": x}

    case = compare.Case("square", hand_written(torch.square, backward), torch.square, make_inputs)
    (finding,) = compare.compare(case, dtypes=[dtype]).findings
    assert finding.quantity == "gradient of x"
    if dtype in (torch.float64, torch.float32):  # in half types the error is a few times the tolerance
        assert finding.kind == "few elements" and "[37, 41]" in finding.evidence


def test_conventions_explain_their_elements_and_no_others():
    x = lambda: torch.randn(6, 6)  # noqa: E731
    half = compare.Case("half", mg.relu, F.relu, x, conventions={HALF: native_relu})
    comparison = compare.compare(half, dtypes=[torch.float64])
    assert comparison.ok
    zeros = comparison.census["whole numbers"]["x: exact zeros" if "x" in half.inputs() else "input: exact zeros"]
    assert 0 < comparison.explained()[HALF] <= zeros
    quarter = compare.Case("1/4", lambda x: mg.relu(x, subgradient=0.25), F.relu, x, conventions={HALF: native_relu})
    (finding,) = compare.compare(quarter).findings
    assert finding.kind == "only at zeros"


def test_drawing_inputs_leaves_the_random_state_unchanged():
    case = compare.Case("x", torch.exp, torch.exp, lambda: torch.randn(3))
    before = torch.get_rng_state()
    first, repeated, other = case.inputs(0), case.inputs(0), case.inputs(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["input 0"], repeated["input 0"])
    assert not torch.equal(first["input 0"], other["input 0"])
