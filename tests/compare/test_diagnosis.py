"""Promise: the diagnosis raises for no shape and no number, and its statements say where and how often."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from compare.gradients.diagnosis import locations
from compare.gradients.diagnosis.contributions import find_missing_contributions, find_overwritten_contributions
from compare.gradients.diagnosis.findings import KINDS
from compare.gradients.diagnosis.input_uses import find_missing_uses
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.missing_terms import find_missing_term
from compare.gradients.diagnosis.special_values import find_special_values
from compare.gradients.diagnosis.whole_tensor import find_whole_tensor_patterns
from compare.gradients.run_variant import RunResult, run_variant
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


def product(x, w):
    return x * w + x


def random_mismatch(shape, ours, oracle, quantity):
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name in ("x", "w")}
    run = run_variant(product, inputs, Variant())
    ours, oracle = (CONTENTS[name](torch.empty(shape, dtype=torch.float64)) for name in (ours, oracle))
    run = RunResult({**run.values, quantity: ours})
    wrong = ~((ours - oracle).abs() <= 1e-9)
    return Mismatch(quantity, Variant(), ours, oracle, wrong, 1e-12, inputs, run)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_pattern_and_no_picture_raises(shape):
    """Every pattern, not only the first that fits, for each pair of contents: tensors of two shapes in one run."""
    torch.manual_seed(0)
    for ours, oracle in list(itertools.product(CONTENTS, CONTENTS))[::3]:
        for quantity in ("output", "gradient of x"):
            mismatch = random_mismatch(shape, ours, oracle, quantity)

            def rerun(gradients, inputs=None, mismatch=mismatch):
                return run_variant(product, inputs or mismatch.inputs, Variant(), 0, gradients).values

            patterns = [
                find_whole_tensor_patterns(mismatch, rerun, 0),
                find_missing_contributions(mismatch, rerun, 0),
                find_missing_uses(mismatch, product, 0),
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
