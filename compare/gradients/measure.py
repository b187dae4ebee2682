"""The error of one output or gradient in one variant: its size, its worst element, and whether it is explained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compare.gradients.tolerance import Sensitivity, ulp
from compare.gradients.variants import Variant

EQUAL, CLOSE, EXPLAINED, WRONG = "equal", "close", "explained", "wrong"
REFUSED, EMPTY = "refused", "empty"  # nothing was compared
# Native crossed a kink at an element whose error is eight times what rounding errors change, in at most a twentieth
# of the elements.
MIN_JUMP, MAX_CROSSED = 8, 0.05


@dataclass(frozen=True)
class Row:
    """Ours beside native for one output or gradient of one variant, both measured against the float64 oracle.

    Attributes:
        quantity: "output", "output 1", "gradient of weight", ...
        status: "equal": bit for bit native's values; "close": within the tolerance; "explained": beyond the tolerance
            only where a convention gives our value; "wrong"; "refused": native raises, so nothing is compared;
            "empty": there are no elements.
        size: number of elements.
        error, native_error: largest absolute difference from the oracle.
        relative: largest relative error of an element.
        ulps, native_ulps: ``error`` and ``native_error`` in units in the last place of the oracle's largest element,
            or of the terms that cancel in it if they are larger.
        ratio: ``error`` divided by ``native_error``; 1 if both are 0.
        tolerance: largest error that is allowed where the function has no kink.
        tolerance_used: largest error of an element divided by the tolerance of that element.
        by_norm: True if elements at kinks were judged together, by the norm of their errors.
        index: index of the worst element.
        ours_value, native_value, oracle_value: the three values at ``index``.
        cosine: cosine similarity of ours and the oracle.
        unexplained: number of elements beyond the tolerance that no convention explains.
        explained: number of elements that each convention explains.
        at_kinks: number of elements that rounding errors may carry across a kink, such as the 0 of a ReLU or the
            boundary of a quantiser's step. Their tolerance is the jump there.
        undetermined: number of elements at which finite differences give no gradient, so nothing is compared.
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
    at_kinks: int = 0
    undetermined: int = 0
    message: str = ""

    @property
    def is_compared(self) -> bool:
        """True if there was something to compare, and native or finite differences gave a value."""
        return self.status not in (REFUSED, EMPTY) and (self.size == 0 or self.undetermined < self.size)


