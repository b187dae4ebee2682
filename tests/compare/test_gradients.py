"""Promise: ``compare`` finds wrong gradients of every kind and names the mistake, and reports no correct one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

import compare
import manualgrad as mg
from compare.cases import HALF, all_cases
from compare.gradients.measure import measure
from compare.gradients.tolerance import Sensitivity, ulp
from compare.gradients.variants import Variant
from compare.native_functions import relu as native_relu
from tests.compare.gallery import WRONG
from tests.compare.gallery.planted_faults import gradcheck_accepts, planted_faults
from tests.compare.gallery.right import FAMILIES, right_cases
from tests.compare.gallery.wrong_function import hand_written, randn


@pytest.mark.filterwarnings("ignore:Use of (index_put_|masked_fill_) on expanded tensors")  # one of the mistakes
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name.replace(" ", "-"))
def test_a_wrong_function_is_found_and_its_mistake_named(wrong):
    comparison = compare.compare(wrong.case)
    assert not comparison.ok
    assert not wrong.false_findings(comparison.findings)
    assert wrong.is_named_by(comparison.findings), str(comparison)
    assert {finding.kind for finding in comparison.findings} <= compare.KINDS.keys()


def test_the_gallery_is_large_and_has_every_kind():
    assert len(WRONG) >= 25
    assert set.union(*(set(wrong.kinds) for wrong in WRONG)) | {"wrong output", "unknown"} == compare.KINDS.keys()


def test_each_family_of_correct_functions_is_drawn_twice_by_default():
    assert 2 * len(FAMILIES) <= 100


@pytest.mark.parametrize("tens", [*range(10), *(pytest.param(n, marks=pytest.mark.slow) for n in range(10, 20))])
def test_no_finding_about_a_correct_function(tens):
    """200 random cases: native against itself, other formulas, hand-written Functions, and all our operations.

    A second hundred draws other sizes and options of the same families, and is slow.
    """
    for case in right_cases(200, seed=0)[10 * tens : 10 * tens + 10]:
        comparison = compare.compare(case)
        assert comparison.ok, str(comparison)


@pytest.mark.parametrize("fault", planted_faults(), ids=lambda fault: fault.case.name.replace(" ", "-"))
def test_one_element_off_by_a_ten_thousandth_is_found_although_gradcheck_accepts_it(fault):
    assert gradcheck_accepts(fault.case, fault.quantity)
    comparison = compare.compare(fault.case, dtypes=[torch.float64])
    about_the_gradient = [f for f in comparison.findings if f.quantity == f"gradient of {fault.quantity}"]
    assert len(comparison.findings) == len(about_the_gradient) == 1, str(comparison)
    wrong_indices = {row.index for row in comparison.wrong()}
    assert fault.index in wrong_indices or math.prod(fault.case.inputs()[fault.quantity].shape) == 1


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name.replace(" ", "-"))
def test_every_operation_of_ours_matches(case, device):
    compare.assert_matches(case, device=device)


# ---------------------------------------------------------------------- Functions from the documentation of PyTorch


class Exp(Function):
    @staticmethod
    def forward(ctx, x):
        result = x.exp()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, g):
        (result,) = ctx.saved_tensors
        return g * result


class Linear(Function):
    @staticmethod
    def forward(ctx, input, weight, bias):
        ctx.save_for_backward(input, weight)
        return input.mm(weight.t()) + bias

    @staticmethod
    def backward(ctx, g):
        input, weight = ctx.saved_tensors
        return g.mm(weight), g.t().mm(input), g.sum(0)


class TimesConstant(Function):
    @staticmethod
    def forward(x, constant):
        return x * constant

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.constant = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return g * ctx.constant, None


class SortInNumPy(Function):
    @staticmethod
    def forward(x):
        order = np.argsort(x.detach().numpy(), axis=0, kind="stable")
        back = np.argsort(order, axis=0)
        return x.gather(0, torch.from_numpy(order)), torch.from_numpy(order), torch.from_numpy(back)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx, g, _, __):
        return g.gather(0, ctx.saved_tensors[1])


def test_the_examples_of_pytorchs_page_on_extending_autograd_match():
    cases = [
        compare.Case("exp", Exp.apply, torch.exp, lambda: (torch.randn(4, 5),)),
        compare.Case(
            "linear", Linear.apply, F.linear, lambda: (torch.randn(5, 3), torch.randn(4, 3), torch.randn(4))
        ),
        compare.Case("times 3", lambda x: TimesConstant.apply(x, 3.0), lambda x: x * 3.0, lambda: torch.randn(4, 5)),
    ]
    for case in cases:
        compare.assert_matches(case)
    numpy = compare.Case(
        "sort", lambda x: SortInNumPy.apply(x)[0], lambda x: x.sort(0).values, lambda: torch.randn(6, 3)
    )
    compare.assert_matches(numpy, dtypes=[torch.float64, torch.float32, torch.float16])  # NumPy has no bfloat16


# --------------------------------------------------------------------------------- measured numbers


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


# --------------------------------------------------------------------------------- modules and invalid cases


def test_modules_are_compared_parameter_by_parameter():
    ours, native = nn.Sequential(mg.nn.Dense(4, 3)), nn.Sequential(nn.Linear(4, 3))
    case = compare.Case.from_modules("dense", ours, native, lambda: torch.randn(5, 4))
    comparison = compare.compare(case)
    assert comparison.ok, str(comparison)
    quantities = {row.quantity for row in comparison.rows}
    assert quantities == {"output", "gradient of input", "gradient of 0.weight", "gradient of 0.bias"}
    with pytest.raises(ValueError, match="weight"):
        compare.Case.from_modules("other", nn.Linear(5, 3), native, lambda: torch.randn(5, 4))


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(), nn.Linear(36, 5),
    )  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_a_network_of_torch_matches_its_conversion(training):
    """Each run starts with the same buffers and random state, and the models are left unchanged."""
    native = cnn().train(training)
    ours = mg.from_torch(native)
    before = [{name: value.clone() for name, value in m.state_dict().items()} for m in (ours, native)]
    random_state = torch.get_rng_state()
    case = compare.Case.from_modules("cnn", ours, native, lambda: torch.randn(4, 2, 6, 6), kinks=True)
    compare.assert_matches(case)
    for module, values in zip((ours, native), before, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_wrong_conversion_is_found():
    ours, native = mg.from_torch(cnn()), cnn()
    ours[3].kernel_size = (1, 2)
    ours[3].stride = (2, 2)
    case = compare.Case.from_modules("cnn", ours, native, lambda: torch.randn(4, 2, 6, 6), kinks=True)
    assert "output" in {finding.quantity for finding in compare.compare(case).findings}


def test_a_wrong_module_is_found():
    class Halved(nn.Linear):
        def forward(self, input):
            return F.linear(input, (self.weight + self.weight.detach()) / 2, self.bias)

    case = compare.Case.from_modules("half", Halved(4, 3), nn.Linear(4, 3), lambda: torch.randn(5, 4))
    (finding,) = compare.compare(case).findings
    assert (finding.kind, finding.quantity) == ("constant factor", "gradient of weight")


def test_a_wrong_gradient_is_found_in_a_loop_over_different_shapes():
    """One line that is called with other shapes each time, as ``nn.Sequential`` calls its modules."""

    def native(x, v, w):
        for matrix in (v, w):
            x = x @ matrix
        return x

    case = compare.Case(
        "product", hand_written(native, lambda g, x, v, w: (x.cos(), x.mT @ g @ w.mT, (x @ v).mT @ g)), native,
        randn(x=(2, 2), v=(2, 2), w=(2, 3)), whole_numbers=False,
    )  # fmt: skip
    assert {finding.quantity for finding in compare.compare(case).findings} == {"gradient of x"}


def test_elements_at_kinks_are_told_once():
    near_zero = torch.tensor([0.5, -1.0, 2.0])

    def native(x, scale):
        return ((x - near_zero.to(x)).relu() * scale).sum()

    inputs = {"x": near_zero + torch.tensor([3e-8, 1.0, -1.0]), "scale": torch.ones(())}
    comparison = compare.compare(compare.Case("hinge", native, native, lambda: inputs, kinks=True))
    (sentence,) = comparison.unchecked()
    assert sentence.startswith("Elements at a kink, where rounding decides")
    assert "1 of 3 of gradient of x in float32, 1 of 1 of gradient of scale in float32" in sentence


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (compare.Case("a", torch.exp, lambda x: x @ x, lambda: torch.randn(3, 2)), "native raises in float64"),
        (
            compare.Case("a", torch.exp, torch.exp, lambda: torch.arange(3)),
            "floating-point tensor from make_inputs, got only int64",
        ),
        (
            compare.Case("a", torch.exp, lambda x: x > 0, lambda: torch.randn(3)),
            "floating-point tensor from native, got none",
        ),
    ],
)
def test_a_case_that_cannot_be_compared_says_why(case, message):
    with pytest.raises(compare.CaseError, match=message):
        compare.compare(case)


def test_inputs_that_are_no_tensors_raise():
    with pytest.raises(compare.CaseError, match="expected tensors from make_inputs, got input 0 of type list"):
        compare.compare(compare.Case("a", torch.exp, torch.exp, lambda: ([1.0],)))


def test_assert_matches_fails_with_the_findings():
    case = compare.Case("double", lambda x: 2 * x.detach() - x, lambda x: x + 0, lambda: torch.randn(3, 4))
    with pytest.raises(AssertionError, match="equals -1 times the expected gradient"):
        compare.assert_matches(case)
