"""Backward with other incoming gradients: it must be linear in them, and add up the contributions of all outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from compare.case import CaseError
from compare.gradients.case_runner import CaseRunner
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.numbers import as_real
from compare.gradients.oracle import Values
from compare.gradients.run_variant import OUTPUT, output_name, run_variant
from compare.gradients.variants import SECOND_DRAW, Variant, incoming_gradient

KIND = "not linear in the incoming gradient"
# Powers of two, so that a linear backward returns the same digits; half types would overflow beyond 2**3.
EXPONENT, EXPONENT_HALF = 20, 3
SLACK = 4  # another incoming gradient may have terms that cancel more than those the tolerance was measured with

Incoming = Callable[[int, Tensor], Tensor | None]


def find_nonlinearity(runner: CaseRunner, variant: Variant, tolerances: dict[str, float]) -> Iterator[Finding]:
    """One finding for each gradient that is wrong for another incoming gradient than that of ``variant``.

    Args:
        tolerances: tolerance of each gradient that is right in ``variant``, by quantity.
    """
    oracle = runner.oracles(variant)
    reported: set[str] = set()
    outputs = [oracle.values[output_name(n)] for n in range(len(oracle.values)) if output_name(n) in oracle.values]
    for description, incoming, factor in _incoming_gradients(variant, runner.seed, len(outputs)):
        ours = run_variant(runner.case.ours, oracle.inputs, variant, runner.seed, incoming)
        try:
            expected, errors = _expected(runner, variant, incoming, factor)
        except CaseError:  # native accepts no such incoming gradient
            continue
        scale = 2.0 if factor is None else abs(factor) or 1.0
        if ours.error is not None:
            if OUTPUT not in reported:
                reported.add(OUTPUT)
                message = f"{type(ours.error).__name__}: {ours.error}"
                if _expects_no_none(runner, variant, incoming):
                    statement = f"an exception is raised if {description.removesuffix(' alone')} alone is used: "
                    statement += "the incoming gradient of an output that nothing uses is None (not materialized)"
                    yield Finding("raises", "backward", statement, message)
                    continue
                yield Finding(KIND, "backward", f"an exception is raised for {description}", message)
            continue
        native = expected
        if runner.case.native is not None:
            native = run_variant(runner.case.native, oracle.inputs, variant, runner.seed, incoming).values
        for quantity, tolerance in tolerances.items():
            if quantity in reported:
                continue
            got, wanted, other = (r.get(quantity) for r in (ours.values, expected, native))
            if wanted is None or other is None:
                continue
            got = torch.zeros_like(wanted) if got is None else got
            got, other = (as_real(t).double() for t in (got, other))
            if got.shape != wanted.shape:
                continue
            limit = SLACK * scale * tolerance + torch.finfo(variant.dtype).tiny
            limit = limit + 2 * (other - wanted).abs() + errors.get(quantity, 0.0)
            comparable = other.isfinite() & wanted.isfinite()
            jumps = oracle.trials.sensitivity(quantity).jumps
            if jumps is not None:
                comparable &= ~jumps
            wrong = comparable & ~((got - wanted).abs() <= limit)
            if wrong.any():
                reported.add(quantity)
                index = tuple(torch.nonzero(wrong)[0].tolist())
                evidence = f"at {list(index)}: got {float(got[index]):.6g}, expected {float(wanted[index]):.6g}"
                yield Finding(KIND, quantity, f"is wrong for {description}", evidence)


def _expects_no_none(runner: CaseRunner, variant: Variant, incoming: Incoming) -> bool:
    """True if backward raises for None, and does not for zeros in its place."""
    has_none = False

    def with_zeros(n: int, output: Tensor) -> Tensor:
        nonlocal has_none
        gradient = incoming(n, output)
        has_none |= gradient is None
        return torch.zeros_like(output) if gradient is None else gradient

    run = run_variant(runner.case.ours, runner.oracles(variant).inputs, variant, runner.seed, with_zeros)
    return has_none and run.error is None


def _expected(
    runner: CaseRunner, variant: Variant, incoming: Incoming, factor: float | None
) -> tuple[Values, dict[str, Tensor]]:
    """Values for another incoming gradient, and bounds on their errors; multiples of finite differences are known."""
    oracle = runner.oracles(variant)
    if runner.case.native is not None or factor is None:
        return runner.oracles.rerun(variant, incoming)
    multiples = {name: None if value is None else factor * value for name, value in oracle.values.items()}
    return multiples, {
        name: torch.where(error.isinf(), error, abs(factor) * error) for name, error in oracle.errors.items()
    }


def find_nonlinear_mistake(runner: CaseRunner, finding: Finding) -> Finding:
    """Return ``finding``, of a gradient that is wrong without a pattern, or one that says it is not linear."""
    variant, quantity = runner.plain, finding.quantity
    inputs = runner.oracles(variant).inputs
    exponent = EXPONENT if variant.dtype in (torch.float64, torch.float32) else EXPONENT_HALF
    once, scaled = (
        run_variant(
            runner.case.ours, inputs, variant, runner.seed,
            lambda n, output, factor=factor: factor * incoming_gradient(output, variant, runner.seed + n),
        ).values.get(quantity)
        for factor in (1.0, 2.0**exponent)
    )  # fmt: skip
    if once is None or scaled is None or once.shape != scaled.shape or not bool(once.isfinite().all()):
        return finding
    once, scaled = (as_real(t).double() for t in (once, scaled))
    limit = SLACK * torch.finfo(variant.dtype).eps * float(once.abs().max() if once.numel() else 0.0)
    if bool(((scaled / 2.0**exponent - once).abs() <= limit).all()):
        return finding
    same = bool(((scaled - once).abs() <= limit).all())
    statement = "does not change with the incoming gradient" if same else "is not linear in the incoming gradient"
    return Finding(KIND, quantity, statement, f"{finding.statement}; {finding.evidence}")


def _incoming_gradients(
    variant: Variant, seed: int, num_outputs: int
) -> Iterator[tuple[str, Incoming, float | None]]:
    """(description, incoming gradient, the factor if it is a multiple of the variant's)."""
    second = Variant(variant.dtype, data=SECOND_DRAW, device=variant.device)
    exponent = EXPONENT if variant.dtype in (torch.float64, torch.float32) else EXPONENT_HALF

    def draw(n: int, output: Tensor, of: Variant = variant) -> Tensor:
        return incoming_gradient(output, of, seed + n)

    def scaled(factor: float) -> Incoming:
        return lambda n, output: factor * draw(n, output)

    yield "an incoming gradient of zeros", scaled(0.0), 0.0
    yield "minus the incoming gradient", scaled(-1.0), -1.0
    for e in (exponent, -exponent):
        yield f"2**{e} times the incoming gradient", scaled(2.0**e), 2.0**e
    yield "an incoming gradient with zeros at every second element", lambda n, o: draw(n, o) * _every_second(o), None
    yield "the sum of two incoming gradients", lambda n, o: draw(n, o) + draw(n, o, second), None
    for k in range(num_outputs) if num_outputs > 1 else ():
        yield f"{output_name(k)} alone", lambda n, output, k=k: draw(n, output) if n == k else None, None


def _every_second(output: Tensor) -> Tensor:
    """Ones and zeros in turn, in the shape of ``output``."""
    positions = torch.arange(output.numel(), device=output.device).reshape(output.shape)
    return (positions % 2).double()
