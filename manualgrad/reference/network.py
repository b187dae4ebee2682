"""Section 4 of the formula sheet (docs/equations.md), equations (16) to (23): the network and its backpropagation.

Everything is a float64 NumPy array in the layout that ``operations.py`` states; no code is shared with
``manualgrad.ops``. ``delta`` is δ^l = −η ∂J/∂z^l, and ``delta_x`` is −η ∂J/∂x^l.
"""

from __future__ import annotations

import numpy as np

from manualgrad.reference.operations import (
    Array,
    Pair,
    conv2d,
    conv2d_grad_input,
    conv2d_grad_weight,
    dense,
    dense_grad_input,
    dense_grad_weight,
    flatten,
    grad_bias,
    max_pool2d,
    max_pool2d_backward,
    output_gradient,
    relu,
    relu_backward,
    softmax,
    softmax_backward,
    unflatten,
)


def activation_letters(weights: list[Array]) -> list[str]:
    """σ^0 to σ^(L−1) of (23), letter for letter: "FPR" is F(P(R(z))).

    The four weights of (22), two kernels and two matrices, give PR, FPR, R, S. Other numbers of kernels and matrices
    are possible; at least one of each is needed.
    """
    convolutions = sum(w.ndim == 4 for w in weights)
    matrices = len(weights) - convolutions  # L = 4 = 2 + 2, eq. (22)
    return ["PR"] * (convolutions - 1) + ["FPR"] + ["R"] * (matrices - 1) + ["S"]  # eq. (23)


def apply_activation(sigma: str, z: Array) -> Array:
    """σ(z), from its last letter to its first."""
    for letter in reversed(sigma):
        if letter == "R":
            z = relu(z)
        elif letter == "P":
            z = max_pool2d(z)
        elif letter == "F":
            z = flatten(z)
        else:
            z = softmax(z)
    return z


def activation_backward(sigma: str, g: Array, z: Array, subgradient: float = 0.5) -> Array:
    """Σ_k g_k ∂σ_k/∂z_i, from the first letter of σ to its last, for the σ of :func:`activation_letters`."""
    if sigma == "S":
        return softmax_backward(g, z)
    if "F" in sigma:
        _, rows, columns, channels = max_pool2d(relu(z)).shape
        g = unflatten(g, (rows, columns, channels))
    if "P" in sigma:
        g = max_pool2d_backward(g, relu(z))
    return relu_backward(g, z, subgradient)


def forward(
    x: Array, weights: list[Array], biases: list[Array], stride: Pair = (1, 1)
) -> tuple[list[Array], list[Array]]:
    """The lists of z^l, l = 0 to L−1, and of x^l, l = 0 to L, of the network of (23). x (B, H, W, C_in) is x^0."""
    zs, xs = [], [x]
    for w, bias, sigma in zip(weights, biases, activation_letters(weights), strict=True):
        x = xs[-1]
        zs.append(conv2d(x, w, bias, stride) if w.ndim == 4 else dense(x, w, bias))  # eq. (17), with f^l of eq. (23)
        xs.append(apply_activation(sigma, zs[-1]))  # eq. (16)
    return zs, xs


def backpropagate(
    zs: list[Array],
    xs: list[Array],
    y: Array,
    weights: list[Array],
    biases: list[Array],
    eta: float,
    stride: Pair = (1, 1),
    subgradient: float = 0.5,
) -> tuple[list[Array], list[Array], list[Array]]:
    """δ^l, Δw^l and Δb^l for l = 0 to L−1, (18) to (21), from the results of :func:`forward` and targets y (B, C).

    They are those of each example: the first dimension is B, the others are those of z^l, w^l and b^l. −η is a factor
    of all three. An update adds the :func:`batch_mean` of Δw^l and Δb^l to w^l and b^l.
    """
    sigmas = activation_letters(weights)
    deltas = [activation_backward("S", -eta * output_gradient(xs[-1], y), zs[-1])]  # eq. (19)
    for n in range(len(weights) - 1, 0, -1):
        w, x, delta = weights[n], xs[n], deltas[0]
        delta_x = conv2d_grad_input(delta, w, x.shape, stride) if w.ndim == 4 else dense_grad_input(delta, w)
        deltas.insert(0, activation_backward(sigmas[n - 1], delta_x, zs[n - 1], subgradient))  # eq. (20)

    weight_updates, bias_updates = [], []
    for w, bias, x, delta in zip(weights, biases, xs[:-1], deltas, strict=True):
        examples = [(delta[b : b + 1], x[b : b + 1]) for b in range(len(x))]
        if w.ndim == 4:
            updates = [conv2d_grad_weight(delta_b, x_b, w.shape, stride) for delta_b, x_b in examples]  # eq. (21)
        else:
            updates = [dense_grad_weight(delta_b, x_b) for delta_b, x_b in examples]  # eq. (21)
        weight_updates.append(np.stack(updates))
        bias_updates.append(np.stack([grad_bias(delta_b, bias.shape) for delta_b, _ in examples]))  # eq. (18)
    return deltas, weight_updates, bias_updates


def batch_mean(updates: list[Array]) -> list[Array]:
    """Means over the examples, from (B, ...) to (...): J of (13) is the mean of J^b, and so are its updates."""
    return [sum(update[b] for b in range(len(update))) / len(update) for update in updates]  # eq. (13)
