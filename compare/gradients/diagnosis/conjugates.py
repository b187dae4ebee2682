"""Complex numbers: a conjugate that is missing, or one too many."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from compare.case import CaseError
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch, RerunNative
from compare.gradients.numbers import as_real

CONVENTION = "PyTorch's gradient of a complex z is dJ/d(Re z) + i dJ/d(Im z)"


def find_conjugated(mismatch: Mismatch, rerun_native: RerunNative, seed: int) -> Iterator[Finding]:
    """The conjugate of the expected tensor, or the gradient for a conjugated input or incoming gradient."""
    if _is_complex_quantity(mismatch) and mismatch.equals(_conjugate_pairs(mismatch.oracle)):
        statement = f"equals the complex conjugate of the expected {mismatch.noun}"
        yield Finding("conjugated", mismatch.quantity, statement, CONVENTION)
    if mismatch.is_output:
        return
    incoming = mismatch.incoming(seed)
    for name, value in mismatch.inputs.items():
        if not value.is_complex():
            continue
        try:
            values = rerun_native(incoming, {**mismatch.inputs, name: value.conj().resolve_conj()})
        except CaseError:  # native may have no value there; then it explains nothing
            continue
        if mismatch.equals(values.get(mismatch.quantity)):
            statement = f"equals the gradient computed with {name} conjugated"
            yield Finding("conjugated", mismatch.quantity, statement, CONVENTION)
    values = rerun_native(lambda n, output: incoming(n, output).conj().resolve_conj())
    if mismatch.equals(values.get(mismatch.quantity)):
        statement = "equals the gradient computed with the incoming gradient conjugated"
        yield Finding("conjugated", mismatch.quantity, statement, CONVENTION)


def _is_complex_quantity(mismatch: Mismatch) -> bool:
    value = mismatch.inputs.get(mismatch.input_name, mismatch.run.values.get(mismatch.quantity))
    return value is not None and as_real(value).shape != value.shape


def _conjugate_pairs(pairs: Tensor) -> Tensor:
    """Negate the imaginary parts, which are last of two along the last dimension."""
    conjugate = pairs.clone()
    conjugate[..., 1].neg_()
    return conjugate
