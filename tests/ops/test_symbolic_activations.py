"""SymPy's derivatives of ReLU, softmax and the cross-entropy are identical to the hand-derived formulas.

``test_symbolic.py`` says which three kinds of test there are.
"""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch

from manualgrad import functional
from manualgrad.ops.relu import relu_backward
from manualgrad.ops.softmax import softmax_backward, softmax_backward_apply, softmax_forward
from manualgrad.ops.softmax_cross_entropy import (
    cross_entropy_backward,
    cross_entropy_forward,
    cross_entropy_grad_target,
    cross_entropy_jvp_apply,
)
from tests.ops.symbolic import (
    J,
    S,
    close,
    is_identical,
    is_refuted,
    jacobian,
    kronecker,
    numbers,
    rational_point,
    symbols,
    table,
    tensor,
)

ABOVE, BELOW = symbols("a", 2, positive=True), symbols("n", 2, negative=True)
Z = np.array([ABOVE[0], BELOW[0], ABOVE[1], BELOW[1]])


def R(z):
    """R of equation (9)."""
    return table(np.shape(z), lambda i: sp.Piecewise((z[i], z[i] >= 0), (0, z[i] < 0)))


def dR_dz(z):
    """∂R/∂z of equation (10), for symbols of known sign and for numbers."""

    def entry(i, j):
        if z[i] > 0:
            return kronecker(i, j)
        return sp.Rational(1, 2) * kronecker(i, j) if z[i] == 0 else 0

    return table((len(z), len(z)), entry)


# proves eq. (10)
def test_equation_10_is_the_derivative_of_9_away_from_zero():
    assert is_identical(jacobian(R(Z), Z), dR_dz(Z))


# proves eq. (10)
def test_at_zero_equation_10_is_the_mean_of_the_two_one_sided_derivatives():
    h = sp.Symbol("h", positive=True)
    above, below, at_zero = R([h])[0], R([-h])[0], R([sp.Integer(0)])[0]
    right = sp.limit((above - at_zero) / h, h, 0)
    left = sp.limit((at_zero - below) / h, h, 0)
    assert (right, left) == (1, 0)
    assert sp.limit((above - below) / (2 * h), h, 0) == (right + left) / 2 == dR_dz([sp.Integer(0)])[0, 0]


def test_the_code_of_10_is_exactly_the_derivative_that_sympy_finds():
    point = rational_point(Z)
    ours = relu_backward(torch.eye(4, dtype=torch.float64), tensor(Z, point), 0.5)
    assert np.array_equal(ours, numbers(jacobian(R(Z), Z), point))
    at_zero = relu_backward(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 0.5)
    assert at_zero.item() == float(dR_dz([sp.Integer(0)])[0, 0])


WRONG_10 = {
    "no δ_ij": lambda: table((4, 4), lambda i, j: 1 if Z[i] > 0 else 0),
    "sign": lambda: -dR_dz(Z),
    "also below zero": lambda: table((4, 4), kronecker),
    "above and below exchanged": lambda: dR_dz(-Z),
}


@pytest.mark.parametrize("wrong", WRONG_10.values(), ids=WRONG_10)
def test_a_wrong_equation_10_is_refuted(wrong):
    assert not is_identical(jacobian(R(Z), Z), wrong())
    assert is_refuted(jacobian(R(Z), Z), wrong(), Z)


# ---------------------------------------------------------------------------- Softmax, (11) and (12)

ZS, G, V = symbols("z", 3), symbols("g", 3), symbols("v", 3)


def dS_dz(s):
    """∂S/∂z of equation (12), from s = S(z)."""
    return table((len(s), len(s)), lambda i, j: s[i] * (1 - s[j]) if i == j else -s[i] * s[j])


# proves eq. (12)
def test_equation_12_is_the_derivative_of_11():
    assert is_identical(jacobian(S(ZS), ZS), dS_dz(S(ZS)))


# proves eq. (11)
def test_softmax_does_not_change_with_a_shift_of_z():
    """S(z) = S(z − m), so the code may subtract max z."""
    shift = sp.Symbol("m")
    assert is_identical(S(ZS - shift), S(ZS))


