"""SymPy differentiates the document's definitions, and what comes out is the hand-derived formula, identically.

Every definition here is the document's literal sum over indices, of symbols in place of numbers; every formula is
taken from the document, a function of its indices. A proof holds for all values of its symbols, at one size. Three
kinds of test stand side by side:

- the formula is the derivative of its definition, symbol for symbol;
- the code in ``manualgrad.ops`` gives what SymPy's derivative is at a point of whole or rational numbers;
- a wrong formula, and code told to do something else, is refuted by naming a point where the two differ.
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

# Of numbers near 1, softmax's few operations and sums of at most 12 products are off by some 1e-15 (measured: 2e-16).
# Where all numbers are whole, nothing is rounded and equality is asked for.
ROUNDING = 1e-12


# -------------------------------------------------------------------------------------------- helpers


def symbols(name, *shape, **assumptions):
    """An array of symbols, each named by its index."""
    array = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        array[index] = sp.Symbol(f"{name}_{','.join(map(str, index))}", **assumptions)
    return array


def table(shape, entry):
    """The array whose entry at every index is ``entry(*index)``."""
    array = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        array[index] = entry(*index)
    return array


def jacobian(outputs, inputs):
    """∂output/∂input by SymPy: the output's indices, then the input's."""
    outputs, inputs = np.asarray(outputs, dtype=object), np.asarray(inputs, dtype=object)
    return table(
        outputs.shape + inputs.shape,
        lambda *index: sp.diff(outputs[index[: outputs.ndim]], inputs[index[outputs.ndim :]]),
    )


def kronecker(i, j):
    return int(i == j)


def is_zero(expression):
    """Identically: for all values of the symbols."""
    return sp.expand(expression) == 0 or sp.simplify(expression) == 0


def identical(one, other):
    assert np.shape(one) == np.shape(other)
    return all(is_zero(a - b) for a, b in zip(np.ravel(one), np.ravel(other), strict=True))


def some_point(*arrays):
    """A rational number for every symbol, no two alike, negative where the symbol is declared so."""
    found = [symbol for array in arrays for symbol in np.ravel(array)]
    return {s: sp.Rational(7 * n + 3, 11) * (-1 if s.is_negative else 1) for n, s in enumerate(found)}


def numbers(array, point):
    """The float64 nearest to each expression at a point."""
    values = [float(sp.N(sp.sympify(e).xreplace(point), 30)) for e in np.ravel(array)]
    return np.array(values).reshape(np.shape(array))


def tensor(array, point):
    return torch.from_numpy(numbers(array, point))


def refuted(one, other, *variables):
    """True if the two differ by more than rounding at a point, which disproves that they are identical."""
    assert np.shape(one) == np.shape(other)
    point = some_point(*variables)
    return np.abs(numbers(one, point) - numbers(other, point)).max() > 1e-3


def close(ours, expected, within=ROUNDING):
    ours = np.asarray(ours)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= within


# ------------------------------------------------------------------------- 2D convolution, (1) to (3)

# The kernel has 3 rows and 2 columns, the strides are 2 and 3: windows overlap along the rows, and between them along
# the columns there is a gap. No window reaches row 5 or columns 2 and 5.
STRIDE = s1, s2 = 2, 3
P, Q = 2, 1
X, W = symbols("x", 6, 6, 2), symbols("w", P + 1, Q + 1, 2, 2)
DELTA = symbols("δ", 2, 2, 2)
GEOMETRY = Conv2dGeometry(Windows((P + 1, Q + 1), STRIDE), X.shape[:2])


def C(x, w):
    """(1)."""
    return table(
        DELTA.shape,
        lambda i, j, k: sum(
            x[s1 * i + p, s2 * j + q, r] * w[P - p, Q - q, r, k] for p, q, r in np.ndindex(w.shape[:3])
        ),
    )


def dC_dx(w):
    """(2), with 0 where an index of w is out of range."""

    def entry(i, j, k, t, u, v):
        row, column = P + s1 * i - t, Q + s2 * j - u
        return w[row, column, v, k] if 0 <= row <= P and 0 <= column <= Q else 0

    return table(DELTA.shape + X.shape, entry)


def dC_dw(x):
    """(3)."""
    return table(
        DELTA.shape + W.shape,
        lambda i, j, k, c, t, u, v: x[s1 * i + P - c, s2 * j + Q - t, u] * kronecker(k, v),
    )


# proves eq. (2)
def test_equation_2_is_the_derivative_of_1():
    assert identical(jacobian(C(X, W), X), dC_dx(W))


# proves eq. (3)
def test_equation_3_is_the_derivative_of_1():
    assert identical(jacobian(C(X, W), W), dC_dw(X))


def whole_point(*arrays):
    """1, 2, 3, ... for the symbols: whole numbers have no rounding, and no two can be taken for each other."""
    return {s: sp.Integer(n) for n, s in enumerate((s for a in arrays for s in a.ravel()), start=1)}


def code_of_2_and_3(point, geometry=GEOMETRY):
    """∂C/∂x and ∂C/∂w by the code: one example for each output, its δ 1 there and 0 elsewhere."""
    n = DELTA.size
    delta = torch.eye(n, dtype=torch.float64).view(n, *DELTA.shape)
    x, w = tensor(X, point).expand(n, *X.shape), tensor(W, point)
    for_x = conv2d.conv2d_grad_input(delta, w, geometry)
    for_w = torch.stack([conv2d.conv2d_grad_weight(delta[b : b + 1], x[b : b + 1], geometry) for b in range(n)])
    assert torch.equal(conv2d.conv2d_grad_weight(delta, x, geometry), for_w.sum(0))
    return for_x.numpy().reshape(DELTA.shape + X.shape), for_w.numpy().reshape(DELTA.shape + W.shape)


def test_the_code_of_1_2_and_3_is_exactly_the_derivative_that_sympy_finds():
    """Of whole numbers, all different, (2) and (3) pick one each: an equal table means the same picks everywhere."""
    point = whole_point(X, W)
    z = conv2d.conv2d_forward(tensor(X, point).unsqueeze(0), tensor(W, point), None, GEOMETRY)[0]
    for_x, for_w = code_of_2_and_3(point)
    assert np.array_equal(z, numbers(C(X, W), point))
    assert np.array_equal(for_x, numbers(jacobian(C(X, W), X), point))
    assert np.array_equal(for_w, numbers(jacobian(C(X, W), W), point))


def test_the_code_of_a_correlation_is_refuted():
    point = whole_point(X, W)
    for_x, for_w = code_of_2_and_3(point, Conv2dGeometry(GEOMETRY.windows, GEOMETRY.input_size, flip_kernel=False))
    assert not np.array_equal(for_x, numbers(jacobian(C(X, W), X), point))
    assert not np.array_equal(for_w, numbers(jacobian(C(X, W), W), point))


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
    assert not identical(derivative, wrong())
    assert refuted(derivative, wrong(), X, W)


@pytest.mark.parametrize("wrong", WRONG_3.values(), ids=WRONG_3)
def test_a_wrong_equation_3_is_refuted(wrong):
    derivative = jacobian(C(X, W), W)
    assert not identical(derivative, wrong())
    assert refuted(derivative, wrong(), X, W)


def pulled(delta, factor):
    """Σ δ_n factor_nm: δ by the factor's first indices."""
    return np.tensordot(delta, factor, axes=delta.ndim)


