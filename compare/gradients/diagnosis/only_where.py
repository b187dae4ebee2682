"""Gradients that are wrong only where a condition holds, on indices or on values, in several draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from compare.gradients.diagnosis.conditions import separate
from compare.gradients.diagnosis.factors import name_factor
from compare.gradients.diagnosis.features import index_features, join, value_features
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.locations import worst_example
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.missing_terms import candidate_terms, product
from compare.gradients.diagnosis.native_calls import record_calls, results_by_name
from compare.gradients.diagnosis.probe import NUM_DRAWS, Probe
from compare.gradients.diagnosis.two_factors import find_two_factors
from compare.gradients.diagnosis.wording import format_number, index_name
from compare.gradients.numbers import has_gradient
from compare.gradients.run_variant import OUTPUT

MIN_SURPLUS = 3  # elements that should be 0
MAX_ELEMENTS = 20_000  # of a gradient whose elements are examined


def find_condition(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """The condition that separates wrong elements from right ones in all draws, and the ratio where it holds."""
    if mismatch.oracle.numel() > MAX_ELEMENTS or mismatch.wrong.all() or not mismatch.wrong.any():
        return
    draws = _draws(mismatch, probe)
    if not any(m.wrong.any() for m in draws[1:]) and len(draws) > 1 and mismatch.variant.data == "drawn":
        return  # it does not depend on what these draws have in common
    wrong = torch.cat([m.wrong.flatten() for m in draws])
    informative = torch.cat([((m.ours != 0) | (m.oracle != 0)).flatten() for m in draws])
    shape = mismatch.oracle.shape
    features = index_features(shape)
    features = join([features for _ in draws])
    separated = separate(features, wrong, informative)
    # Where the same elements are wrong in every draw, their values are not the reason.
    same = len(draws) > 1 and all(torch.equal(m.wrong, mismatch.wrong) for m in draws)
    for tensors in (_inputs, _outputs, _intermediate):
        if separated is None and not same:
            features = join([value_features(shape, tensors(m, probe)) for m in draws])
            separated = separate(features, wrong, informative)
    masked = next(_find_ignored_mask(mismatch, probe, draws), None)
    if masked is not None and (separated is None or separated[1]):
        yield masked
    if separated is None:
        return
    condition, is_index = separated
    zeros = _zeros_there(shape, draws, wrong, informative) if is_index else ""
    for d, size in enumerate(shape):
        if is_index and condition == f"{index_name(mismatch.oracle, d)} is 0 or {size - 1}":
            condition += " (the first and the last)"
    ratio = describe_ratio(
        torch.cat([m.ours[m.wrong] for m in draws]), torch.cat([m.oracle[m.wrong] for m in draws]), mismatch, probe
    )
    kind = "only at some indices" if is_index else "only for some values"
    kind = "unknown" if is_index and not ratio else kind  # a place is no name
    if zeros:
        kind, condition = "only at zeros", f"{zeros} is 0 ({condition})"
    if mismatch.variant.data == "whole numbers" and not is_index:
        kind = "only at ties" if " equals " in condition else "only at bounds"
        kind = "only at zeros" if condition.endswith(" is 0") else kind
    difference = "" if ratio else describe_difference(draws, probe.seed)
    statement = f"is wrong only where {condition}{f'; it is {ratio} there' if ratio else ''}"
    if " is not " in condition and not ratio and informative.all():  # elsewhere 0 may be right
        statement = f"is right only where {condition.replace(' is not ', ' is ')}"
    statement += f"; the missing term there is {difference}" if difference else ""
    elements = f"{int(wrong.sum())} of {wrong.numel()} elements in {len(draws)} draws"
    evidence = f"{worst_example(mismatch)}; {elements} are wrong"
    yield Finding(kind, mismatch.quantity, statement, evidence)


def _zeros_there(shape: torch.Size, draws: list[Mismatch], wrong: Tensor, informative: Tensor) -> str:
    """Name of an input that is exactly 0 at the wrong elements in all draws, and at no right one; "" without one."""
    features = join([value_features(shape, {n: v for n, v in m.inputs.items() if has_gradient(v)}) for m in draws])
    right = informative & ~wrong
    return next((f.name for f in features if not f.values[wrong].any() and bool((f.values[right] != 0).all())), "")


def find_condition_of_factor(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """One factor where a condition holds and another elsewhere, in all draws."""
    if mismatch.oracle.numel() > MAX_ELEMENTS:
        return
    draws, shape = _draws(mismatch, probe), mismatch.oracle.shape
    if len(draws) > 1:
        kinds = (lambda m: join([index_features(shape)]), *(
            lambda m, tensors=tensors: value_features(shape, tensors(m, probe))
            for tensors in (_inputs, _outputs, _intermediate)
        ))  # fmt: skip
        yield from find_two_factors(draws, [join([kind(m) for m in draws]) for kind in kinds])


def _draws(mismatch: Mismatch, probe: Probe) -> list[Mismatch]:
    others = (probe.mismatch(mismatch, n) for n in range(1, NUM_DRAWS))
    return [m for m in (mismatch, *others) if m is not None and m.oracle.shape == mismatch.oracle.shape]


def _find_ignored_mask(mismatch: Mismatch, probe: Probe, draws: list[Mismatch]) -> Iterator[Finding]:
    """Elements that should be 0 and are not, where an integer or truth value says so; others may be wrong as well."""
    ours = torch.cat([m.ours.flatten() for m in draws])
    oracle = torch.cat([m.oracle.flatten() for m in draws])
    surplus, shape = (oracle == 0) & (ours != 0), mismatch.oracle.shape
    if bool(((oracle != 0) & (ours == 0)).any()):
        return  # then the gradient is at other elements: more than a mask is wrong
    masks = {name: value for name, value in mismatch.inputs.items() if not value.is_floating_point()}
    if int(surplus.sum()) < MIN_SURPLUS or not masks:
        return
    features = join([value_features(shape, {name: m.inputs[name] for name in masks}) for m in draws])
    separated = separate(features, surplus, oracle != 0)
    if separated is not None:
        statement = f"is not 0, as it should be, where {separated[0]}: the mask is ignored"
        yield Finding("step left out", mismatch.quantity, statement, worst_example(mismatch))


def describe_ratio(ours: Tensor, oracle: Tensor, mismatch: Mismatch, probe: Probe) -> str:
    """ours / oracle in words if it is one number: "0", "2 times the expected value"; otherwise ""."""
    if not ours.any():
        return "0"
    if not oracle.any():
        return "not 0 as it should be"
    nonzero = oracle != 0
    quotients = ours[nonzero] / oracle[nonzero]
    if not bool(nonzero.all()) or not bool(quotients.isfinite().all()):
        return ""
    factor = float(quotients.median())
    if not bool(((quotients - factor).abs() <= 1e-6 * abs(factor)).all()):
        return ""
    name = name_factor(factor, mismatch)
    return f"{format_number(factor)} times the expected value" + (f" ({name})" if name else "")


def describe_difference(draws: list[Mismatch], seed: int) -> str:
    """The missing term in the wrong elements if it is a number times a tensor that backward has; otherwise ""."""
    candidates = [candidate_terms(m, seed) for m in draws]
    difference = torch.cat([(m.oracle - m.ours)[m.wrong] for m in draws])
    if len(difference) < MIN_SURPLUS or not bool(difference.isfinite().all()):
        return ""
    for name in candidates[0]:
        if name == "1" or not all(name in terms for terms in candidates):
            continue
        term = torch.cat([terms[name][m.wrong] for terms, m in zip(candidates, draws, strict=True)])
        square = float((term * term).sum())
        factor = float((term * difference).sum()) / square if square else 0.0
        if factor and bool(((factor * term - difference).abs() <= 1e-7 * difference.abs().max()).all()):
            return product(factor, name)
    return ""


def _inputs(mismatch: Mismatch, probe: Probe) -> dict[str, Tensor]:
    """Inputs of one draw; the own input comes first."""
    inputs: Mapping[str, Tensor] = mismatch.inputs
    own = {name: inputs[name] for name in (mismatch.input_name,) if name in inputs}
    return own | {name: value for name, value in inputs.items() if name not in own}


def _outputs(mismatch: Mismatch, probe: Probe) -> dict[str, Tensor]:
    """Output and incoming gradient of one draw."""
    output = mismatch.run.values.get(OUTPUT)
    if output is None or not output.is_floating_point():
        return {}
    return {"the output": output, "the incoming gradient": mismatch.incoming(probe.seed)(0, output)}


def _intermediate(mismatch: Mismatch, probe: Probe) -> dict[str, Tensor]:
    """Results inside of native, by the name of the operation."""
    if probe.case.native is None:
        return {}
    return results_by_name(record_calls(probe.case.native, mismatch.inputs))