def softmax_point(*arrays):
    """Small rational numbers of both signs, so that no exponential is negligible beside another."""
    variables = [symbol for array in arrays for symbol in np.ravel(array)]
    return {s: sp.Rational((5 * n) % 7 - 3, 4) + sp.Rational(n, 50) for n, s in enumerate(variables)}


def test_the_code_of_12_is_the_derivative_that_sympy_finds():
    point = softmax_point(ZS)
    s = softmax_forward(tensor(ZS, point), -1)
    close(s, numbers(S(ZS), point))
    ours = softmax_backward(torch.eye(3, dtype=torch.float64), s, -1)
    close(ours, numbers(jacobian(S(ZS), ZS), point))


# proves second derivatives of softmax
def test_the_second_derivative_of_softmax():
    """The derivative of B_i = S_i (g_i − Σ_k g_k S_k) along S holds for any s, which need not sum to 1."""
    s = symbols("s", 3)
    b = table((3,), lambda i: s[i] * (G[i] - sum(G * s)))
    assert is_identical(b, G @ dS_dz(s))
    by_hand = table((3,), lambda j: V[j] * (G[j] - sum(G * s)) - G[j] * sum(V * s))
    assert is_identical(jacobian(sum(V * b), s), by_hand)
    point = softmax_point(s, G, V)
    v, g, ours = (tensor(array, point) for array in (V, G, s))
    ours.requires_grad_()
    (along_s,) = torch.autograd.grad(softmax_backward_apply(g, ours, -1), ours, v)
    close(along_s, numbers(by_hand, point))
    assert is_refuted(jacobian(sum(V * b), s), table((3,), lambda j: V[j] * (G[j] - sum(G * s))), s, G, V)


WRONG_12 = {
    "i = j everywhere": lambda s: table((3, 3), lambda i, j: s[i] * (1 - s[j])),
    "no product off the diagonal": lambda s: table((3, 3), lambda i, j: s[i] * (1 - s[j]) * kronecker(i, j)),
    "sign off the diagonal": lambda s: table((3, 3), lambda i, j: s[i] * (1 - s[j]) if i == j else s[i] * s[j]),
    "sign": lambda s: -dS_dz(s),
}


@pytest.mark.parametrize("wrong", WRONG_12.values(), ids=WRONG_12)
def test_a_wrong_equation_12_is_refuted(wrong):
    point = softmax_point(ZS)
    derivative = jacobian(S(ZS), ZS)
    assert not is_identical(derivative, wrong(S(ZS)))
    assert np.abs(numbers(derivative, point) - numbers(wrong(S(ZS)), point)).max() > 1e-3


# ----------------------------------------------------------------------- Cross-entropy, (13) to (15)

Y = symbols("y", 3)  # no condition: they need not sum to 1
SUM_1 = {Y[2]: 1 - Y[0] - Y[1]}


def lines_of_15(x, y):
    """The lines of (15), each for every j, with x = S(z). The second and third are equal. The fourth is printed with
    a sum over k ≠ j; here it is over all k, since y_j x_j belongs to it."""
    n = range(len(x))
    others = [[k for k in n if k != j] for j in n]
    jacobian_of_s = dS_dz(x)
    return [
        table((len(x),), lambda j: sum(-y[k] / x[k] * jacobian_of_s[k, j] for k in n)),
        table(
            (len(x),), lambda j: -y[j] / x[j] * x[j] * (1 - x[j]) + sum(y[k] / x[k] * x[k] * x[j] for k in others[j])
        ),
        table((len(x),), lambda j: -y[j] * (1 - x[j]) + sum(y[k] * x[j] for k in others[j])),
        table((len(x),), lambda j: x[j] * sum(y) - y[j]),
        table((len(x),), lambda j: x[j] - y[j]),
    ]


# proves eq. (15)
def test_equation_15_is_the_derivative_of_14_for_targets_of_any_sum():
    derivative = jacobian(J(ZS, Y), ZS)
    for line in lines_of_15(S(ZS), Y)[:-1]:
        assert is_identical(derivative, line)