# proves second derivatives of the convolution
def test_each_of_the_three_convolutions_has_the_other_two_for_derivatives():
    """The second derivatives: of X(δ, w), the sum of (2), along δ and w, and of W(δ, x), the sum of (3), along δ and
    x. v stands for what is pulled back, x-shaped or w-shaped."""
    vx, vw = symbols("v", *X.shape), symbols("v", *W.shape)
    for_x, for_w = pulled(DELTA, dC_dx(W)), pulled(DELTA, dC_dw(X))
    assert identical(jacobian(sum((vx * for_x).ravel()), DELTA), C(vx, W))
    assert identical(jacobian(sum((vx * for_x).ravel()), W), pulled(DELTA, dC_dw(vx)))
    assert identical(jacobian(sum((vw * for_w).ravel()), DELTA), C(X, vw))
    assert identical(jacobian(sum((vw * for_w).ravel()), X), pulled(DELTA, dC_dx(vw)))
    assert refuted(jacobian(sum((vx * for_x).ravel()), DELTA), C(vx, W[::-1, ::-1]), vx, W)


# ------------------------------------------------------------------------------- Dense, (6) to (8)

XD, WD = symbols("x", 3), symbols("w", 3, 2)


def D(x, w):
    """(6)."""
    return table(w.shape[1:], lambda j: sum(x[i] * w[i, j] for i in range(len(x))))


