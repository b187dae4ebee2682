"""Arrays of SymPy symbols, their derivatives, and comparisons at a point. The definitions are the formula sheet's."""

from __future__ import annotations

import numpy as np
import sympy as sp
import torch

# For numbers near 1 the error of softmax and of sums of at most 12 products is about 1e-15 (measured: 2e-16). Whole
# numbers are not rounded, so their tests require equality.
ROUNDING = 1e-12


# -------------------------------------------------------------------------------------------- helpers


def symbols(name, *shape, **assumptions):
    """Array of symbols, each named by its index."""
    array = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        array[index] = sp.Symbol(f"{name}_{','.join(map(str, index))}", **assumptions)
    return array


def table(shape, entry):
    """Array with the entry ``entry(*index)`` at every index."""
    array = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        array[index] = entry(*index)
    return array


def jacobian(outputs, inputs):
    """∂output/∂input by SymPy, indexed by the output's indices and then the input's."""
    outputs, inputs = np.asarray(outputs, dtype=object), np.asarray(inputs, dtype=object)
    return table(
        outputs.shape + inputs.shape,
        lambda *index: sp.diff(outputs[index[: outputs.ndim]], inputs[index[outputs.ndim :]]),
    )


def kronecker(i, j):
    return int(i == j)


def is_zero(expression):
    """Return True if ``expression`` is 0 for all values of its symbols."""
    return sp.expand(expression) == 0 or sp.simplify(expression) == 0


def is_identical(a, b):
    assert np.shape(a) == np.shape(b)
    return all(is_zero(x - y) for x, y in zip(np.ravel(a), np.ravel(b), strict=True))


def rational_point(*arrays):
    """Different rational numbers for all symbols, negative for symbols declared negative."""
    variables = [symbol for array in arrays for symbol in np.ravel(array)]
    return {s: sp.Rational(7 * n + 3, 11) * (-1 if s.is_negative else 1) for n, s in enumerate(variables)}


def numbers(array, point):
    """Value of each expression at a point, rounded to float64."""
    values = [float(sp.N(sp.sympify(e).xreplace(point), 30)) for e in np.ravel(array)]
    return np.array(values).reshape(np.shape(array))


def tensor(array, point):
    return torch.from_numpy(numbers(array, point))


def is_refuted(a, b, *variables):
    """Return True if the two differ by more than rounding at a point, which disproves that they are identical."""
    assert np.shape(a) == np.shape(b)
    point = rational_point(*variables)
    return np.abs(numbers(a, point) - numbers(b, point)).max() > 1e-3


def close(ours, expected, within=ROUNDING):
    ours = np.asarray(ours)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= within


# ------------------------------------------------------------------------------- Dense, (6) to (8)


def dD_dx(w):
    """∂D/∂x of equation (7)."""
    return table((w.shape[1], w.shape[0]), lambda j, k: w[k, j])


def dD_dw(x, outputs):
    """∂D/∂w of equation (8)."""
    return table((outputs, len(x), outputs), lambda j, c, k: x[c] * kronecker(j, k))


# ---------------------------------------------------------------------------- Softmax, (11) and (12)


def S(z):
    """S of equation (11)."""
    return table(np.shape(z), lambda i: sp.exp(z[i]) / sum(sp.exp(z[k]) for k in range(len(z))))


# ----------------------------------------------------------------------- Cross-entropy, (13) to (15)


def J(z, y):
    """J^b of equation (14), with the softmax of z."""
    s = S(z)
    return sum(-y[i] * sp.log(s[i]) for i in range(len(z)))
