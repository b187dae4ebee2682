"""The formula sheet (docs/equations.md), equation by equation: its sums as loops over float64 NumPy arrays.

The tests compare ``manualgrad.ops`` with these functions, so no code is shared with it, and nothing here is fast.
``for i, j in np.ndindex(I, J)`` is the loop over every i from 0 to I−1 and every j from 0 to J−1.

Layouts are those of the formula sheet: x (B, H, W, C_in), kernels w (P+1, Q+1, C_in, C_out), z and its gradient
(B, I, J, C_out), dense weights (I, J), and B examples. In code P and Q are the last row and column of a kernel; in
docstrings P(x) is pooling and R(z) is ReLU. δ with two indices is Kronecker's: 1 where they are equal, 0 elsewhere.

``g`` is a gradient: the derivative of a number by a layer's output. The functions named ``..._grad_...`` and
``..._backward`` turn it into the derivative by an operand, such as Σ_ijk g_ijk ∂C_ijk/∂x_tuv. Section 4, where δ^l is
a gradient times −η, is in ``reference/network.py``.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Pair = tuple[int, int]

# ------------------------------------------------------------------------------------------ 1 Layers


def conv2d(x: Array, w: Array, bias: Array | None = None, stride: Pair = (1, 1)) -> Array:
    """C(x, w) + b, (1) and (17): x (B, H, W, C_in), w (P+1, Q+1, C_in, C_out), bias (C_out,) or (I, J, C_out), to
    (B, I, J, C_out)."""
    (s1, s2), P, Q = stride, w.shape[0] - 1, w.shape[1] - 1
    B, H, W, _ = x.shape
    z = np.zeros((B, (H - 1 - P) // s1 + 1, (W - 1 - Q) // s2 + 1, w.shape[3]))
    for b, i, j, k in np.ndindex(z.shape):
        for p, q, r in np.ndindex(w.shape[:3]):
            z[b, i, j, k] += x[b, s1 * i + p, s2 * j + q, r] * w[P - p, Q - q, r, k]  # eq. (1)
        if bias is not None:
            z[b, i, j, k] += bias[k] if bias.ndim == 1 else bias[i, j, k]  # eq. (17)
    return z


def conv2d_grad_input(g: Array, w: Array, shape: tuple[int, ...], stride: Pair = (1, 1)) -> Array:
    """Σ_ijk g_ijk ∂C_ijk/∂x_tuv, (2): g (B, I, J, C_out), w (P+1, Q+1, C_in, C_out), to ``shape``, that of x."""
    (s1, s2), P, Q = stride, w.shape[0] - 1, w.shape[1] - 1
    gradient = np.zeros(shape)
    for b, t, u, v in np.ndindex(shape):
        for i, j, k in np.ndindex(g.shape[1:]):
            row, column = P + s1 * i - t, Q + s2 * j - u
            if 0 <= row <= P and 0 <= column <= Q:
                gradient[b, t, u, v] += g[b, i, j, k] * w[row, column, v, k]  # eq. (2)
    return gradient


def conv2d_grad_weight(g: Array, x: Array, shape: tuple[int, ...], stride: Pair = (1, 1)) -> Array:
    """Σ_bijk g_ijk ∂C_ijk/∂w_ctuv, (3): g (B, I, J, C_out), x (B, H, W, C_in), to ``shape``, that of w."""
    (s1, s2), P, Q = stride, shape[0] - 1, shape[1] - 1
    gradient = np.zeros(shape)
    for c, t, u, v in np.ndindex(shape):
        for b, i, j, k in np.ndindex(g.shape):
            gradient[c, t, u, v] += g[b, i, j, k] * x[b, s1 * i + P - c, s2 * j + Q - t, u] * (k == v)  # eq. (3)
    return gradient


def grad_bias(g: Array, shape: tuple[int, ...]) -> Array:
    """Σ g_n ∂z_n/∂b_m, (17), where b with ``shape`` is broadcast to z: (B, I, J, C_out) or (B, J) to (C_out,),
    (J,), or the (I, J, C_out) of a bias for every position."""
    gradient = np.zeros(shape)
    for index in np.ndindex(g.shape):
        gradient[index[-len(shape) :]] += g[index]  # eq. (17)
    return gradient


def argmax_position(window: Array) -> Pair:
    """(p, q) of the maximum: of equal ones the first in row-major order. NaN is the largest; of several, the last."""
    best = (0, 0)
    for p, q in np.ndindex(window.shape):
        if window[p, q] > window[best] or np.isnan(window[p, q]):
            best = (p, q)
    return best


def max_pool2d(x: Array, size: Pair = (2, 2), stride: Pair = (2, 2)) -> Array:
    """P(x), (4): x (B, H, W, K) to (B, I, J, K), in windows of ``size``."""
    (s1, s2), (B, H, W, K) = stride, x.shape
    pooled = np.zeros((B, (H - size[0]) // s1 + 1, (W - size[1]) // s2 + 1, K))
    for b, i, j, k in np.ndindex(pooled.shape):
        window = x[b, s1 * i : s1 * i + size[0], s2 * j : s2 * j + size[1], k]
        p, q = argmax_position(window)
        pooled[b, i, j, k] = x[b, s1 * i + p, s2 * j + q, k]  # eq. (4)
    return pooled


def max_pool2d_backward(g: Array, x: Array, size: Pair = (2, 2), stride: Pair = (2, 2)) -> Array:
    """P⁻¹(g) of section 4.2: each number of g (B, I, J, K), at the position of its maximum in x (B, H, W, K)."""
    s1, s2 = stride
    gradient = np.zeros(x.shape)
    for b, i, j, k in np.ndindex(g.shape):
        window = x[b, s1 * i : s1 * i + size[0], s2 * j : s2 * j + size[1], k]
        p, q = argmax_position(window)
        gradient[b, s1 * i + p, s2 * j + q, k] += g[b, i, j, k]  # the derivative of eq. (4)
    return gradient


def flatten(x: Array) -> Array:
    """F(x), (5): (B, I, J, K) to (B, I·J·K)."""
    B, _, J, K = x.shape
    f = np.zeros((B, x[0].size))
    for b, i, j, k in np.ndindex(x.shape):
        f[b, i * J * K + j * K + k] = x[b, i, j, k]  # eq. (5)
    return f


def unflatten(f: Array, shape: tuple[int, int, int]) -> Array:
    """F⁻¹(f) of section 4.2: (B, I·J·K) to (B, I, J, K), where ``shape`` is (I, J, K)."""
    _, J, K = shape
    x = np.zeros((len(f), *shape))
    for b, i, j, k in np.ndindex(x.shape):
        x[b, i, j, k] = f[b, i * J * K + j * K + k]  # eq. (5)
    return x


def dense(x: Array, w: Array, bias: Array | None = None) -> Array:
    """D(x, w) + b, (6) and (17): x (B, I), w (I, J), bias (J,), to (B, J)."""
    z = np.zeros((len(x), w.shape[1]))
    for b, j in np.ndindex(z.shape):
        for i in range(len(w)):
            z[b, j] += x[b, i] * w[i, j]  # eq. (6)
        if bias is not None:
            z[b, j] += bias[j]  # eq. (17)
    return z


def dense_grad_input(g: Array, w: Array) -> Array:
    """Σ_j g_j ∂D_j/∂x_k, (7): g (B, J), w (I, J), to (B, I)."""
    gradient = np.zeros((len(g), len(w)))
    for b, k in np.ndindex(gradient.shape):
        for j in range(w.shape[1]):
            gradient[b, k] += g[b, j] * w[k, j]  # eq. (7)
    return gradient


def dense_grad_weight(g: Array, x: Array) -> Array:
    """Σ_bj g_j ∂D_j/∂w_ck, (8): g (B, J), x (B, I), to (I, J)."""
    gradient = np.zeros((x.shape[1], g.shape[1]))
    for c, k in np.ndindex(gradient.shape):
        for b, j in np.ndindex(g.shape):
            gradient[c, k] += g[b, j] * x[b, c] * (j == k)  # eq. (8)
    return gradient


# ---------------------------------------------------------------------------- 2 Activation functions


def relu(z: Array) -> Array:
    """R(z), (9), for z of any shape; NaN stays NaN."""
    return np.where(z < 0, 0.0, z)  # eq. (9)


def relu_backward(g: Array, z: Array, subgradient: float = 0.5) -> Array:
    """Σ_i g_i ∂R_i/∂z_j, (10), for z of any shape; ``subgradient`` is the derivative at 0, ½ in (10)."""
    gradient = np.zeros(z.shape)
    for index in np.ndindex(z.shape):
        if z[index] < 0:
            gradient[index] = 0  # eq. (10)
        elif z[index] == 0:
            gradient[index] = subgradient * g[index]  # eq. (10)
        else:
            gradient[index] = g[index]  # eq. (10)
    return gradient


def softmax(z: Array) -> Array:
    """S(z), (11), to the letter: (B, C) to (B, C). e^z must be finite."""
    s = np.zeros(z.shape)
    for b, i in np.ndindex(z.shape):
        s[b, i] = np.exp(z[b, i]) / sum(np.exp(z[b, k]) for k in range(z.shape[1]))  # eq. (11)
    return s


def softmax_jacobian(z: Array) -> Array:
    """∂S_i/∂z_j, (12): z (B, C) to (B, C, C), its last two indices i and j."""
    s = softmax(z)
    jacobian = np.zeros((*z.shape, z.shape[1]))
    for b, i, j in np.ndindex(jacobian.shape):
        jacobian[b, i, j] = s[b, i] * (1 - s[b, j]) if i == j else -s[b, i] * s[b, j]  # eq. (12)
    return jacobian


def softmax_backward(g: Array, z: Array) -> Array:
    """Σ_i g_i ∂S_i/∂z_j: g (B, C), z (B, C), to (B, C)."""
    jacobian, gradient = softmax_jacobian(z), np.zeros(z.shape)
    for b, i, j in np.ndindex(jacobian.shape):
        gradient[b, j] += g[b, i] * jacobian[b, i, j]
    return gradient


# -------------------------------------------------------------------------------------------- 3 Cost


def example_costs(z: Array, y: Array) -> Array:
    """J^b for every b, (14): logits z (B, C), targets y (B, C), to (B,)."""
    x, costs = softmax(z), np.zeros(len(z))
    for b, i in np.ndindex(z.shape):
        costs[b] += -y[b, i] * np.log(x[b, i])  # eq. (14)
    return costs


def cost(z: Array, y: Array) -> float:
    """J, (13): logits z (B, C), targets y (B, C), to a number."""
    return float(sum(example_costs(z, y)) / len(z))  # eq. (13)


def output_gradient(x: Array, y: Array) -> Array:
    """∂J^b/∂x_k^L = −y_k / x_k, the first factor of (15): probabilities x (B, C), targets y (B, C), to (B, C)."""
    return -y / x  # the derivative of eq. (14)


def example_costs_gradient(z: Array, y: Array) -> Array:
    """∂J^b/∂z_j for every b, (15), for targets of any sum: z (B, C), y (B, C), to (B, C). ∂J/∂z_j is 1/B of it."""
    x, gradient = softmax(z), np.zeros(z.shape)
    for b, j in np.ndindex(z.shape):
        others = sum(y[b, k] * x[b, j] for k in range(z.shape[1]) if k != j)
        gradient[b, j] = -y[b, j] * (1 - x[b, j]) + others  # eq. (15)
    return gradient
