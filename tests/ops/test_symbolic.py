"""SymPy's derivatives of the definitions are identical to the hand-derived formulas: convolution and dense.

Definitions and formulas are those of the formula sheet (docs/equations.md): sums over indices, with symbols in place
of numbers. A proof holds for all values of its symbols, at one size. There are three kinds of test:

- a formula is the derivative of its definition, identically;
- the code in ``manualgrad.ops`` equals SymPy's derivative at a point of whole or rational numbers;
- a wrong formula, or the code with another option, is refuted by a point where the two differ.
"""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch

from manualgrad import functional
from manualgrad.ops import conv2d
from manualgrad.ops.conv2d_geometry import Conv2dGeometry
from manualgrad.ops.windows import Windows
from tests.ops.symbolic import (
    dD_dw,
    dD_dx,
    is_identical,
    is_refuted,
    jacobian,
    kronecker,
    numbers,
    symbols,
    table,
    tensor,
)

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