def dD_dx(w):
    """(7)."""
    return table((w.shape[1], w.shape[0]), lambda j, k: w[k, j])


def dD_dw(x, outputs):
    """(8)."""
    return table((outputs, len(x), outputs), lambda j, c, k: x[c] * kronecker(j, k))


# proves eq. (7)
def test_equation_7_is_the_derivative_of_6():
    assert identical(jacobian(D(XD, WD), XD), dD_dx(WD))


# proves eq. (8)
def test_equation_8_is_the_derivative_of_6():
    assert identical(jacobian(D(XD, WD), WD), dD_dw(XD, 2))


def test_the_code_of_6_7_and_8_is_exactly_the_derivative_that_sympy_finds():
    point = whole_point(XD, WD)
    x = tensor(XD, point).unsqueeze(0).requires_grad_()
    w = tensor(WD, point).t().contiguous().requires_grad_()  # PyTorch's (out, in)
    z = functional.dense(x, w)[0]
    pulls = [torch.autograd.grad(z[j], (x, w), retain_graph=True) for j in range(2)]
    assert np.array_equal(z.detach(), numbers(D(XD, WD), point))
    assert np.array_equal(np.stack([for_x[0] for for_x, _ in pulls]), numbers(jacobian(D(XD, WD), XD), point))
    assert np.array_equal(np.stack([for_w.t() for _, for_w in pulls]), numbers(jacobian(D(XD, WD), WD), point))


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
    assert not identical(derivative, wrong())
    assert refuted(derivative, wrong(), XD, SQUARE)


@pytest.mark.parametrize("wrong", WRONG_8.values(), ids=WRONG_8)
def test_a_wrong_equation_8_is_refuted(wrong):
    derivative = jacobian(D(XD, SQUARE), SQUARE)
    assert not identical(derivative, wrong())
    assert refuted(derivative, wrong(), XD, SQUARE)


# ------------------------------------------------------------------------------- ReLU, (9) and (10)

ABOVE, BELOW = symbols("a", 2, positive=True), symbols("n", 2, negative=True)
Z = np.array([ABOVE[0], BELOW[0], ABOVE[1], BELOW[1]])


def R(z):
    """(9)."""
    return table(np.shape(z), lambda i: sp.Piecewise((z[i], z[i] >= 0), (0, z[i] < 0)))


def dR_dz(z):
    """(10), of symbols whose sign is known, and of numbers."""

    def entry(i, j):
        if z[i] > 0:
            return kronecker(i, j)
        return sp.Rational(1, 2) * kronecker(i, j) if z[i] == 0 else 0

    return table((len(z), len(z)), entry)


# proves eq. (10)
def test_equation_10_is_the_derivative_of_9_away_from_zero():
    assert identical(jacobian(R(Z), Z), dR_dz(Z))


# proves eq. (10)
def test_at_zero_equation_10_is_the_mean_of_the_two_one_sided_derivatives():
    h = sp.Symbol("h", positive=True)
    above, below, here = R([h])[0], R([-h])[0], R([sp.Integer(0)])[0]
    right = sp.limit((above - here) / h, h, 0)
    left = sp.limit((here - below) / h, h, 0)
    assert (right, left) == (1, 0)
    assert sp.limit((above - below) / (2 * h), h, 0) == (right + left) / 2 == dR_dz([sp.Integer(0)])[0, 0]


def test_the_code_of_10_is_exactly_the_derivative_that_sympy_finds():
    point = some_point(Z)
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
    assert not identical(jacobian(R(Z), Z), wrong())
    assert refuted(jacobian(R(Z), Z), wrong(), Z)


# ---------------------------------------------------------------------------- Softmax, (11) and (12)

ZS, G, V = symbols("z", 3), symbols("g", 3), symbols("v", 3)


def S(z):
    """(11)."""
    return table(np.shape(z), lambda i: sp.exp(z[i]) / sum(sp.exp(z[k]) for k in range(len(z))))


def dS_dz(s):
    """(12), of s = S(z)."""
    return table((len(s), len(s)), lambda i, j: s[i] * (1 - s[j]) if i == j else -s[i] * s[j])


# proves eq. (12)
def test_equation_12_is_the_derivative_of_11():
    assert identical(jacobian(S(ZS), ZS), dS_dz(S(ZS)))


# proves eq. (11)
def test_softmax_does_not_change_with_a_shift_of_z():
    """Why the code may take max z off every z."""
    shift = sp.Symbol("m")
    assert identical(S(ZS - shift), S(ZS))


