"""SymPy's derivatives of a whole network are identical to the recursion of δ, equations (16) to (21), for L = 2.

``test_symbolic.py`` says which three kinds of test there are.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import sympy as sp
import torch

from manualgrad import DocumentCNN, backprop
from tests.ops.symbolic import J, S, close, dD_dw, dD_dx, jacobian, numbers, symbols, table, tensor

X0, W0, B0 = symbols("x", 3, 7), symbols("w", 2, 2), sp.Symbol("b")
W1, B1, Y2 = symbols("u", 3, 2), symbols("c", 2), symbols("y", 2)
ETA = sp.Symbol("η")
IMAGE = [[-4, 4, -3, -1, 2, -2, -2], [3, 3, -4, -4, 1, 2, 1], [-1, -1, 3, -4, -4, 3, 2]]
VALUES = [
    (X0, IMAGE),
    (W0, [[2, 1], [-1, 3]]),
    (np.array(B0), sp.Rational(1, 2)),
    (W1, [[1, -2], [3, 1], [sp.Rational(1, 2), -1]]),
    (B1, [sp.Rational(1, 3), -1]),
    (Y2, [sp.Rational(3, 4), sp.Rational(5, 8)]),  # their sum is not 1
    (np.array(ETA), sp.Rational(1, 4)),
]
SCALE = {**dict.fromkeys(X0.ravel(), 10), **dict.fromkeys(W1.ravel(), 2)}  # keeps the logits small
POINT = {
    symbol: sp.sympify(value) / SCALE.get(symbol, 1)
    for array, values in VALUES
    for symbol, value in zip(np.ravel(array), np.ravel(np.array(values, dtype=object)), strict=True)
}
MAXIMA = [(1, 1), None, (0, 0)]  # (p, q) of each window's maximum at POINT; None: no positive value


def z0(x, w, b):
    """z⁰ of equation (17) with f⁰ = C of (1), s1 = s2 = 1."""
    return table((2, 6), lambda i, j: sum(x[i + p, j + q] * w[1 - p, 1 - q] for p, q in np.ndindex(2, 2)) + b)


def literal_max(z):
    """x¹ of equation (16) with σ⁰ = F∘P∘R and the literal maxima of (4) and (9)."""
    return [sp.Max(*(sp.Max(z[p, 2 * j + q], 0) for p, q in np.ndindex(2, 2))) for j in range(3)]


def smooth_max(z):
    """x¹ near POINT, where the indices of the maxima are known."""
    return [sp.Integer(0) if index is None else z[index[0], 2 * j + index[1]] for j, index in enumerate(MAXIMA)]


@cache
def network(maximum):
    """z⁰, x¹, z¹ and J^b as expressions of the symbols."""
    z_0 = z0(X0, W0, B0)
    x_1 = maximum(z_0)
    z_1 = table((2,), lambda j: sum(x_1[i] * W1[i, j] for i in range(3)) + B1[j])  # (17), f¹ = D of (6)
    return z_0, x_1, z_1, J(z_1, Y2)


def recursion(z_0, x_1, z_1, *, wrong=""):
    """δ¹, δ⁰, Δw¹, Δb¹, Δw⁰, Δb⁰ by (18) to (21), or with the mistake ``wrong``."""
    s = S(z_1)
    targets = 1 if wrong == "last line of (15)" else sum(Y2)
    eta = ETA if wrong == "sign" else -ETA
    delta_1 = table((2,), lambda i: eta * (s[i] * targets - Y2[i]))  # (19) with (15)
    factor = dD_dx(W1)  # (7)
    if wrong == "transposed index":
        factor = W1.ravel().reshape(2, 3)
    delta_x = delta_1 @ factor  # (20), δ¹ ∂D/∂x¹
    delta_0 = np.full((2, 6), sp.Integer(0), dtype=object)
    for j, index in enumerate(MAXIMA):  # P⁻¹ and ∂R/∂z: 1 where z > 0, 0 where z < 0
        if index is not None:
            p, q = index
            delta_0[p, 2 * j + q] += delta_x[j]
        elif wrong == "no ∂R/∂z":
            delta_0[0, 2 * j] += delta_x[j]
    if wrong == "P⁻¹ to the first entry":
        delta_0 = table((2, 6), lambda i, j: delta_x[j // 2] if (i, j % 2) == (0, 0) and j != 2 else sp.Integer(0))
    step_w1 = np.tensordot(delta_1, dD_dw(x_1, 2), 1)  # (21) with (8)
    if wrong == "no δ in (8)":
        step_w1 = table((3, 2), lambda c, k: x_1[c] * sum(delta_1))
    flip = (lambda n: n) if wrong == "kernel not flipped" else (lambda n: 1 - n)
    step_w0 = table(
        (2, 2), lambda c, t: sum(delta_0[i, j] * X0[i + flip(c), j + flip(t)] for i, j in np.ndindex(2, 6))
    )  # (21) with (3)
    step_b1 = delta_1  # (18)
    step_b0 = np.array(delta_0[0, 0] if wrong == "b⁰ not summed" else sum(delta_0.ravel()))  # (18)
    return {"δ1": delta_1, "δ0": delta_0, "Δw1": step_w1, "Δb1": step_b1, "Δw0": step_w0, "Δb0": step_b0}


@cache
def by_sympy(cost):
    """−η ∂J^b/∂w and −η ∂J^b/∂b, the first lines of (21) and (18), by SymPy."""
    parameters = {"Δw1": W1, "Δb1": B1, "Δw0": W0, "Δb0": np.array(B0)}
    return {name: -ETA * jacobian(cost, parameter) for name, parameter in parameters.items()}


def polynomial(expression, z_1):
    """``expression`` with symbols for e^{z_0} and e^{z_1}: a quotient of polynomials, as ``cancel`` needs it."""
    e = sp.symbols("e_0 e_1", positive=True)

    def powers(exponent):
        for m, n in itertools.product(range(-2, 3), repeat=2):
            if sp.expand(exponent - m * z_1[0] - n * z_1[1]) == 0:
                return e[0] ** m * e[1] ** n
        raise AssertionError(f"expected an exponent m z_0 + n z_1 with small integers m and n, got {exponent}")

    return sp.sympify(expression).replace(sp.exp, powers)


def is_same_quotient(a, b, z_1):
    return all(
        sp.cancel(sp.together(polynomial(x, z_1) - polynomial(y, z_1))) == 0
        for x, y in zip(np.ravel(a), np.ravel(b), strict=True)
    )


def test_the_maxima_at_the_point_have_the_indices_of_the_table():
    z = numbers(z0(X0, W0, B0), POINT)
    assert (np.abs(z) > 0.01).all()
    for j, index in enumerate(MAXIMA):
        window = z[:, 2 * j : 2 * j + 2]
        if index is None:
            assert (window < 0).all()
        else:
            assert window[index] > 0 and np.sort(window.ravel())[-2] < window[index] - 0.01
    exact = [e.xreplace(POINT) for e in literal_max(z0(X0, W0, B0))]
    assert exact == [e.xreplace(POINT) for e in smooth_max(z0(X0, W0, B0))]


# proves eq. (19), (20), (21)
def test_a_full_step_of_the_recursion_is_minus_eta_times_the_derivative_of_the_cost():
    """The two are identical in x⁰, w⁰, b⁰, w¹, b¹, y and η, wherever the maxima have the same indices as at POINT."""
    z_0, x_1, z_1, cost = network(smooth_max)
    steps = recursion(z_0, x_1, z_1)
    for name, expected in by_sympy(cost).items():
        assert is_same_quotient(steps[name], expected, z_1), name


# proves eq. (18)
def test_delta_itself_is_minus_eta_times_the_derivative_of_the_cost_by_z():
    """(18) is δ^l = −η ∂J^b/∂z^l; z^l are symbols, and the layers above are expressions of them."""
    z, u = symbols("z", 2, 6), symbols("ζ", 2)
    x_1 = smooth_max(z)
    z_1 = table((2,), lambda j: sum(x_1[i] * W1[i, j] for i in range(3)) + B1[j])
    steps = recursion(z, x_1, z_1)
    assert is_same_quotient(steps["δ0"], -ETA * jacobian(J(z_1, Y2), z), z_1)
    assert is_same_quotient(recursion(z, x_1, u)["δ1"], -ETA * jacobian(J(u, Y2), u), u)


def test_with_the_maxima_written_as_maxima_the_derivatives_are_the_same_at_the_point():
    """SymPy's derivative of Max is a Heaviside function of a difference, 0 or 1 at POINT: no index is chosen by hand.
    The comparison is to 40 digits."""
    z_0, x_1, z_1, _ = network(smooth_max)
    steps = recursion(z_0, x_1, z_1)
    for name, expected in by_sympy(network(literal_max)[3]).items():
        for step, derivative in zip(np.ravel(steps[name]), np.ravel(expected), strict=True):
            assert abs(sp.N(step.xreplace(POINT) - derivative.xreplace(POINT), 50)) < 1e-40, name


def tiny_model():
    """The network as a DocumentCNN at POINT, with x and y."""
    model = DocumentCNN(1, (3, 7), channels=(1,), kernel_size=2, hidden=(), classes=2, dtype=torch.float64)
    convolution, dense = model.layers_with_weights()
    with torch.no_grad():
        convolution.weight.copy_(tensor(W0, POINT)[None, None])
        convolution.bias.copy_(tensor(np.array([B0]), POINT))
        dense.weight.copy_(tensor(W1, POINT).t())
        dense.bias.copy_(tensor(B1, POINT))
    return model, tensor(X0, POINT)[None, None], tensor(Y2, POINT)[None]


@pytest.mark.parametrize("steps_of", [backprop.backpropagate, backprop.per_example])
def test_the_code_of_16_to_21_is_what_sympy_finds(steps_of):
    cost = network(smooth_max)[3]
    expected = {name: numbers(steps, POINT) for name, steps in by_sympy(cost).items()}
    steps = steps_of(*tiny_model(), eta=float(POINT[ETA]))
    close(steps.weights[0].reshape(2, 2), expected["Δw0"])
    close(steps.biases[0].reshape(()), expected["Δb0"])
    close(steps.weights[1].reshape(2, 3).t(), expected["Δw1"])
    close(steps.biases[1].reshape(2), expected["Δb1"])
    by_recursion = recursion(*network(smooth_max)[:3])
    close(steps.deltas[0].reshape(2, 6), numbers(by_recursion["δ0"], POINT))
    close(steps.deltas[1].reshape(2), numbers(by_recursion["δ1"], POINT))


def test_autograd_of_the_tiny_network_is_what_sympy_finds():
    cost = network(smooth_max)[3]
    model, x, y = tiny_model()
    model.cost(x, y).backward()
    expected, eta = by_sympy(cost), float(POINT[ETA])
    convolution, dense = model.layers_with_weights()
    close(-eta * convolution.weight.grad[0, 0], numbers(expected["Δw0"], POINT))
    close(-eta * convolution.bias.grad.view(()), numbers(expected["Δb0"], POINT))
    close(-eta * dense.weight.grad.t(), numbers(expected["Δw1"], POINT))
    close(-eta * dense.bias.grad, numbers(expected["Δb1"], POINT))


WRONG_RECURSIONS = [
    "sign",
    "last line of (15)",
    "transposed index",
    "P⁻¹ to the first entry",
    "no ∂R/∂z",
    "no δ in (8)",
    "kernel not flipped",
    "b⁰ not summed",
]


@pytest.mark.parametrize("wrong", WRONG_RECURSIONS)
def test_a_wrong_recursion_is_refuted(wrong):
    z_0, x_1, z_1, cost = network(smooth_max)
    steps, expected = recursion(z_0, x_1, z_1, wrong=wrong), by_sympy(cost)
    different = {
        name for name in expected
        if np.abs(numbers(steps[name], POINT) - numbers(expected[name], POINT)).max() > 1e-3
    }  # fmt: skip
    assert different
    assert not all(is_same_quotient(steps[name], expected[name], z_1) for name in different)
