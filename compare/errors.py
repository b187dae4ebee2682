"""One quantity of one run beside native's and the oracle: how large the error is, where, and what explains it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compare.tolerance import Noise, ulp, unit_roundoff
from compare.variants import Variant

EQUAL, CLOSE, EXPLAINED, WRONG, REFUSED = "equal", "close", "explained", "wrong", "refused"


@dataclass(frozen=True)
class Row:
    """Ours beside native, both against the float64 oracle, for one output or gradient of one variant.

    Attributes:
        status: "equal": every bit is native's; "close": within the tolerance; "explained": outside it only where a
            convention says so; "wrong"; "refused": native itself does not run this, so nothing was compared.
        error, native_error: the largest absolute difference from the oracle.
        relative: the largest difference of an element over the oracle's own size there; of norms where ``by_norm``.
        ulps, native_ulps: ``error`` in units in the last place of the oracle's largest element, or of what cancels
            in it, where that is larger.
        ratio: ``error`` over ``native_error``; 1 where both are 0.
        tolerance, share: what was granted, and how much of it was used.
        by_norm: judged by the norm of the difference over the oracle's norm, and not element by element.
        index, here, native_here, oracle_here: the worst element, and the three values there.
        cosine: of the angle between ours and the oracle.
        unexplained, explained: how many elements are beyond the tolerance; of which convention explains how many.
        message: what went wrong where there is no number to show.
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
    share: float = math.nan
    by_norm: bool = False
    index: tuple[int, ...] = ()
    here: float = math.nan
    native_here: float = math.nan
    oracle_here: float = math.nan
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
    noise: Noise,
    conventions: dict[str, Tensor],
    kinks: bool,
) -> tuple[Row, Tensor]:
    """The row, and the mask of elements that are beyond the tolerance and that no convention explains.

    ``conventions`` are other oracles. All have one shape. Where the oracle is not finite, ours must be the same NaN
    or infinity; where native overflowed in this dtype, ours may be what native is, or right.
    """
    same_bits = bool(((ours == native) | (ours.isnan() & native.isnan())).all())
    dtype = variant.dtype if ours.is_floating_point() else torch.float64
    ours, native, oracle = (t.detach().double().cpu() for t in (ours, native, oracle))
    by_norm = dtype is not torch.float64 and (kinks or noise.flips)
    finite = oracle.isfinite()
    judged = finite & native.isfinite()
    scale = _largest(oracle[finite])
    error = _distance(ours, oracle, native)
    native_error = _distance(native, oracle, native)
    worst_native = _largest(native_error[judged])
    unit = ulp(max(scale, noise.scale), dtype)

    if by_norm:
        # Native's infinities in this dtype say nothing of ours: the norm is over what is finite in both.
        length = float(oracle[judged].norm())
        candidates = {"": oracle, **{name: other.double().cpu() for name, other in conventions.items()}}
        norms = {name: _norm(ours, other, judged) for name, other in candidates.items()}
        tolerance = 2 * _norm(native, oracle, judged) + noise.norm + 2 * unit_roundoff(dtype) * length
        best = min(norms, key=norms.__getitem__)
        wrong = torch.zeros_like(judged) if norms[best] <= tolerance else (error > 0) & judged
        explained = {best: int((error > tolerance).sum())} if best and not norms[""] <= tolerance else {}
        used = norms[best]
        relative = norms[""] / length if length else norms[""]
    else:
        tolerance = 2 * worst_native + noise.element + 2 * unit
        beyond = ~(error <= tolerance)
        if variant.data == "whole numbers":
            beyond &= finite  # rounding took the inputs where the function has no value: nothing to compare
        wrong, explained = beyond, {}
        for name, other in conventions.items():
            agrees = wrong & (_distance(ours, other.double().cpu(), native) <= tolerance)
            if agrees.any():
                explained[name] = int(agrees.sum())
                wrong = wrong & ~agrees
        used = _largest(error[~beyond | wrong]) if error.numel() else 0.0
        present = finite & (oracle != 0)
        relative = _largest((error / oracle.abs())[present])

    status = EQUAL if same_bits else CLOSE
    if explained:
        status = EXPLAINED
    if wrong.any():
        status = WRONG
    index = _worst(error, wrong)
    there = [float(t[index]) if t.numel() else math.nan for t in (ours, native, oracle)]
    largest = math.inf if bool((~(error < math.inf) & finite).any()) else _largest(error[finite])
    row = Row(
        case, quantity, variant, status, ours.numel(), largest, relative, largest / unit, worst_native,
        worst_native / unit, _ratio(largest, worst_native), tolerance, used / tolerance if tolerance else 0.0,
        by_norm, index, *there, _cosine(ours, oracle, judged), int(wrong.sum()), explained,
    )  # fmt: skip
    return row, wrong


def _distance(ours: Tensor, oracle: Tensor, native: Tensor) -> Tensor:
    """|ours − oracle|; 0 where both are the same NaN or infinity, or ours the one native overflowed to; else ∞."""
    same = (ours == oracle) | (ours.isnan() & oracle.isnan())
    overflow = ~native.isfinite() & ((ours == native) | (ours.isnan() & native.isnan()))
    difference = (ours - oracle).abs()
    difference = torch.where(difference.isfinite(), difference, torch.full_like(difference, math.inf))
    return torch.where(same | overflow, torch.zeros_like(difference), difference)


def _norm(ours: Tensor, oracle: Tensor, judged: Tensor) -> float:
    return float((ours - oracle)[judged].norm())


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _ratio(ours: float, native: float) -> float:
    if ours == native:
        return 1.0
    return ours / native if native else math.inf


def _cosine(ours: Tensor, oracle: Tensor, judged: Tensor) -> float:
    a, b = ours[judged].flatten(), oracle[judged].flatten()
    lengths = float(a.norm() * b.norm())
    return min(1.0, float(a @ b) / lengths) if lengths else math.nan


def _worst(error: Tensor, wrong: Tensor) -> tuple[int, ...]:
    if not error.numel():
        return ()
    among = torch.where(wrong, error, torch.full_like(error, -1.0)) if wrong.any() else error
    return tuple(int(i) for i in torch.unravel_index(among.argmax(), error.shape))
