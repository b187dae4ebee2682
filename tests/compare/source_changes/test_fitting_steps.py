"""Promise: the step that makes the right value of a known one is told: a flip, a shift, a sum, a mask."""

from __future__ import annotations

import ast

import pytest
import torch

from compare import compare
from compare.gradients.source_changes.edits import Place, Site
from compare.gradients.source_changes.fitting_steps import step_that_fits
from tests.compare.source_changes.reading_mistakes import NarrowNorm
from tests.compare.source_changes.test_corrections import DTYPES, case_of, matrix

STEPS = [
    ("e.flip(1)", lambda e: e.flip(1)),
    ("e.roll(-1, 0)", lambda e: e.roll(-1, 0)),
    ("e.roll(2, 1)", lambda e: e.roll(2, 1)),
    ("e.mT", lambda e: e.mT),
    ("e + e.mT", lambda e: e + e.mT),
    ("e.tril()", torch.tril),
    ("e.flip(0).cumsum(0).flip(0)", lambda e: e.flip(0).cumsum(0).flip(0)),
    ("e.sum(1, keepdim=True)", lambda e: e.sum(1, keepdim=True).expand_as(e)),
    ("e - e.mean(0, keepdim=True)", lambda e: e - e.mean(0)),
    ("e.square()", torch.square),
    ("1 - e", lambda e: 1 - e),
    ("e * (torch.arange(5) < KEPT)", lambda e: e * (torch.arange(5) < 3)),
    ("e * (torch.arange(5).unsqueeze(-1) >= 4)", lambda e: e * (torch.arange(5)[:, None] >= 4)),
]


@pytest.mark.parametrize(("text", "step"), STEPS, ids=[text for text, _ in STEPS])
def test_the_step_is_found_and_no_other(text, step):
    tree = ast.parse("e", mode="eval")
    site = Site(tree.body, Place(tree, "body", None), (tree,))
    present = torch.randn(5, 5, dtype=torch.float64).abs() + 0.1
    edits = step_that_fits(site, present, step(present), {"KEPT": 3, "HALF": 0.5})
    assert [ast.unparse(edit.changes[0][2]) for edit in edits] == [text]
    assert not list(step_that_fits(site, present, step(present) + 1e-3 * present[0, 0], {}))


@pytest.mark.usefixtures("few_edits")
def test_a_part_of_the_columns_is_told_where_the_rest_should_be_0():
    native = lambda x: x / (x[:, :3].square().sum(1, keepdim=True) + 1)  # noqa: E731
    (finding,) = compare(case_of(NarrowNorm, native, (matrix,)), dtypes=DTYPES).findings
    told = f"{finding.statement} {finding.correction}"
    assert "* (torch.arange(4) < 3)" in told and "should be" in told, told
