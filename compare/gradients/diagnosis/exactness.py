"""Gradients that are right to fewer digits than their dtype has: computed in a narrower dtype."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.locations import worst_example
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.probe import Probe, largest

NARROWER = (torch.float32, torch.float16, torch.bfloat16)  # the most exact first
FEW, MANY = 1 / 32, 8  # typical and largest errors, in eps of the narrower dtype
MIN_WRONG = 0.25  # fraction of wrong elements; a mistake in a few elements is another one


def find_narrower_dtype(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """Errors as large as the rounding errors of a narrower dtype, in most elements."""
    ours, oracle = mismatch.ours, mismatch.oracle
    finite = ours.isfinite() & oracle.isfinite()
    if not bool(finite.all()) or oracle.numel() < 4 or float(mismatch.wrong.double().mean()) < MIN_WRONG:
        return
    size = largest(oracle)
    if not size:
        return
    for dtype in NARROWER:
        if torch.finfo(dtype).eps <= torch.finfo(mismatch.variant.dtype).eps:
            continue
        name = str(dtype).removeprefix("torch.")
        # All elements hold numbers of that dtype; a random float64 number does with a probability of 2**-29 or less.
        is_rounded = bool((_rounded(ours, dtype) == ours).all()) and bool((_rounded(oracle, dtype) != oracle).any())
        errors = (ours - oracle).abs() / size
        eps = torch.finfo(dtype).eps
        is_near = float(errors.max()) <= MANY * eps
        is_typical = float(errors[mismatch.wrong].median()) >= FEW * eps and float(errors.max()) >= eps / 8
        if (is_rounded and is_near) or (is_near and is_typical and _has_random_errors(mismatch, probe, eps)):
            statement = f"is no more exact than {name}"
            evidence = (
                "all elements are numbers of that dtype" if is_rounded else f"errors of up to {errors.max():.1e} "
            )
            evidence += "" if is_rounded else "of the largest element"
            yield Finding("only in one dtype", mismatch.quantity, statement, f"{evidence}; {worst_example(mismatch)}")
            return


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).double()


def _has_random_errors(mismatch: Mismatch, probe: Probe, eps: float) -> bool:
    """True if inputs that differ by one ``eps`` have other errors, and by four have not much larger differences.

    The errors of a wrong formula are nearly the same, or their differences are in proportion.
    """
    near, far = (_change_of_errors(mismatch, probe, amount * eps) for amount in (1, 4))
    size = float((mismatch.ours - mismatch.oracle).norm())
    return near is not None and far is not None and far > 0.3 * size and far < 2.5 * near


def _change_of_errors(mismatch: Mismatch, probe: Probe, amount: float) -> float | None:
    """Difference of the errors for inputs that differ by ``amount``, relatively."""
    generator = torch.Generator().manual_seed(1)
    inputs = {
        name: value
        * (1 + amount * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device))
        if value.is_floating_point()
        else value
        for name, value in mismatch.inputs.items()
    }
    other = probe.compare(mismatch, inputs, mismatch.incoming(probe.seed))
    if other is None:
        return None
    first, second = (m.ours - m.oracle for m in (mismatch, other))
    return float((second - first).norm())
