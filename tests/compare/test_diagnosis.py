"""Promise: the diagnosis raises for no shape and no number, and its statements say where and how often."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch.autograd import Function

import compare
from compare.gradients.diagnosis import locations
from compare.gradients.diagnosis.contributions import find_missing_contributions, find_overwritten_contributions
from compare.gradients.diagnosis.findings import KINDS, Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.missing_terms import find_missing_term
from compare.gradients.diagnosis.one_cause import tell_once
from compare.gradients.diagnosis.special_values import find_special_values
from compare.gradients.diagnosis.whole_tensor import find_whole_tensor_patterns
from compare.gradients.heat_maps import heat_map
from compare.gradients.run_variant import RunResult, run_variant
from compare.gradients.section import section
from compare.gradients.variants import Variant

SHAPES = [(), (0,), (1,), (3,), (2, 0, 3), (1, 1, 1, 1), (2, 3), (3, 3), (2, 3, 4)]
CONTENTS = {
    "random": torch.randn_like,
    "zero": torch.zeros_like,
    "equal": lambda t: torch.full_like(t, 2.5),
    "NaN": lambda t: torch.full_like(t, torch.nan),
    "infinite": lambda t: torch.full_like(t, torch.inf),
    "some infinite": lambda t: torch.where(torch.rand_like(t) < 0.5, torch.randn_like(t), -torch.inf),
    "some NaN": lambda t: torch.where(torch.rand_like(t) < 0.5, torch.randn_like(t), torch.nan),
    "huge": lambda t: torch.randn_like(t) * 1e308,
    "tiny": lambda t: torch.randn_like(t) * 5e-324,
    "transposed": lambda t: torch.randn_like(t).mT.contiguous().mT if t.dim() > 1 else torch.randn_like(t),
}

pytestmark = pytest.mark.usefixtures("short_search")


def product(x, w, mask, label):
    return x * w + x + 0 * (mask + label)


def random_mismatch(shape, ours, oracle, quantity):
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name in ("x", "w")}
    inputs |= {"mask": torch.rand(shape) < 0.5, "label": torch.randint(3, shape)}
    run = run_variant(product, inputs, Variant())
    ours, oracle = (CONTENTS[name](torch.empty(shape, dtype=torch.float64)) for name in (ours, oracle))
    run = RunResult({**run.values, quantity: ours})
    wrong = ~((ours - oracle).abs() <= 1e-9)
    return Mismatch(quantity, Variant(), ours, oracle, wrong, 1e-12, inputs, run)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_pattern_and_no_picture_raises(shape):
    """Every pattern, not only the first that fits, for each pair of contents: tensors of two shapes in one run."""
    torch.manual_seed(0)
    for ours, oracle in list(itertools.product(CONTENTS, CONTENTS))[::7]:
        for quantity in ("output", "gradient of x"):
            mismatch = random_mismatch(shape, ours, oracle, quantity)

            def rerun(gradients, inputs=None, mismatch=mismatch):
                return run_variant(product, inputs or mismatch.inputs, Variant(), 0, gradients).values

            patterns = [
                find_whole_tensor_patterns(mismatch, rerun, 0),
                find_missing_contributions(mismatch, rerun, 0),
                find_missing_term(mismatch, 0),
                find_overwritten_contributions(mismatch, rerun, 0),
                *(find(mismatch) for find in (
                    find_special_values, locations.find_borders, locations.find_nonfinite,
                    locations.find_zero, locations.find_few_elements,
                )),
            ]  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                findings = [finding for pattern in patterns for finding in pattern]
            assert {finding.kind for finding in findings} <= KINDS.keys()
            locations.worst_example(mismatch)


@pytest.mark.parametrize("shape", [(), (1, 1, 1, 1), (2, 3, 400, 500)], ids=str)
def test_heat_maps_of_infinite_huge_and_tiny_numbers(shape):
    pairs = [(torch.inf, 1.0), (1e308, -1e308), (5e-324, 5e-324), (torch.nan, torch.nan)]
    ours, oracle = pairs[len(shape) - 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heat_map(*(torch.full(shape, value, dtype=torch.float64) for value in (ours, oracle)))


# --------------------------------------------------------------------------------- statements


def statements(case, dtype=torch.float64):
    return [(f.kind, f.quantity, f.statement) for f in compare.compare(case, dtypes=[dtype]).findings]


def matrix():
    return torch.randn(3, 4)


def with_bias_gradient(gradient):
    return Formula.of(torch.add, lambda g, x, b: (g, gradient(g, x)))


class Formula(Function):
    """A Function of two arguments whose gradients are ``backward_of(g, x, y)``."""

    forward_of = backward_of = None

    @classmethod
    def of(cls, forward, backward):
        options = {"forward_of": staticmethod(forward), "backward_of": staticmethod(backward)}
        return type("Formula", (cls,), options).apply

    @classmethod
    def forward(cls, ctx, x, y):
        ctx.save_for_backward(x, y)
        ctx.formula = cls.backward_of
        return cls.forward_of(x, y)

    @staticmethod
    def backward(ctx, g):
        return ctx.formula(g, *ctx.saved_tensors)


@pytest.mark.parametrize(("shape", "wrong_shape"), [((4,), (4, 1)), ((1, 4), (4,))])
def test_a_wrong_shape_with_the_right_numbers_is_no_wrong_sum(shape, wrong_shape):
    ours = with_bias_gradient(lambda g, x: g.sum(0).reshape(wrong_shape))
    case = compare.Case("add", ours, torch.add, lambda: {"x": torch.randn(5, 4), "b": torch.randn(shape)})
    expected = ("wrong shape", "gradient of b", f"has shape {wrong_shape}; expected {shape}")
    assert statements(case) == [expected]


def test_where_everything_is_tied_a_tie_is_no_evidence():
    ours = with_bias_gradient(lambda g, x: x.sum(0))
    ((kind, quantity, _),) = statements(
        compare.Case("add", ours, torch.add, lambda: {"x": matrix(), "b": torch.zeros(4)})
    )
    assert (kind, quantity) == ("not linear in the incoming gradient", "gradient of b")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_factor_of_output_and_gradient_is_one_mistake(dtype):
    case = compare.Case("scaled", lambda x: 1.01 * x.sin(), torch.sin, matrix)
    expected = ("wrong output", "output", "equals 1.01 times the expected output")
    assert statements(case, dtype) == [expected]


def test_bounds_of_the_output_are_named():
    def native(x, y):
        return x.clamp(-0.5, 0.5) + 0 * y

    ours = Formula.of(native, lambda g, x, y: (g * ((x.abs() < 0.5) + 0.5 * (x > 0.5)), 0 * g))
    case = compare.Case("clamp", ours, native, lambda: {"x": torch.randn(6, 8), "y": torch.randn(6, 8)},
                        whole_numbers=False)  # fmt: skip
    ((kind, _, statement),) = statements(case)
    assert (kind, statement) == ("only at bounds", "is wrong only where the output is 0.5, its largest value")


def test_a_wrong_number_of_outputs_is_told():
    more = statements(compare.Case("more", lambda x: (x.sin(), x.detach()), torch.sin, matrix))
    fewer = statements(compare.Case("fewer", torch.sin, lambda x: (x.sin(), x.detach()), matrix))
    assert more == [("wrong output", "output 1", "native has 1 output, ours 2")]
    assert fewer == [("wrong output", "output 1", "native has 2 outputs, ours 1")]


def test_a_scalar_parameter_and_infinite_gradients_have_findings():
    ours = Formula.of(torch.mul, lambda g, x, s: (g * s / 0, (g * x.abs()).sum()))
    case = compare.Case("scale", ours, torch.mul, lambda: {"x": matrix(), "s": torch.tensor(1.7)})
    kinds = {quantity: kind for kind, quantity, _ in statements(case)}
    assert kinds == {"gradient of x": "not finite", "gradient of s": "another operand"}
    assert section([compare.compare(case)]).failures


def test_a_native_output_that_is_dense_but_not_row_major():
    def native(x, y):
        return (x * y).mT.contiguous().mT

    ours = Formula.of(native, lambda g, x, y: (g * y, g * x * torch.linspace(1, 2, 12).reshape(3, 4)))
    assert statements(compare.Case("product", ours, native, lambda: {"x": matrix(), "y": matrix()}))


def test_the_same_of_operations_with_other_source_texts_is_told_once():
    findings = [
        Finding(
            "missing term", f"gradient of {name}", f"the derivative of log in line {line}, `{name}.log()` is left out"
        )
        for line, name in ((3, "p"), (3, "q"), (4, "r"))
    ]
    joined, other = tell_once(findings)
    assert joined.quantity == "gradient of p and gradient of q"
    assert joined.statement == "the derivative of log in line 3 is left out"
    assert other == findings[2]