def softmax_point(*arrays):
    """Small rational numbers, of both signs, so that no exponential is lost beside another."""
    found = [symbol for array in arrays for symbol in np.ravel(array)]
    return {s: sp.Rational((5 * n) % 7 - 3, 4) + sp.Rational(n, 50) for n, s in enumerate(found)}


def test_the_code_of_12_is_the_derivative_that_sympy_finds():
    point = softmax_point(ZS)
    s = softmax_forward(tensor(ZS, point), -1)
    close(s, numbers(S(ZS), point))
    ours = softmax_backward(torch.eye(3, dtype=torch.float64), s, -1)
    close(ours, numbers(jacobian(S(ZS), ZS), point))


# proves second derivatives of softmax
def test_the_second_derivative_of_softmax():
    """B_i = S_i (g_i − Σ_k g_k S_k) along S, for any s: it need not sum to 1 there."""
    s = symbols("s", 3)
    b = table((3,), lambda i: s[i] * (G[i] - sum(G * s)))
    assert identical(b, G @ dS_dz(s))
    by_hand = table((3,), lambda j: V[j] * (G[j] - sum(G * s)) - G[j] * sum(V * s))
    assert identical(jacobian(sum(V * b), s), by_hand)
    point = softmax_point(s, G, V)
    v, g, ours = (tensor(array, point) for array in (V, G, s))
    ours.requires_grad_()
    (along_s,) = torch.autograd.grad(softmax_backward_apply(g, ours, -1), ours, v)
    close(along_s, numbers(by_hand, point))
    assert refuted(jacobian(sum(V * b), s), table((3,), lambda j: V[j] * (G[j] - sum(G * s))), s, G, V)


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
    assert not identical(derivative, wrong(S(ZS)))
    assert np.abs(numbers(derivative, point) - numbers(wrong(S(ZS)), point)).max() > 1e-3


# ----------------------------------------------------------------------- Cross-entropy, (13) to (15)

Y = symbols("y", 3)  # no condition: they need not sum to 1
SUM_1 = {Y[2]: 1 - Y[0] - Y[1]}


def J(z, y):
    """(14), of the softmax's output."""
    s = S(z)
    return sum(-y[i] * sp.log(s[i]) for i in range(len(z)))


def lines_of_15(x, y):
    """The lines of (15), each for every j; x = S(z). The second and third are the same with x written for S(z). The
    fourth is printed with Σ over k ≠ j, but y_j x_j belongs to the sum too: it is over all k."""
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
        assert identical(derivative, line)


# proves eq. (15)
def test_the_last_line_of_15_holds_where_the_targets_sum_to_1_and_only_there():
    derivative, last = jacobian(J(ZS, Y), ZS), lines_of_15(S(ZS), Y)[-1]
    assert identical([e.subs(SUM_1) for e in derivative], [e.subs(SUM_1) for e in last])
    assert identical(derivative - last, S(ZS) * (sum(Y) - 1))  # 0 only where the sum is 1, since S is not 0


def test_the_code_of_14_and_15_is_what_sympy_finds():
    point = softmax_point(ZS, Y)
    z, y = tensor(ZS, point), tensor(Y, point)
    assert abs(sum(y) - 1) > 0.1
    one = torch.ones((), dtype=torch.float64)
    close(cross_entropy_forward(z, y, False), numbers(J(ZS, Y), point))
    close(cross_entropy_backward(one, z, y), numbers(jacobian(J(ZS, Y), ZS), point))
    close(cross_entropy_grad_target(one, z), numbers(jacobian(J(ZS, Y), Y), point))


def test_equations_13_and_15_of_two_examples_carry_one_over_b():
    z, y = symbols("z", 2, 3), symbols("y", 2, 3)
    mean = sum(J(z[b], y[b]) for b in range(2)) / sp.Integer(2)
    by_hand = table((2, 3), lambda b, j: (S(z[b])[j] * sum(y[b]) - y[b, j]) / 2)
    assert identical(jacobian(mean, z), by_hand)
    point = softmax_point(z, y)
    ours, target = tensor(z, point).requires_grad_(), tensor(y, point)
    (gradient,) = torch.autograd.grad(functional.softmax_cross_entropy(ours, target), ours)
    close(gradient, numbers(by_hand, point))