# proves eq. (15)
def test_the_last_line_of_15_holds_where_the_targets_sum_to_1_and_only_there():
    derivative, last = jacobian(J(ZS, Y), ZS), lines_of_15(S(ZS), Y)[-1]
    assert is_identical([e.subs(SUM_1) for e in derivative], [e.subs(SUM_1) for e in last])
    assert is_identical(derivative - last, S(ZS) * (sum(Y) - 1))  # 0 only where the sum is 1, since S is not 0


def test_the_code_of_14_and_15_is_what_sympy_finds():
    point = softmax_point(ZS, Y)
    z, y = tensor(ZS, point), tensor(Y, point)
    assert abs(sum(y) - 1) > 0.1
    g = torch.ones((), dtype=torch.float64)
    close(cross_entropy_forward(z, y, False), numbers(J(ZS, Y), point))
    close(cross_entropy_backward(g, z, y), numbers(jacobian(J(ZS, Y), ZS), point))
    close(cross_entropy_grad_target(g, z), numbers(jacobian(J(ZS, Y), Y), point))


def test_equations_13_and_15_of_two_examples_carry_one_over_b():
    z, y = symbols("z", 2, 3), symbols("y", 2, 3)
    mean = sum(J(z[b], y[b]) for b in range(2)) / sp.Integer(2)
    by_hand = table((2, 3), lambda b, j: (S(z[b])[j] * sum(y[b]) - y[b, j]) / 2)
    assert is_identical(jacobian(mean, z), by_hand)
    point = softmax_point(z, y)
    ours, target = tensor(z, point).requires_grad_(), tensor(y, point)
    (gradient,) = torch.autograd.grad(functional.softmax_cross_entropy(ours, target), ours)
    close(gradient, numbers(by_hand, point))


# proves second derivatives of the cost
def test_the_second_derivatives_of_the_cost():
    """The derivatives of A(v, z, y) = Σ_k v_k (τ S_k − y_k), the tangent of J, along z and y, and of J along y."""
    s, tau = S(ZS), sum(Y)
    tangent = sum(V[k] * (tau * s[k] - Y[k]) for k in range(3))
    along_z = table((3,), lambda j: tau * s[j] * (V[j] - sum(V * s)))
    along_y = table((3,), lambda j: sum(V * s) - V[j])
    assert is_identical(tangent, sum(V * jacobian(J(ZS, Y), ZS)))
    assert is_identical(jacobian(tangent, ZS), along_z)
    assert is_identical(jacobian(tangent, Y), along_y)
    assert is_identical(jacobian(J(ZS, Y), Y), [-sp.log(s_i) for s_i in s])
    point = softmax_point(ZS, Y, V)
    v, z, y = (tensor(array, point) for array in (V, ZS, Y))
    ours = cross_entropy_jvp_apply(v, z.requires_grad_(), y.requires_grad_(), False)
    by_z, by_y = torch.autograd.grad(ours, (z, y))
    close(ours.detach(), numbers(tangent, point))
    close(by_z, numbers(along_z, point))
    close(by_y, numbers(along_y, point))


WRONG_15 = {
    "the last line, targets of any sum": lambda s: lines_of_15(s, Y)[-1],
    "sign": lambda s: table((3,), lambda j: Y[j] - s[j] * sum(Y)),
    "the line before the last as it is printed": lambda s: table(
        (3,), lambda j: -Y[j] + s[j] * sum(Y[k] for k in range(3) if k != j)
    ),
    "the third line's sum runs over k = j too": lambda s: table((3,), lambda j: -Y[j] * (1 - s[j]) + sum(Y) * s[j]),
    "no sum of the others": lambda s: table((3,), lambda j: -Y[j] * (1 - s[j])),
}


@pytest.mark.parametrize("wrong", WRONG_15.values(), ids=WRONG_15)
def test_a_wrong_equation_15_is_refuted(wrong):
    point = softmax_point(ZS, Y)
    derivative = jacobian(J(ZS, Y), ZS)
    assert not is_identical(derivative, wrong(S(ZS)))
    assert np.abs(numbers(derivative, point) - numbers(wrong(S(ZS)), point)).max() > 1e-3
