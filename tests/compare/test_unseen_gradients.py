"""Promise: the right Functions of the last unseen sets are right in float64, and the wrong ones are wrong.

The check is autograd's gradient of native, without the diagnosis.
A Function is asked for all gradients, then for each alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction
from tests.compare.gallery.unseen.score import right_cases, wrong_functions

SETS = ("seventh_set", "eighth_set", "ninth_set", "tenth_set")
WITH_OTHER_MISTAKES = "eleventh_set"  # of dtypes, layouts and calls too, which need not show in float64
ROUNDING = 1e-12  # of the largest element; the sums have fewer than 100 terms of similar size
DISTINCT = 1e-9  # the least error of a wrong gradient: one computed in float32


def in_float64(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Change real inputs to float64, complex ones to complex128; integers stay."""
    dtypes = {torch.float32: torch.float64, torch.complex64: torch.complex128}
    return {name: x.to(dtypes.get(x.dtype, x.dtype)) for name, x in inputs.items()}


def gradients(function: Callable[..., Any], inputs: dict[str, Tensor], asked: tuple[str, ...]) -> list[Tensor | None]:
    """Gradients of the asked inputs, for incoming gradients that depend on nothing but the outputs' shapes."""
    leaves = {name: x.clone().requires_grad_(name in asked) for name, x in inputs.items()}
    result = function(*leaves.values())
    outputs = [o for o in (result if isinstance(result, tuple) else (result,)) if o.requires_grad]
    generator = torch.Generator().manual_seed(1)
    incoming = [torch.randn(o.shape, dtype=o.dtype, generator=generator) for o in outputs]
    return list(torch.autograd.grad(outputs, [leaves[name] for name in asked], incoming, allow_unused=True))


def errors(case: Case, seed: int) -> Iterator[float]:
    """Largest error of each gradient, relative to the largest element that is expected; infinite for None."""
    inputs = in_float64(case.inputs(seed))
    names = [name for name, x in inputs.items() if x.is_floating_point() or x.is_complex()]
    for asked in {tuple(names), *((name,) for name in names)}:
        expected = gradients(case.native, inputs, asked)
        for got, right in zip(gradients(case.ours, inputs, asked), expected, strict=True):
            yield float("inf") if got is None else float((got - right).abs().max() / right.abs().max())


@pytest.mark.parametrize(
    "case",
    [case for each in (*SETS, WITH_OTHER_MISTAKES) for case in right_cases(each)],
    ids=lambda case: case.name,
)
def test_a_right_function_has_the_gradients_of_native(case: Case):
    for seed in range(3):
        assert max(errors(case, seed)) <= ROUNDING


@pytest.mark.parametrize(
    "wrong", [wrong for each in SETS for wrong in wrong_functions(each)], ids=lambda wrong: wrong.case.name
)
def test_a_wrong_function_has_a_wrong_gradient(wrong: WrongFunction):
    if "raises" in wrong.kinds:
        with pytest.raises(RuntimeError, match="invalid gradient"):
            list(errors(wrong.case, 0))
        return
    for seed in range(3):
        assert max(errors(wrong.case, seed)) >= DISTINCT
