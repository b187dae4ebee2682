"""SymPy's derivatives of the definitions are identical to the hand-derived formulas.

Definitions and formulas are those of the formula sheet (docs/equations.md): sums over indices, with symbols in place
of numbers. A proof holds for all values of its symbols, at one size. There are three kinds of test:

- a formula is the derivative of its definition, identically;
- the code in ``manualgrad.ops`` equals SymPy's derivative at a point of whole or rational numbers;
- a wrong formula, or the code with another option, is refuted by a point where the two differ.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import sympy as sp
import torch

from manualgrad import DocumentCNN, backprop, functional
from manualgrad.ops import conv2d
from manualgrad.ops.conv2d_geometry import Conv2dGeometry
from manualgrad.ops.relu import relu_backward
from manualgrad.ops.softmax import softmax_backward, softmax_backward_apply, softmax_forward
from manualgrad.ops.softmax_cross_entropy import (
    cross_entropy_backward,
    cross_entropy_forward,
    cross_entropy_grad_target,
    cross_entropy_jvp_apply,
)
from manualgrad.ops.windows import Windows

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


# ------------------------------------------------------------------------- 2D convolution, (1) to (3)

# The kernel has 3 rows and 2 columns, the strides are 2 and 3: windows overlap along the rows and have gaps along the
# columns. No window reaches row 5 or columns 2 and 5.
STRIDE = s1, s2 = 2, 3
P, Q = 2, 1
X, W = symbols("x", 6, 6, 2), symbols("w", P + 1, Q + 1, 2, 2)
DELTA = symbols("δ", 2, 2, 2)
GEOMETRY = Conv2dGeometry(Windows((P + 1, Q + 1), STRIDE), X.shape[:2])


def C(x, w):
    """C of equation (1)."""
    return table(
        DELTA.shape,
        lambda i, j, k: sum(
            x[s1 * i + p, s2 * j + q, r] * w[P - p, Q - q, r, k] for p, q, r in np.ndindex(w.shape[:3])
        ),
    )


def dC_dx(w):
    """∂C/∂x of equation (2), 0 where an index of w is out of range."""

    def entry(i, j, k, t, u, v):
        row, column = P + s1 * i - t, Q + s2 * j - u
        return w[row, column, v, k] if 0 <= row <= P and 0 <= column <= Q else 0

    return table(DELTA.shape + X.shape, entry)


def dC_dw(x):
    """∂C/∂w of equation (3)."""
    return table(
        DELTA.shape + W.shape,
        lambda i, j, k, c, t, u, v: x[s1 * i + P - c, s2 * j + Q - t, u] * kronecker(k, v),
    )


# proves eq. (2)
def test_equation_2_is_the_derivative_of_1():
    assert is_identical(jacobian(C(X, W), X), dC_dx(W))


# proves eq. (3)
def test_equation_3_is_the_derivative_of_1():
    assert is_identical(jacobian(C(X, W), W), dC_dw(X))


def whole_point(*arrays):
    """1, 2, 3, ... for the symbols: whole numbers, which are not rounded, all different."""
    return {s: sp.Integer(n) for n, s in enumerate((s for a in arrays for s in a.ravel()), start=1)}


def derivatives_by_code(point, geometry=GEOMETRY):
    """∂C/∂x and ∂C/∂w by the code, with one example for each output, whose δ is 1 there and 0 elsewhere."""
    n = DELTA.size
    delta = torch.eye(n, dtype=torch.float64).view(n, *DELTA.shape)
    x, w = tensor(X, point).expand(n, *X.shape), tensor(W, point)
    grad_x = conv2d.conv2d_grad_input(delta, w, geometry)
    grad_w = torch.stack([conv2d.conv2d_grad_weight(delta[b : b + 1], x[b : b + 1], geometry) for b in range(n)])
    assert torch.equal(conv2d.conv2d_grad_weight(delta, x, geometry), grad_w.sum(0))
    return grad_x.numpy().reshape(DELTA.shape + X.shape), grad_w.numpy().reshape(DELTA.shape + W.shape)


def test_the_code_of_1_2_and_3_is_exactly_the_derivative_that_sympy_finds():
    """(2) and (3) select entries. All numbers differ, so equal tables mean that the same entries are selected."""
    point = whole_point(X, W)
    z = conv2d.conv2d_forward(tensor(X, point).unsqueeze(0), tensor(W, point), None, GEOMETRY)[0]
    dC_dx_code, dC_dw_code = derivatives_by_code(point)
    assert np.array_equal(z, numbers(C(X, W), point))
    assert np.array_equal(dC_dx_code, numbers(jacobian(C(X, W), X), point))
    assert np.array_equal(dC_dw_code, numbers(jacobian(C(X, W), W), point))


def test_the_code_of_a_correlation_is_refuted():
    point = whole_point(X, W)
    dC_dx_code, dC_dw_code = derivatives_by_code(
        point, Conv2dGeometry(GEOMETRY.windows, GEOMETRY.input_size, flip_kernel=False)
    )
    assert not np.array_equal(dC_dx_code, numbers(jacobian(C(X, W), X), point))
    assert not np.array_equal(dC_dw_code, numbers(jacobian(C(X, W), W), point))


WRONG_2 = {
    "the kernel is not flipped": lambda: dC_dx(W[::-1, ::-1]),
    "flipped along the rows alone": lambda: dC_dx(W[:, ::-1]),
    "sign": lambda: -dC_dx(W),
    "strides exchanged": lambda: table(
        DELTA.shape + X.shape,
        lambda i, j, k, t, u, v: (
            W[P + s2 * i - t, Q + s1 * j - u, v, k] if 0 <= P + s2 * i - t <= P and 0 <= Q + s1 * j - u <= Q else 0
        ),
    ),
    "channels transposed": lambda: dC_dx(W.swapaxes(2, 3)),
    "out of range is not 0 but wraps": lambda: table(
        DELTA.shape + X.shape,
        lambda i, j, k, t, u, v: W[(P + s1 * i - t) % (P + 1), (Q + s2 * j - u) % (Q + 1), v, k],
    ),
}
WRONG_3 = {
    "the kernel is not flipped": lambda: table(
        DELTA.shape + W.shape, lambda i, j, k, c, t, u, v: X[s1 * i + c, s2 * j + t, u] * kronecker(k, v)
    ),
    "no δ_kv": lambda: table(DELTA.shape + W.shape, lambda i, j, k, c, t, u, v: X[s1 * i + P - c, s2 * j + Q - t, u]),
    "sign": lambda: -dC_dw(X),
    "δ_ku": lambda: dC_dw(X).swapaxes(5, 6),
    "no stride": lambda: table(
        DELTA.shape + W.shape, lambda i, j, k, c, t, u, v: X[i + P - c, j + Q - t, u] * kronecker(k, v)
    ),
}


@pytest.mark.parametrize("wrong", WRONG_2.values(), ids=WRONG_2)
def test_a_wrong_equation_2_is_refuted(wrong):
    derivative = jacobian(C(X, W), X)
    assert not is_identical(derivative, wrong())
    assert is_refuted(derivative, wrong(), X, W)


@pytest.mark.parametrize("wrong", WRONG_3.values(), ids=WRONG_3)
def test_a_wrong_equation_3_is_refuted(wrong):
    derivative = jacobian(C(X, W), W)
    assert not is_identical(derivative, wrong())
    assert is_refuted(derivative, wrong(), X, W)


def vjp(delta, jacobian_array):
    """Σ_n δ_n J_nm of a Jacobian J, where n are the first indices."""
    return np.tensordot(delta, jacobian_array, axes=delta.ndim)


# proves second derivatives of the convolution
def test_each_of_the_three_convolutions_has_the_other_two_for_derivatives():
    """The second derivatives are those of X(δ, w), the sum of (2), along δ and w, and of W(δ, x), the sum of (3),
    along δ and x. v is the gradient of X, of x's shape, or of W, of w's shape."""
    vx, vw = symbols("v", *X.shape), symbols("v", *W.shape)
    grad_x, grad_w = vjp(DELTA, dC_dx(W)), vjp(DELTA, dC_dw(X))
    assert is_identical(jacobian(sum((vx * grad_x).ravel()), DELTA), C(vx, W))
    assert is_identical(jacobian(sum((vx * grad_x).ravel()), W), vjp(DELTA, dC_dw(vx)))
    assert is_identical(jacobian(sum((vw * grad_w).ravel()), DELTA), C(X, vw))
    assert is_identical(jacobian(sum((vw * grad_w).ravel()), X), vjp(DELTA, dC_dx(vw)))
    assert is_refuted(jacobian(sum((vx * grad_x).ravel()), DELTA), C(vx, W[::-1, ::-1]), vx, W)


# ------------------------------------------------------------------------------- Dense, (6) to (8)

XD, WD = symbols("x", 3), symbols("w", 3, 2)


def D(x, w):
    """D of equation (6)."""
    return table(w.shape[1:], lambda j: sum(x[i] * w[i, j] for i in range(len(x))))


def dD_dx(w):
    """∂D/∂x of equation (7)."""
    return table((w.shape[1], w.shape[0]), lambda j, k: w[k, j])


def dD_dw(x, outputs):
    """∂D/∂w of equation (8)."""
    return table((outputs, len(x), outputs), lambda j, c, k: x[c] * kronecker(j, k))


# proves eq. (7)
def test_equation_7_is_the_derivative_of_6():
    assert is_identical(jacobian(D(XD, WD), XD), dD_dx(WD))


# proves eq. (8)
def test_equation_8_is_the_derivative_of_6():
    assert is_identical(jacobian(D(XD, WD), WD), dD_dw(XD, 2))


def test_the_code_of_6_7_and_8_is_exactly_the_derivative_that_sympy_finds():
    point = whole_point(XD, WD)
    x = tensor(XD, point).unsqueeze(0).requires_grad_()
    w = tensor(WD, point).t().contiguous().requires_grad_()  # PyTorch's (out, in)
    z = functional.dense(x, w)[0]
    rows = [torch.autograd.grad(z[j], (x, w), retain_graph=True) for j in range(2)]
    assert np.array_equal(z.detach(), numbers(D(XD, WD), point))
    assert np.array_equal(np.stack([grad_x[0] for grad_x, _ in rows]), numbers(jacobian(D(XD, WD), XD), point))
    assert np.array_equal(np.stack([grad_w.t() for _, grad_w in rows]), numbers(jacobian(D(XD, WD), WD), point))


SQUARE = symbols("w", 3, 3)
WRONG_7 = {
    "w_jk": lambda: table((3, 3), lambda j, k: SQUARE[j, k]),
    "sign": lambda: -dD_dx(SQUARE),
    "with δ_jk": lambda: table((3, 3), lambda j, k: SQUARE[k, j] * kronecker(j, k)),
}
WRONG_8 = {
    "no δ_jk": lambda: table((3, 3, 3), lambda j, c, k: XD[c]),
    "δ_jc": lambda: table((3, 3, 3), lambda j, c, k: XD[k] * kronecker(j, c)),
    "sign": lambda: -dD_dw(XD, 3),
    "x_k": lambda: table((3, 3, 3), lambda j, c, k: XD[k] * kronecker(j, k)),
}


@pytest.mark.parametrize("wrong", WRONG_7.values(), ids=WRONG_7)
def test_a_wrong_equation_7_is_refuted(wrong):
    derivative = jacobian(D(XD, SQUARE), XD)
    assert not is_identical(derivative, wrong())
    assert is_refuted(derivative, wrong(), XD, SQUARE)


@pytest.mark.parametrize("wrong", WRONG_8.values(), ids=WRONG_8)
def test_a_wrong_equation_8_is_refuted(wrong):
    derivative = jacobian(D(XD, SQUARE), SQUARE)
    assert not is_identical(derivative, wrong())
    assert is_refuted(derivative, wrong(), XD, SQUARE)


# ------------------------------------------------------------------------------- ReLU, (9) and (10)

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


def S(z):
    """S of equation (11)."""
    return table(np.shape(z), lambda i: sp.exp(z[i]) / sum(sp.exp(z[k]) for k in range(len(z))))


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


def J(z, y):
    """J^b of equation (14), with the softmax of z."""
    s = S(z)
    return sum(-y[i] * sp.log(s[i]) for i in range(len(z)))


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


# ------------------------------------------------------------------ The recursion, (16) to (21), L = 2

# One channel, two classes: f⁰ = C with a 2×2 kernel and one bias, σ⁰ = F∘P∘R, f¹ = D, σ¹ = S, then J. The image is
# 3×7, so that z⁰ is 2×6: three windows. At POINT the maximum of the first window is positive and its last entry, the
# second window has no positive entry, and the maximum of the third is its first entry. No z⁰ is 0 there, and no two
# entries of a window with a positive maximum are equal. So near POINT every maximum keeps its index, and J is a
# smooth function of its symbols. SymPy differentiates that function.

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
