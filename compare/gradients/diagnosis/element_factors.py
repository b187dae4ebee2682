"""The expected gradient times a tensor: a factor that is missing or one too many, or one factor for each slice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from compare.gradients.diagnosis.factors import name_factor
from compare.gradients.diagnosis.features import spread_to
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_calls import record_calls, results_by_name
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.wording import dimension_name, format_number, index_name, slice_names
from compare.gradients.run_variant import OUTPUT

MIN_ELEMENTS = 4
MAX_LISTED = 6
MAX_PAIRED = 4
# Factors that a missing or an additional tensor leaves. Their words follow "equals the expected gradient".
POWERS: dict[str, Callable[[Tensor], Tensor]] = {
    "divided by {}: this factor is missing, or a division by it is one too many": torch.reciprocal,
    "times {}: this factor is one too many, or a division by it is missing": lambda t: t,
    "times the square of {}: this factor should divide": torch.square,
    "divided by the square of {}: this factor should multiply": lambda t: 1 / t**2,
    "times the square root of {}": lambda t: t.abs().sqrt(),
    "divided by the square root of {}": lambda t: 1 / t.abs().sqrt(),
}  # fmt: skip
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "times (1 - {})": lambda t: 1 - t,
    "divided by (1 - {})": lambda t: 1 / (1 - t),
    "divided by (1 - {}²): this factor is missing": lambda t: 1 / (1 - t**2),
    "divided by {} (1 - {}): this factor is missing": lambda t: 1 / (t * (1 - t)),
    "times exp({})": torch.exp,
    "divided by exp({}): this factor is missing": lambda t: torch.exp(-t),
    "times the sign of {}": torch.sign,
}  # fmt: skip


def find_element_factors(
    mismatch: Mismatch, probe: Probe, functions: Mapping[str, Callable[[Tensor], Tensor]] = POWERS
) -> Iterator[Finding]:
    """The expected gradient times a power of one tensor, or times another one of ``functions``."""
    if mismatch.oracle.numel() < MIN_ELEMENTS:
        return
    quotients = _quotients(mismatch)
    if quotients is None:
        return
    shape = mismatch.oracle.shape
    tensors: dict[str, Tensor] = {}
    for name, tensor in _tensors(mismatch, probe).items():
        spread = spread_to(tensor, shape) if tensor.numel() > 1 else tensor.detach().cpu().reshape(()).expand(shape)
        if spread is not None and bool(spread.isfinite().all()):
            tensors[name] = spread.double()
    for words, function in functions.items():
        for name, spread in tensors.items():
            candidate = _finite(function(spread)) * mismatch.oracle
            square = float((candidate * candidate).sum())
            constant = float((candidate * mismatch.ours).sum()) / square if square else 0.0
            if not constant or not mismatch.equals(constant * candidate):
                continue
            if abs(constant - 1) > 1e-6 and spread.numel() > 2 and spread.unique().numel() == 2:
                continue  # any function of a tensor with two values is a number times any other one
            kind = "missing term" if words.startswith("divided") and "missing" in words else "another operand"
            is_one = abs(constant - 1) < 1e-6
            times = "" if is_one else f"{format_number(constant)} times "
            cause = "" if is_one else name_factor(constant, mismatch)
            statement = f"equals {times}the expected gradient {words.replace('{}', name)}"
            yield Finding(kind, mismatch.quantity, statement + (f" ({times.strip()}: {cause})" if cause else ""))


def find_slice_factors(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """One factor for each slice along a dimension of the gradient, the same in a second draw."""
    quotients, shape = _quotients(mismatch), mismatch.oracle.shape
    if quotients is None or mismatch.oracle.numel() < MIN_ELEMENTS:
        return
    for dim in range(len(shape)):
        if shape[dim] < 2 or mismatch.oracle.numel() < 2 * shape[dim]:
            continue
        lines = quotients.transpose(0, dim).reshape(shape[dim], -1)
        factors = lines.nanmedian(1).values
        if factors.isnan().any() or bool(((lines - factors[:, None]).abs() > 1e-6 * factors.abs()[:, None]).any()):
            continue
        wrong = [n for n in range(shape[dim]) if abs(float(factors[n]) - 1) > 1e-6]
        if not wrong or len({round(float(f), 6) for f in factors}) == 1:
            continue
        name = dimension_name(mismatch.oracle, dim)
        values = [float(factors[n]) for n in wrong]
        if len({round(v, 6) for v in values}) == 1:
            cause = name_factor(values[0], mismatch)
            statement = f"equals {format_number(values[0])} times the expected gradient in {slice_names(name, wrong)}"
            statement += (f" ({cause})" if cause else "") + ", and is right elsewhere"
        else:
            listed = ", ".join(format_number(float(f)) for f in factors[:MAX_LISTED])
            more = ", …" if shape[dim] > MAX_LISTED else ""
            line = index_name(mismatch.oracle, dim).removeprefix("the ")
            statement = f"equals the expected gradient with a factor for each {line}: {listed}{more}"
        yield Finding("constant factor", mismatch.quantity, statement)


def _constant_lines(quotients: Tensor) -> str:
    """Name of the lines along one dimension that have one factor each; "" if elements of a line differ."""
    for dim, size in enumerate(quotients.shape):
        lines = quotients.transpose(0, dim).reshape(size, -1)
        factors = lines.nanmedian(1).values[:, None]
        if 1 < size < quotients.numel() and not ((lines - factors).abs() > 1e-6 * factors.abs()).any():
            return index_name(quotients, dim).removeprefix("the ")
    return ""


def _quotients(mismatch: Mismatch) -> Tensor | None:
    """ours / oracle; NaN where both are 0. None if one of them is 0 alone."""
    ours, oracle = mismatch.ours, mismatch.oracle
    limit = 4 * mismatch.tolerance
    zero = oracle.abs() <= limit
    if bool((zero & (ours.abs() > limit)).any()) or zero.all() or not ours.isfinite().all():
        return None
    return torch.where(zero, torch.nan, ours / oracle)


def _finite(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor, 0.0)


def _tensors(mismatch: Mismatch, probe: Probe) -> dict[str, Tensor]:
    tensors = {name: value for name, value in mismatch.inputs.items() if value.dtype is not torch.bool}
    tensors = {name: value for name, value in tensors.items() if not value.is_complex()}
    output = mismatch.run.values.get(OUTPUT)
    if output is not None and output.is_floating_point():
        tensors["the output"] = output
    reals = [(name, value) for name, value in tensors.items() if value.is_floating_point()]
    for (a, x), (b, y) in itertools.islice(itertools.combinations(reals[:MAX_PAIRED], 2), MAX_PAIRED):
        if x.shape == y.shape and x.numel() > 1:
            tensors |= {f"({a} + {b})": x + y, f"({a} - {b})": x - y, f"({a}² + {b}²)": x * x + y * y}
    if probe.case.native is not None:
        calls = record_calls(probe.case.native, mismatch.inputs, with_integers=True)
        for name, result in results_by_name(calls).items():
            tensors.setdefault(name, result)
    return tensors


def find_own_factors(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """Another factor for each element, which does not depend on the incoming gradient: another derivative."""
    quotients = _quotients(mismatch)
    if quotients is None or mismatch.oracle.numel() < MIN_ELEMENTS:
        return
    output = mismatch.run.values.get(OUTPUT)
    if output is None or output.shape != mismatch.oracle.shape:
        return  # where elements share incoming gradients, the quotients need not depend on them
    other = probe.compare(mismatch, mismatch.inputs, probe.incoming(1))
    again = None if other is None else _quotients(other)
    if again is None:
        return
    both = quotients.isfinite() & again.isfinite()
    if int(both.sum()) < MIN_ELEMENTS or not bool(
        ((quotients - again)[both].abs() <= 1e-6 * again[both].abs()).all()
    ):
        return
    low, high = float(quotients[both].min()), float(quotients[both].max())
    x = mismatch.inputs.get(mismatch.input_name)
    near = ""
    if x is not None and x.shape == quotients.shape:
        places = [int(t) for t in (quotients.nan_to_num(low).argmax(), quotients.nan_to_num(high).argmin())]
        values = [f"{float(quotients.flatten()[n]):.6g} at {float(x.flatten()[n]):.6g}" for n in places]
        near = f"; the factor is {' and '.join(values)}"
    line = _constant_lines(quotients)
    if low == high or abs(high - low) <= 1e-6 * abs(high):
        statement = f"equals the expected gradient times one number that depends on the values, here {low:.6g}"
    elif line:
        statement = f"equals the expected gradient with another factor for each {line}, which depends on the values"
    else:
        statement = (
            "equals the expected gradient with another factor for each element: the derivative is another function"
        )
    yield Finding("factor by element", mismatch.quantity, statement, f"factors from {low:.4g} to {high:.4g}{near}")
