"""Elementwise functions: the derivative that backward uses, by its formula, beside the right one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from compare.gradients.diagnosis.features import spread_to
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.wording import format_number
from compare.gradients.run_variant import OUTPUT

MIN_ELEMENTS = 6
RTOL = 1e-9
Elementwise = Callable[[Tensor], Tensor]

# Formulas of one tensor t. The simplest first.
FORMULAS: dict[str, Elementwise] = {
    "1": torch.ones_like, "{}": lambda t: t, "1/{}": lambda t: 1 / t, "{}²": lambda t: t**2, "{}³": lambda t: t**3,
    "1/{}²": lambda t: t**-2, "|{}|": torch.abs, "sign({})": torch.sign, "sqrt {}": lambda t: t.abs().sqrt(),
    "1/sqrt {}": lambda t: t.abs().rsqrt(), "(1 - {})": lambda t: 1 - t, "(1 + {})": lambda t: 1 + t,
    "1/(1 - {})": lambda t: 1 / (1 - t), "1/(1 + {})": lambda t: 1 / (1 + t), "(1 - {}²)": lambda t: 1 - t**2,
    "(1 + {}²)": lambda t: 1 + t**2, "1/(1 - {}²)": lambda t: 1 / (1 - t**2), "1/(1 + {}²)": lambda t: 1 / (1 + t**2),
    "1/(1 + |{}|)": lambda t: 1 / (1 + t.abs()), "1/(1 + |{}|)²": lambda t: (1 + t.abs()) ** -2,
    "sqrt(1 - {}²)": lambda t: (1 - t**2).sqrt(), "sqrt(1 + {}²)": lambda t: (1 + t**2).sqrt(),
    "1/sqrt(1 - {}²)": lambda t: (1 - t**2).rsqrt(), "1/sqrt(1 + {}²)": lambda t: (1 + t**2).rsqrt(),
    "1/sqrt({}² - 1)": lambda t: (t**2 - 1).rsqrt(), "{} (1 - {})": lambda t: t * (1 - t),
    "1/({} (1 - {}))": lambda t: 1 / (t * (1 - t)), "(1 - 2 {})": lambda t: 1 - 2 * t,
    "exp({})": torch.exp, "exp(-{})": lambda t: torch.exp(-t), "(exp({}) - 1)": torch.expm1,
    "exp(-{}²)": lambda t: torch.exp(-t * t), "exp(-{}²/2)": lambda t: torch.exp(-t * t / 2),
    "sigmoid({})": torch.sigmoid, "sigmoid({}) (1 - sigmoid({}))": lambda t: t.sigmoid() * (1 - t.sigmoid()),
    "tanh({})": torch.tanh, "(1 - tanh({})²)": lambda t: 1 - t.tanh() ** 2, "(1 - tanh({}))": lambda t: 1 - t.tanh(),
    "sin({})": torch.sin, "cos({})": torch.cos, "sinh({})": torch.sinh, "cosh({})": torch.cosh,
    "log({})": torch.log, "(1 + log({}))": lambda t: 1 + t.log(), "(1 + tan({})²)": lambda t: 1 + t.tan() ** 2,
}  # fmt: skip


def find_used_derivative(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """The gradient is the incoming one times a formula of the input, the output or another input."""
    used = _quotients(mismatch, probe, mismatch.ours)
    if used is None or used.numel() < MIN_ELEMENTS or not _is_elementwise(mismatch, probe):
        return
    tensors = _tensors(mismatch)
    got = _formula(used, tensors)
    if got is None:
        return
    right = _quotients(mismatch, probe, mismatch.oracle)
    expected = None if right is None else _formula(right, tensors)
    statement = f"equals the incoming gradient times {got}; that is not the derivative"
    statement += f", which is {expected}" if expected is not None else ""
    yield Finding("factor by element", mismatch.quantity, statement)


def _quotients(mismatch: Mismatch, probe: Probe, gradient: Tensor) -> Tensor | None:
    """The gradient divided by the incoming one; None if their shapes differ."""
    output = mismatch.run.values.get(OUTPUT)
    if output is None or not output.is_floating_point() or output.shape != gradient.shape:
        return None
    quotients = gradient / mismatch.incoming(probe.seed)(0, output).double().cpu()
    return quotients if bool(quotients.isfinite().all()) else None


def _is_elementwise(mismatch: Mismatch, probe: Probe) -> bool:
    """True if the quotient does not change with the incoming gradient."""
    other = probe.compare(mismatch, mismatch.inputs, probe.incoming(1))
    if other is None:
        return False
    output = mismatch.run.values[OUTPUT]
    pairs = [
        (m / mismatch.incoming(probe.seed)(0, output).double().cpu(), o / probe.incoming(1)(0, output).double().cpu())
        for m, o in ((mismatch.ours, other.ours), (mismatch.oracle, other.oracle))
    ]
    return all(bool(((a - b).abs() <= 1e-6 * a.abs() + 1e-12).all()) for a, b in pairs)


def _tensors(mismatch: Mismatch) -> dict[str, Tensor]:
    """The own input, the output, and other inputs, in the gradient's shape."""
    shape, inputs = mismatch.oracle.shape, mismatch.inputs
    named: Mapping[str, Tensor | None] = {
        mismatch.input_name: inputs.get(mismatch.input_name), "the output": mismatch.run.values.get(OUTPUT), **inputs
    }  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for name, value in named.items():
        spread = None if value is None or not value.is_floating_point() else spread_to(value, shape)
        if spread is not None:
            tensors[name] = spread.double()
    return tensors


def _formula(target: Tensor, tensors: Mapping[str, Tensor]) -> str | None:
    """A number times one formula or the product of two; None if there is none."""
    values: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for words, function in FORMULAS.items():
            value = function(tensor)
            if bool(value.isfinite().all()):
                values.setdefault(words.replace("{}", name if name.isidentifier() else f"({name})"), value.flatten())
    if not values:
        return None
    names, matrix, goal = list(values), torch.stack(list(values.values())), target.flatten()
    factor = _factor(matrix, goal)
    if factor is not None:
        return _words(factor[1], names[factor[0]])
    for n, name in enumerate(names):
        factor = _factor(matrix[n:] * matrix[n], goal)
        if factor is not None:
            return _words(factor[1], f"{name} {names[n + factor[0]]}")
    return None


def _factor(candidates: Tensor, goal: Tensor) -> tuple[int, float] | None:
    """The first candidate of which ``goal`` is a multiple, and the number."""
    square = (candidates * candidates).sum(1)
    factors = torch.where(square > 0, (candidates @ goal) / square, 0.0)
    errors = (factors[:, None] * candidates - goal).abs().amax(1)
    fits = (errors <= RTOL * goal.abs().max()) & (factors != 0)
    if not fits.any():
        return None
    first = int(fits.double().argmax())
    return first, float(factors[first])


def _words(factor: float, name: str) -> str:
    if abs(factor - 1) < 1e-6:
        return name
    return f"-{name}" if abs(factor + 1) < 1e-6 else f"{format_number(factor)} {name}"