# proves second derivatives of the cost
def test_the_second_derivatives_of_the_cost():
    """A(v, z, y) = Σ_k v_k (τ S_k − y_k), the change of J towards v, along z and along y; and J along y."""
    s, tau = S(ZS), sum(Y)
    change = sum(V[k] * (tau * s[k] - Y[k]) for k in range(3))
    along_z = table((3,), lambda j: tau * s[j] * (V[j] - sum(V * s)))
    along_y = table((3,), lambda j: sum(V * s) - V[j])
    assert identical(change, sum(V * jacobian(J(ZS, Y), ZS)))
    assert identical(jacobian(change, ZS), along_z)
    assert identical(jacobian(change, Y), along_y)
    assert identical(jacobian(J(ZS, Y), Y), [-sp.log(s_i) for s_i in s])
    point = softmax_point(ZS, Y, V)
    v, z, y = (tensor(array, point) for array in (V, ZS, Y))
    ours = cross_entropy_jvp_apply(v, z.requires_grad_(), y.requires_grad_(), False)
    by_z, by_y = torch.autograd.grad(ours, (z, y))
    close(ours.detach(), numbers(change, point))
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
    assert not identical(derivative, wrong(S(ZS)))
    assert np.abs(numbers(derivative, point) - numbers(wrong(S(ZS)), point)).max() > 1e-3


# ------------------------------------------------------------------ The recursion, (16) to (21), L = 2

# One channel, two classes: f⁰ = C with a 2×2 kernel and one bias, σ⁰ = F∘P∘R, f¹ = D, σ¹ = S, then J. The image is
# 3×7, so that z⁰ is 2×6: three windows. At POINT the first window's maximum is positive and comes from its last
# place, the second window has nothing above zero, and the third's maximum comes from its first place. No z⁰ is 0
# there, and none of a positive window's equals another: hence in a neighbourhood of POINT every maximum keeps its
# place, and J is a smooth function of all its symbols. It is that function which is differentiated.

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
PLACES = [(1, 1), None, (0, 0)]  # (p, q) of each window's maximum at POINT; None: nothing above zero


def z0(x, w, b):
    """(17), f⁰ = C of (1), s1 = s2 = 1."""
    return table((2, 6), lambda i, j: sum(x[i + p, j + q] * w[1 - p, 1 - q] for p, q in np.ndindex(2, 2)) + b)


def literal_max(z):
    """(16), σ⁰ = F(P(R(z⁰))) with the maxima of (4) and (9) as they are defined."""
    return [sp.Max(*(sp.Max(z[p, 2 * j + q], 0) for p, q in np.ndindex(2, 2))) for j in range(3)]


def smooth_max(z):
    """The same near POINT, where the places of the maxima are known."""
    return [sp.Integer(0) if place is None else z[place[0], 2 * j + place[1]] for j, place in enumerate(PLACES)]


@cache
def network(maximum):
    """z⁰, x¹, z¹ and J^b, each written out down to the symbols."""
    z_0 = z0(X0, W0, B0)
    x_1 = maximum(z_0)
    z_1 = table((2,), lambda j: sum(x_1[i] * W1[i, j] for i in range(3)) + B1[j])  # (17), f¹ = D of (6)
    return z_0, x_1, z_1, J(z_1, Y2)


def recursion(z_0, x_1, z_1, *, wrong=""):
    """δ¹, δ⁰, Δw¹, Δb¹, Δw⁰, Δb⁰ by (18) to (21), or with something wrong about them."""
    s = S(z_1)
    targets = 1 if wrong == "last line of (15)" else sum(Y2)
    eta = ETA if wrong == "sign" else -ETA
    delta_1 = table((2,), lambda i: eta * (s[i] * targets - Y2[i]))  # (19) with (15)
    factor = dD_dx(W1)  # (7)
    if wrong == "transposed index":
        factor = W1.ravel().reshape(2, 3)
    delta_x = delta_1 @ factor  # (20), δ¹ ∂D/∂x¹
    delta_0 = np.full((2, 6), sp.Integer(0), dtype=object)
    for j, place in enumerate(PLACES):  # P⁻¹ and ∂R/∂z: 1 where z is above 0, 0 where it is below
        if place is not None:
            p, q = place
            delta_0[p, 2 * j + q] += delta_x[j]
        elif wrong == "no ∂R/∂z":
            delta_0[0, 2 * j] += delta_x[j]
    if wrong == "P⁻¹ to the first place":
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
    """−η ∂J^b/∂w and −η ∂J^b/∂b, the first terms of (21) and (18)."""
    parameters = {"Δw1": W1, "Δb1": B1, "Δw0": W0, "Δb0": np.array(B0)}
    return {name: -ETA * jacobian(cost, parameter) for name, parameter in parameters.items()}