def measure(
    case: str,
    quantity: str,
    variant: Variant,
    ours: Tensor,
    native: Tensor,
    oracle: Tensor,
    sensitivity: Sensitivity,
    conventions: dict[str, Tensor],
    oracle_error: Tensor | None = None,
) -> tuple[Row, Tensor]:
    """Measure ours against the oracle; return the row, and the mask of wrong elements.

    An element is wrong if it is beyond its tolerance and no convention explains it. Where the oracle is not finite,
    ours must be the same infinity or NaN. Where native overflows in this dtype, ours may equal native or the oracle;
    where native is NaN by overflow, ours may be infinite.

    Elements at a kink have a tolerance of their own: their spread. They are accepted together if the norm of their
    errors is that of a correct result, since another element may have crossed the kink than in any perturbation.

    Args:
        ours, native, oracle: one output or gradient, of one shape; real.
        conventions: other oracles by the name of their convention, of the same shape.
        oracle_error: bound on the error of each element of an oracle by finite differences; infinite where it has
            no value. It is part of the tolerance.
    """
    same_bits = bool(((ours == native) | (ours.isnan() & native.isnan())).all())
    dtype = ours.dtype if ours.is_floating_point() else torch.float64
    ours, native, oracle = (t.detach().double().cpu() for t in (ours, native, oracle))
    finite = oracle.isfinite()
    both_finite = finite & native.isfinite()
    error = _absolute_error(ours, oracle, native)
    native_error = _absolute_error(native, oracle, native)
    unit = ulp(max(_max_abs(oracle[finite]), sensitivity.scale), dtype)
    smooth_tolerance = sensitivity.max_change + 2 * unit
    kinks = _elements_at_kinks(native_error, both_finite, smooth_tolerance, sensitivity)
    max_native_error = _max_abs(native_error[both_finite & ~kinks])
    base_tolerance = 2 * max_native_error + smooth_tolerance
    tolerance = torch.full_like(error, base_tolerance)
    if oracle_error is not None:
        tolerance += oracle_error.cpu()
    if kinks.any():
        spread = torch.zeros_like(error) if sensitivity.spread is None else sensitivity.spread.cpu()
        # An infinity of native's in this dtype says nothing about ours.
        tolerance += torch.where(kinks, spread + 2 * native_error.where(both_finite, 0.0), 0.0)

    wrong, explained = ~(error <= tolerance), {}
    if variant.data == "whole numbers":
        wrong &= finite  # rounding moved the inputs to where the function has no value: nothing to compare
    others = {name: _absolute_error(ours, other.double().cpu(), native) for name, other in conventions.items()}
    by_norm = False
    if (wrong & kinks).any():
        norm_tolerance = 2 * _norm(native_error, kinks & both_finite) + sensitivity.norm_change + base_tolerance
        norms = {name: _norm(other, kinks & both_finite) for name, other in {"": error, **others}.items()}
        best = min(norms, key=norms.__getitem__)
        if norms[best] <= norm_tolerance:
            by_norm = True
            if best and norms[""] > norm_tolerance:
                explained[best] = int((wrong & kinks & both_finite).sum())
            wrong &= ~(kinks & both_finite)
    for name, other in others.items():
        agrees = wrong & (other <= tolerance)
        if agrees.any():
            explained[name] = explained.get(name, 0) + int(agrees.sum())
            wrong &= ~agrees

    if oracle_error is not None:
        error = torch.where(oracle_error.cpu().isinf(), 0.0, error)
    status = EQUAL if same_bits else CLOSE
    if explained:
        status = EXPLAINED
    if wrong.any():
        status = WRONG
    if not ours.numel():
        status = EMPTY
    judged = wrong | (error <= tolerance)
    used = torch.where(error > 0, error / tolerance, 0.0)[judged]
    undetermined = 0 if oracle_error is None else int(oracle_error.isinf().sum())
    index = _worst_index(error, wrong)
    values = [float(t[index]) if t.numel() else math.nan for t in (ours, native, oracle)]
    max_error = math.inf if bool((~(error < math.inf) & finite).any()) else _max_abs(error[finite])
    relative = _max_abs((error / oracle.abs())[finite & (oracle != 0)])
    row = Row(
        case, quantity, variant, status, ours.numel(), max_error, relative, max_error / unit,
        _max_abs(native_error[both_finite]), max_native_error / unit, _ratio(max_error, max_native_error),
        base_tolerance, _max_abs(used), by_norm, index, *values, _cosine_similarity(ours, oracle, both_finite),
        int(wrong.sum()), explained, int(kinks.sum()), undetermined,
    )  # fmt: skip
    return row, wrong


def _elements_at_kinks(
    native_error: Tensor, both_finite: Tensor, smooth_tolerance: float, sensitivity: Sensitivity
) -> Tensor:
    """Mask of the elements that a perturbation carries across a kink, or that native's own rounding carried across.

    Native crossed a kink where its error is far above the tolerance of smooth changes, in a few elements only: an
    inaccurate operation has such errors in many.
    """
    kinks = torch.zeros_like(both_finite) if sensitivity.jumps is None else sensitivity.jumps.cpu()
    crossed = both_finite & ~kinks & (native_error > MIN_JUMP * smooth_tolerance)
    if int(crossed.sum()) <= MAX_CROSSED * crossed.numel():
        kinks = kinks | crossed
    return kinks


def _absolute_error(ours: Tensor, oracle: Tensor, native: Tensor) -> Tensor:
    """|ours − oracle|; 0 where both are the same infinity or NaN, or ours overflowed as native did; else infinity.

    Where native's overflow made NaN, which infinities it met says nothing: ours may be any infinity, or NaN.
    """
    same = (ours == oracle) | (ours.isnan() & oracle.isnan())
    overflow = ~native.isfinite() & ((ours == native) | (native.isnan() & ~ours.isfinite()))
    difference = (ours - oracle).abs()
    difference = torch.where(difference.isfinite(), difference, torch.full_like(difference, math.inf))
    return torch.where(same | overflow, torch.zeros_like(difference), difference)


def _norm(error: Tensor, mask: Tensor) -> float:
    return float(error[mask].norm())


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
    flat, index = int(candidates.argmax()), []
    for size in reversed(error.shape):
        flat, position = divmod(flat, size)
        index.insert(0, position)
    return tuple(index)
