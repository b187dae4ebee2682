"""Promise: ``compare`` finds gradients that are wrong in some situations only, and accuses no right Function."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import compare
from compare.gradients.variants import DTYPES
from compare.load_cases import load_cases
from tests.compare.gallery.soundness import RIGHT, WRONG_BY_KIND
from tests.compare.gallery.soundness import demonstrations as demonstrate

pytestmark = pytest.mark.usefixtures("short_search")

REPORTED_CASES = Path(__file__).parent / "gallery" / "reported_cases"
TWO_DTYPES = (torch.float64, torch.float32)  # the situation shows the mistake in any dtype


def clamp_derivative_at_its_bound() -> float:
    x = torch.ones(1, requires_grad=True)
    x.clamp(-1, 1).backward()
    return x.grad.item()


DEMONSTRATIONS = {
    "incoming gradient": demonstrate.is_wrong_for_some_incoming_gradient,
    "flips": demonstrate.is_wrong_in_some_dtype,
    "frozen inputs": demonstrate.is_wrong_for_some_frozen_inputs,
    "state between calls": demonstrate.is_wrong_in_a_later_call,
    "complex numbers": demonstrate.is_wrong_in_a_plain_call,
}
WRONG = [
    pytest.param(kind, entry, id=f"{kind}: {entry.name}".replace(" ", "-"))
    for kind, entries in WRONG_BY_KIND.items()
    for entry in entries
]

# The derivative of clamp at its bounds is 1 in PyTorch 2.11 and 0 in later ones (measured: 2.14 and 2.15).
CLAMP_HAS_DERIVATIVE_1_AT_ITS_BOUNDS = clamp_derivative_at_its_bound() == 1
of_the_later_clamp = pytest.mark.skipif(
    CLAMP_HAS_DERIVATIVE_1_AT_ITS_BOUNDS, reason="the case follows later versions of PyTorch: clamp's derivative is 0"
)
OF_THE_LATER_CLAMP = {
    "right: binarised at its bounds",
    "right: clamp",
    "right: clamp at its bounds",
    "right: clamp from below at 0",
    "right: fake quantiser",
    "right: fake quantiser at its bounds",
    "right: hard sigmoid at its bounds",
    "right: quantiser",
    "right: quantiser of channels",
    "right: quantiser with a zero point",
    "right: ternary",
    "right: unsigned quantiser",
}
RIGHT_FUNCTIONS = [
    pytest.param(
        case, id=case.name.replace(" ", "-"), marks=[of_the_later_clamp] if case.name in OF_THE_LATER_CLAMP else []
    )
    for case in RIGHT
]


def about(items, quantity: str) -> list:
    """Findings or rows about the output or the gradient of ``quantity``; all of them if it is "".

    A finding about several quantities joins their names by commas and "and"."""
    starts = quantity, f"gradient of {quantity}"
    return [item for item in items if any(q.startswith(starts) for q in re.split(", | and ", item.quantity))]


# ------------------------------------------------------------------------------- wrong and right Functions


@pytest.mark.parametrize("kind, entry", WRONG)
def test_the_wrong_function_is_wrong(kind, entry):
    """Plain autograd shows it, without ``compare``; the kinds that need a situation are right without it."""
    assert DEMONSTRATIONS[kind](entry.make_case)
    if kind in ("frozen inputs", "state between calls"):
        assert not demonstrate.is_wrong_in_a_plain_call(entry.make_case)


@pytest.mark.parametrize("kind, entry", WRONG)
def test_a_gradient_that_is_wrong_in_some_situation_is_found(kind, entry):
    """A flip hides it in no dtype, unless kinks are allowed for, which are judged by the norm below float64."""
    case = entry.make_case()
    comparison = compare.compare(case, dtypes=DTYPES if kind == "flips" else TWO_DTYPES)
    assert about(comparison.findings, entry.quantity), str(comparison)
    if kind == "flips" and not case.kinks:
        wrong_dtypes = {row.variant.dtype for row in about(comparison.wrong(), entry.quantity)}
        assert wrong_dtypes >= set(TWO_DTYPES), str(comparison)


@pytest.mark.parametrize("case", RIGHT_FUNCTIONS)
def test_the_right_function_is_right(case):
    assert not demonstrate.is_wrong_for_some_incoming_gradient(lambda: case)
    assert not demonstrate.is_wrong_for_some_frozen_inputs(lambda: case)
    assert not demonstrate.is_wrong_in_a_later_call(lambda: case)


@pytest.mark.parametrize("case", RIGHT_FUNCTIONS)
def test_a_right_function_is_not_accused(case):
    comparison = compare.compare(case)
    assert comparison.ok, str(comparison)


def test_the_gallery_is_large():
    assert all(len(entries) >= 12 for entries in WRONG_BY_KIND.values())
    assert len(RIGHT) >= 100
    assert {case.name for case in RIGHT} >= OF_THE_LATER_CLAMP
    names = [entry.name for entries in WRONG_BY_KIND.values() for entry in entries] + [case.name for case in RIGHT]
    assert len(set(names)) == len(names)


# ----------------------------------------------------------------------------------------- reported cases


def reported(name: str) -> list[compare.Case]:
    return load_cases(str(REPORTED_CASES / f"{name}.py"))


def findings_of(case: compare.Case, **options) -> list[compare.Finding]:
    return list(compare.compare(case, **options).findings)


@of_the_later_clamp
def test_a_mistake_at_the_bounds_of_a_clamp_is_placed_there():
    clamp, quantiser = reported("clamp_at_its_bounds")
    (finding,) = findings_of(clamp)
    assert finding.quantity == "gradient of x"
    assert "only where x is -1 or 1" in finding.statement.replace("−", "-")
    comparison = compare.compare(quantiser)
    assert {row.variant.dtype for row in comparison.wrong()} == set(DTYPES)
    (finding,) = comparison.findings
    assert finding.quantity == "gradient of x" and finding.kind != "only in one dtype"


def test_a_missing_conj_is_found():
    (case,) = reported("complex_input")
    assert [finding.quantity for finding in findings_of(case)] == ["gradient of z"]


def test_a_factor_is_told_alike_in_each_dtype():
    (case,) = reported("factor_in_float32")
    told = [findings_of(case, dtypes=[dtype]) for dtype in TWO_DTYPES]
    float64, float32 = ([(f.kind, f.quantity, f.statement) for f in findings] for findings in told)
    assert float32 == float64
    assert all("1.01 times" in statement for _, _, statement in float32)
    assert len({quantity for _, quantity, _ in float32}) == len(float32) > 0


def test_a_gradient_that_is_missing_beside_a_frozen_input_is_found():
    (case,) = reported("frozen_input")
    findings = findings_of(case)
    assert {finding.quantity for finding in findings} == {"gradient of w"}
    assert any("only w and b" in finding.statement for finding in findings)


def test_a_gradient_that_is_the_input_is_wrong_in_every_variant():
    (case,) = reported("gradient_is_the_input")
    comparison = compare.compare(case)
    rows = [row for row in comparison.rows if row.quantity.startswith("gradient")]
    assert rows and all(row.status == "wrong" for row in rows)


def test_an_infinite_gradient_is_named():
    (case,) = reported("infinite_gradient")
    (finding,) = findings_of(case)
    assert (finding.kind, finding.quantity) == ("not finite", "gradient of x")


@of_the_later_clamp
def test_one_flip_does_not_set_the_tolerance():
    (case,) = reported("one_flip_sets_the_tolerance")
    first, *_ = findings_of(case)
    assert (first.kind, first.quantity) == ("constant factor", "gradient of x")
    assert "1.2 " in first.statement


def test_a_scalar_parameter_is_compared():
    fine, scale = reported("scalar_parameter")
    assert not findings_of(fine)
    assert [finding.quantity for finding in findings_of(scale)] == ["gradient of s"]


def test_a_wrong_shape_is_told_as_one():
    with_column, without_row = reported("shape_with_a_one")
    for case, got, expected in ((with_column, "(4, 1)", "(4,)"), (without_row, "(4,)", "(1, 4)")):
        (finding,) = findings_of(case)
        assert (finding.kind, finding.quantity) == ("wrong shape", "gradient of b")
        text = f"{finding.statement} {finding.evidence}"
        assert got in text and expected in text
        assert "sum" not in finding.statement


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_are_compared():
    for case in reported("sparse_gradient"):
        comparison = compare.compare(case)
        assert comparison.ok, str(comparison)
        assert "gradient of w" in {row.quantity for row in comparison.rows}


def test_a_fresh_affine_layer_has_no_ties():
    (case,) = reported("weight_of_ones")
    (finding,) = findings_of(case)
    assert finding.quantity == "gradient of bias"
    assert finding.kind not in ("only at ties", "only at zeros")


# ----------------------------------------------------------------------------- constants in a narrow dtype


class Rotated(torch.autograd.Function):
    """Pairs of features turned by the angle of their position, from 1,000 on, in float64 for every dtype of x."""

    dtype_of_positions: torch.dtype | None = torch.float64

    @staticmethod
    def rotate(x, dtype, sign=1):
        angle = sign * (1000 + torch.arange(x.shape[0], dtype=dtype)).double()[:, None] * 0.11
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    @staticmethod
    def forward(ctx, x):
        return Rotated.rotate(x, torch.float64)

    @classmethod
    def backward(cls, ctx, g):
        return Rotated.rotate(g, cls.dtype_of_positions or g.dtype, -1)


class RotatedByPositionsInItsDtype(Rotated):
    dtype_of_positions = None


@pytest.mark.parametrize("function, is_right", [(Rotated, True), (RotatedByPositionsInItsDtype, False)])
def test_a_constant_that_is_rounded_to_a_narrow_dtype_is_wrong(function, is_right):
    """Rounding errors of bfloat16 would turn the angle by radians; no careful function computes it so."""
    case = compare.Case(
        "rotated", function.apply, lambda x: Rotated.rotate(x, torch.float64), lambda: {"x": torch.randn(5, 6)}
    )
    findings = compare.compare(case).findings
    assert not findings if is_right else [finding.kind for finding in findings] == ["only in one dtype"]


class ExactSoftplus(torch.autograd.Function):
    """log(1 + exp(x)) for every x; PyTorch's softplus is x itself above 20."""

    @staticmethod
    def forward(ctx, x, too_much=0.0):
        ctx.save_for_backward(x)
        ctx.too_much = too_much
        return x.clamp(min=0) + torch.exp(-x.abs()).log1p()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * torch.sigmoid(x) * (1 + ctx.too_much), None


def test_a_more_exact_softplus_than_native_is_right():
    inputs = lambda: (15 + 10 * torch.rand(8, 4),)  # noqa: E731
    case = compare.Case("softplus", ExactSoftplus.apply, torch.nn.functional.softplus, inputs)
    assert not compare.compare(case).findings
    wrong = compare.Case("softplus", lambda x: ExactSoftplus.apply(x, 1e-7), torch.nn.functional.softplus, inputs)
    assert compare.compare(wrong, dtypes=(torch.float64,)).findings
