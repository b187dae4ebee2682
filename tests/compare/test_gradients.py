"""Promise: ``compare`` finds wrong gradients of every kind and names the mistake, and reports no correct one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import Function

import compare
from compare.cases import all_cases
from tests.compare.gallery import WRONG
from tests.compare.gallery.planted_faults import gradcheck_accepts, planted_faults
from tests.compare.gallery.right import FAMILIES, right_cases


@pytest.mark.usefixtures("short_search")
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
    # The last two are tested in source_changes.
    other = {"wrong output", "unknown", "change of the source", "wrong intermediate value"}
    assert set.union(*(set(wrong.kinds) for wrong in WRONG)) | other == compare.KINDS.keys()


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