def polynomial(expression, z_1):
    """With symbols for e^{z_0} and e^{z_1}: what is left is a quotient of polynomials, which ``cancel`` settles."""
    e = sp.symbols("e_0 e_1", positive=True)

    def powers(exponent):
        for m, n in itertools.product(range(-2, 3), repeat=2):
            if sp.expand(exponent - m * z_1[0] - n * z_1[1]) == 0:
                return e[0] ** m * e[1] ** n
        raise AssertionError(f"not e to the power of a few z: {exponent}")

    return sp.sympify(expression).replace(sp.exp, powers)


def same_quotients(one, other, z_1):
    return all(
        sp.cancel(sp.together(polynomial(a, z_1) - polynomial(b, z_1))) == 0
        for a, b in zip(np.ravel(one), np.ravel(other), strict=True)
    )


def test_the_maxima_at_the_point_come_from_the_places_named():
    z = numbers(z0(X0, W0, B0), POINT)
    assert (np.abs(z) > 0.01).all()
    for j, place in enumerate(PLACES):
        window = z[:, 2 * j : 2 * j + 2]
        if place is None:
            assert (window < 0).all()
        else:
            assert window[place] > 0 and np.sort(window.ravel())[-2] < window[place] - 0.01
    exact = [e.xreplace(POINT) for e in literal_max(z0(X0, W0, B0))]
    assert exact == [e.xreplace(POINT) for e in smooth_max(z0(X0, W0, B0))]


# proves eq. (19), (20), (21)
def test_a_full_step_of_the_recursion_is_minus_eta_times_the_derivative_of_the_cost():
    """Identically in x⁰, w⁰, b⁰, w¹, b¹, y and η, wherever the maxima have their places as at POINT."""
    z_0, x_1, z_1, cost = network(smooth_max)
    steps = recursion(z_0, x_1, z_1)
    for name, expected in by_sympy(cost).items():
        assert same_quotients(steps[name], expected, z_1), name


# proves eq. (18)
def test_delta_itself_is_minus_eta_times_the_derivative_of_the_cost_by_z():
    """(18): δ^l = −η ∂J^b/∂z^l, with z^l as symbols of their own and all that lies above written out."""
    z, u = symbols("z", 2, 6), symbols("ζ", 2)
    x_1 = smooth_max(z)
    z_1 = table((2,), lambda j: sum(x_1[i] * W1[i, j] for i in range(3)) + B1[j])
    steps = recursion(z, x_1, z_1)
    assert same_quotients(steps["δ0"], -ETA * jacobian(J(z_1, Y2), z), z_1)
    assert same_quotients(recursion(z, x_1, u)["δ1"], -ETA * jacobian(J(u, Y2), u), u)


def test_with_the_maxima_written_as_maxima_the_derivatives_are_the_same_at_the_point():
    """The derivative of Max is a Heaviside of a difference, which is 0 or 1 at POINT: no branch is chosen by hand.
    Compared to 40 digits."""
    z_0, x_1, z_1, _ = network(smooth_max)
    steps = recursion(z_0, x_1, z_1)
    for name, expected in by_sympy(network(literal_max)[3]).items():
        for one, other in zip(np.ravel(steps[name]), np.ravel(expected), strict=True):
            assert abs(sp.N(one.xreplace(POINT) - other.xreplace(POINT), 50)) < 1e-40, name


def tiny_model():
    """The same network as a DocumentCNN, at POINT."""
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


def test_the_engine_gives_the_same_of_the_tiny_network():
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
    "P⁻¹ to the first place",
    "no ∂R/∂z",
    "no δ in (8)",
    "kernel not flipped",
    "b⁰ not summed",
]


@pytest.mark.parametrize("wrong", WRONG_RECURSIONS)
def test_a_wrong_recursion_is_refuted(wrong):
    z_0, x_1, z_1, cost = network(smooth_max)
    steps, expected = recursion(z_0, x_1, z_1, wrong=wrong), by_sympy(cost)
    differ = {
        name for name in expected
        if np.abs(numbers(steps[name], POINT) - numbers(expected[name], POINT)).max() > 1e-3
    }  # fmt: skip
    assert differ
    assert not all(same_quotients(steps[name], expected[name], z_1) for name in differ)
