"""Promise: the section of capabilities shows every cell, and which of them ours lacks."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compare.capabilities import (
    CAPABILITIES,
    FAILS,
    NOT_APPLICABLE,
    QUICK,
    WORKS,
    CapabilityResult,
    Outcome,
    compare_capabilities,
    describe,
    run_capabilities,
)
from compare.capabilities.section import section
from compare.case import Case
from tests.compare.defective_functions import inputs
from tests.compare.defective_parts import multiply

COPIES = "deepcopy and pickle"


class Bar:
    def __init__(self):
        self.total, self.count, self.descriptions = None, 0, []

    def update(self, n=1):
        self.count += n

    def set_description_str(self, desc):
        self.descriptions.append(desc)


def test_progress_is_reported():
    bar = Bar()
    case = Case("product", multiply, multiply, inputs)
    rows = compare_capabilities([case, case], only=["hooks", "func.grad"], progress=bar)
    assert (bar.total, bar.count, len(rows)) == (4, 4, 4)
    assert bar.descriptions[0] == "product: func.grad"


def test_the_work_of_each_gradient_is_counted():
    def linear_inputs() -> dict[str, Tensor]:
        return {"x": torch.randn(8, 4), "w": torch.randn(2, 4), "b": torch.randn(2)}

    case = Case("linear", F.linear, F.linear, linear_inputs)
    (row,) = run_capabilities(case, only=["computes only what is needed"])
    # g w and gᵀx take 8·2·4 multiplications each; the sum of g over the batch reads 8·2 elements and writes 2
    total = 64 + 64 + 18
    expected = {"x alone": 64, "w alone": 64, "b alone": 18, "all but x": 82, "all but w": 82, "all but b": 128}
    assert row.ours.counts == pytest.approx({name: work / total for name, work in expected.items()})
    (row,) = run_capabilities(case, only=["saves only what is needed"])
    # The gradient of x needs w, 8 elements; the gradient of w needs x, 32 elements
    expected = {"x alone": 8, "w alone": 32, "b alone": 0, "all but x": 32, "all but w": 8, "all but b": 40}
    assert row.native.counts == pytest.approx({name: kept / 40 for name, kept in expected.items()})


def cell(case: str, capability: str, ours: str, native: str, reason: str = "") -> CapabilityResult:
    return CapabilityResult(case, capability, Outcome(ours, reason if ours != WORKS else ""), Outcome(native, ""))


ROWS = [
    cell("a", "vmap", WORKS, WORKS),
    cell("a", "hooks", FAILS, WORKS, "called 0 times"),
    cell("a", COPIES, NOT_APPLICABLE, NOT_APPLICABLE, "no module"),
    cell("b", "vmap", WORKS, FAILS),
    cell("b", "hooks", FAILS, FAILS, "called 0 times"),
    cell("b", COPIES, NOT_APPLICABLE, NOT_APPLICABLE, "no module"),
    cell("c", "vmap", FAILS, NOT_APPLICABLE, "no rule"),
]


def test_the_section_lists_the_capabilities_that_ours_lacks():
    report = section(ROWS)
    assert report.failures == [
        "a: hooks: ours fails (called 0 times); native: works",
        "c: vmap: ours fails (no rule); native: not applicable",
    ]
    matrix, reasons, descriptions = report.parts
    assert matrix.columns == ["capability", "a", "b", "c"]
    assert matrix.rows == [("vmap", "yes", "ours", "NO / –"), ("hooks", "NATIVE", "no", "")]
    assert matrix.failed == {0, 1}
    assert [row[:2] for row in reasons.rows] == [
        ("hooks", "a"),
        ("vmap", "c"),
        ("vmap", "b"),
        ("hooks", "b"),
        (COPIES, "a; b"),
    ]
    assert list(reasons.failed) == [0, 1]
    assert reasons.rows[-1] == (COPIES, "a; b", "not applicable: no module", "not applicable")
    assert descriptions.rows[0] == ("vmap", describe("vmap"))
    assert any("ours works in 1 cell where native fails" in sentence for sentence in report.text)
    json.dumps(report.data)


def test_only_cases_in_held_make_failures():
    assert [failure[0] for failure in section(ROWS, held={"c"}).failures] == ["c"]
    assert section(ROWS, held=()).failures == []


def test_many_cases_are_numbered_columns():
    rows = [cell(f"a case with a long name, {n}", "vmap", WORKS, WORKS) for n in range(30)]
    matrices = [part for part in section(rows).parts if part.title.startswith("Capabilities by case")]
    assert len(matrices) < 3 and matrices[0].columns[:3] == ["capability", "1", "2"]
    assert "30: a case with a long name, 29" in matrices[0].note
    assert sum(len(matrix.columns) - 1 for matrix in matrices) == 30


def test_every_capability_has_a_description():
    assert all(len(describe(name)) > 40 and describe(name).endswith(".") for name in CAPABILITIES)
    assert set(QUICK) < set(CAPABILITIES)
