"""The error of one output or gradient in one variant: its size, its worst element, and whether it is explained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compare.gradients.tolerance import Sensitivity, ulp, unit_roundoff
from compare.gradients.variants import Variant

EQUAL, CLOSE, EXPLAINED, WRONG, REFUSED = "equal", "close", "explained", "wrong", "refused"


@dataclass(frozen=True)
class Row:
    """Ours beside native for one output or gradient of one variant, both measured against the float64 oracle.

    Attributes:
        quantity: "output", "output 1", "gradient of weight", ...
        status: "equal": bit for bit native's values; "close": within the tolerance; "explained": beyond the tolerance
            only where a convention gives our value; "wrong"; "refused": native raises, so nothing is compared.
        size: number of elements.
        error, native_error: largest absolute difference from the oracle.
        relative: largest relative error of an element; if ``by_norm``, relative error of the norm.
        ulps, native_ulps: ``error`` and ``native_error`` in units in the last place of the oracle's largest element,
            or of the terms that cancel in it if they are larger.
        ratio: ``error`` divided by ``native_error``; 1 if both are 0.
        tolerance: largest error that is allowed.
        tolerance_used: error divided by ``tolerance``.
        by_norm: True if the norm of the difference is judged instead of every element.
        index: index of the worst element.
        ours_value, native_value, oracle_value: the three values at ``index``.
        cosine: cosine similarity of ours and the oracle.
        unexplained: number of elements beyond the tolerance that no convention explains.
        explained: number of elements that each convention explains.
        message: what prevented a comparison of numbers, if anything.
    """

    case: str
    quantity: str
    variant: Variant
    status: str
    size: int = 0
    error: float = math.nan
    relative: float = math.nan
    ulps: float = math.nan
    native_error: float = math.nan
    native_ulps: float = math.nan
    ratio: float = math.nan
    tolerance: float = math.nan
    tolerance_used: float = math.nan
    by_norm: bool = False
    index: tuple[int, ...] = ()
    ours_value: float = math.nan
    native_value: float = math.nan
    oracle_value: float = math.nan
    cosine: float = math.nan
    unexplained: int = 0
    explained: dict[str, int] = field(default_factory=dict)
    message: str = ""


def measure(
    case: str,
    quantity: str,
    variant: Variant,
    ours: Tensor,
    native: Tensor,
    oracle: Tensor,
    sensitivity: Sensitivity,
    conventions: dict[str, Tensor],
    kinks: bool,
) -> tuple[Row, Tensor]:
    """Measure ours against the oracle; return the row, and the mask of wrong elements.

    An element is wrong if it is beyond the tolerance and no convention explains it. Where the oracle is not finite,
    ours must be the same infinity or NaN. Where native overflows in this dtype, ours may equal native or the oracle.

    Args:
        ours, native, oracle: one output or gradient, of one shape.
        conventions: other oracles by the name of their convention, of the same shape.
        kinks: True if a ReLU or a maximum follows a sum inside the function.
    """
    same_bits = bool(((ours == native) | (ours.isnan() & native.isnan())).all())
    dtype = variant.dtype if ours.is_floating_point() else torch.float64
    ours, native, oracle = (t.detach().double().cpu() for t in (ours, native, oracle))
    by_norm = dtype is not torch.float64 and (kinks or sensitivity.crosses_kink)
    finite = oracle.isfinite()
    both_finite = finite & native.isfinite()
    error = _absolute_error(ours, oracle, native)
    native_error = _absolute_error(native, oracle, native)
    max_native_error = _max_abs(native_error[both_finite])
    unit = ulp(max(_max_abs(oracle[finite]), sensitivity.scale), dtype)

    if by_norm:
        # An infinity of native's in this dtype says nothing about ours: the norm is over elements finite in both.
        oracle_norm = float(oracle[both_finite].norm())
        candidates = {"": oracle, **{name: other.double().cpu() for name, other in conventions.items()}}
        errors = {name: _error_norm(ours, candidate, both_finite) for name, candidate in candidates.items()}
        tolerance = (
            2 * _error_norm(native, oracle, both_finite)
            + sensitivity.norm_change
            + 2 * unit_roundoff(dtype) * oracle_norm
        )
        best = min(errors, key=errors.__getitem__)
        wrong = torch.zeros_like(both_finite) if errors[best] <= tolerance else (error > 0) & both_finite
        explained = {best: int((error > tolerance).sum())} if best and not errors[""] <= tolerance else {}
        judged_error = errors[best]
        relative = errors[""] / oracle_norm if oracle_norm else errors[""]
    else:
        tolerance = 2 * max_native_error + sensitivity.max_change + 2 * unit
        beyond = ~(error <= tolerance)
        if variant.data == "whole numbers":
            beyond &= finite  # rounding moved the inputs to where the function has no value: nothing to compare
        wrong, explained = beyond, {}
        for name, other in conventions.items():
            agrees = wrong & (_absolute_error(ours, other.double().cpu(), native) <= tolerance)
            if agrees.any():
                explained[name] = int(agrees.sum())
                wrong = wrong & ~agrees
        judged_error = _max_abs(error[~beyond | wrong]) if error.numel() else 0.0
        nonzero = finite & (oracle != 0)
        relative = _max_abs((error / oracle.abs())[nonzero])

    status = EQUAL if same_bits else CLOSE
    if explained:
        status = EXPLAINED
    if wrong.any():
        status = WRONG
    index = _worst_index(error, wrong)
    values = [float(t[index]) if t.numel() else math.nan for t in (ours, native, oracle)]
    max_error = math.inf if bool((~(error < math.inf) & finite).any()) else _max_abs(error[finite])
    row = Row(
        case, quantity, variant, status, ours.numel(), max_error, relative, max_error / unit, max_native_error,
        max_native_error / unit, _ratio(max_error, max_native_error), tolerance,
        judged_error / tolerance if tolerance else 0.0, by_norm, index, *values,
        _cosine_similarity(ours, oracle, both_finite), int(wrong.sum()), explained,
    )  # fmt: skip
    return row, wrong


def _absolute_error(ours: Tensor, oracle: Tensor, native: Tensor) -> Tensor:
    """|ours − oracle|; 0 where both are the same infinity or NaN, or ours overflowed as native did; else infinity."""
    same = (ours == oracle) | (ours.isnan() & oracle.isnan())
    overflow = ~native.isfinite() & ((ours == native) | (ours.isnan() & native.isnan()))
    difference = (ours - oracle).abs()
    difference = torch.where(difference.isfinite(), difference, torch.full_like(difference, math.inf))
    return torch.where(same | overflow, torch.zeros_like(difference), difference)


def _error_norm(ours: Tensor, oracle: Tensor, mask: Tensor) -> float:
    return float((ours - oracle)[mask].norm())


def _max_abs(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _ratio(error: float, native_error: float) -> float:
    if error == native_error:
        return 1.0
    return error / native_error if native_error else math.inf


def _cosine_similarity(ours: Tensor, oracle: Tensor, mask: Tensor) -> float:
    a, b = ours[mask].flatten(), oracle[mask].flatten()
    norms = float(a.norm() * b.norm())
    return min(1.0, float(a @ b) / norms) if norms else math.nan


def _worst_index(error: Tensor, wrong: Tensor) -> tuple[int, ...]:
    """Index of the largest error, among the wrong elements if there are any."""
    if not error.numel():
        return ()
    candidates = torch.where(wrong, error, torch.full_like(error, -1.0)) if wrong.any() else error
    return tuple(int(i) for i in torch.unravel_index(candidates.argmax(), error.shape))
