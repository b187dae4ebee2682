"""Section 4 of the document, equations (16) to (23): the network and its backpropagation, out of ``operations.py``.

Everything is a float64 NumPy array in the document's layout; nothing is shared with ``manualgrad.ops``.
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


def activations(weights: list[Array]) -> list[str]:
    """σ^0 to σ^(L−1) of (23), letter for letter: "FPR" is F(P(R(z))). The document's four weights, two kernels and
    two matrices, give PR, FPR, R, S; there may be any number of each, but one at least."""
    convolutions = sum(w.ndim == 4 for w in weights)
    matrices = len(weights) - convolutions  # L = 4 = 2 + 2, eq. (22)
    return ["PR"] * (convolutions - 1) + ["FPR"] + ["R"] * (matrices - 1) + ["S"]  # eq. (23)


def activate(sigma: str, z: Array) -> Array:
    """σ(z), from its last letter to its first."""
    for letter in reversed(sigma):
        z = {"R": relu, "P": max_pool2d, "F": flatten, "S": softmax}[letter](z)
    return z


def activation_gradient(sigma: str, delta: Array, z: Array, subgradient: float = 0.5) -> Array:
    """Σ_k δ_k ∂σ_k/∂z_i, from the first letter of σ to its last: S alone, or (F and) P and R, or R alone."""
    if sigma == "S":
        return softmax_backward(delta, z)
    if "F" in sigma:
        delta = unflatten(delta, max_pool2d(relu(z)).shape[1:])
    if "P" in sigma:
        delta = max_pool2d_backward(delta, relu(z))
    return relu_backward(delta, z, subgradient)


def forward(
    x: Array, weights: list[Array], biases: list[Array], stride: Pair = (1, 1)
) -> tuple[list[Array], list[Array]]:
    """All z^l, l = 0 to L−1, and all x^l, l = 0 to L, of the network of (23): x (B, H, W, R) is x^0."""
    zs, xs = [], [x]
    for w, bias, sigma in zip(weights, biases, activations(weights), strict=True):
        x = xs[-1]
        zs.append(conv2d(x, w, bias, stride) if w.ndim == 4 else dense(x, w, bias))  # eq. (17), with f^l of eq. (23)
        xs.append(activate(sigma, zs[-1]))  # eq. (16)
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
    """δ^l, Δw^l and Δb^l for l = 0 to L−1, (18) to (21), from what :func:`forward` returns and targets y (B, C).

    All three belong to one example each: their first dimension is B, the others are those of z^l, w^l and b^l. η is
    in them, with its minus. A step adds their :func:`batch_mean` to w^l and b^l.
    """
    sigmas = activations(weights)
    deltas = [activation_gradient("S", -eta * output_gradient(xs[-1], y), zs[-1])]  # eq. (19)
    for n in range(len(weights) - 1, 0, -1):
        w, x, delta = weights[n], xs[n], deltas[0]
        delta = conv2d_grad_input(delta, w, x.shape, stride) if w.ndim == 4 else dense_grad_input(delta, w)
        deltas.insert(0, activation_gradient(sigmas[n - 1], delta, zs[n - 1], subgradient))  # eq. (20)

    weight_steps, bias_steps = [], []
    for w, bias, x, delta in zip(weights, biases, xs[:-1], deltas, strict=True):
        examples = [(delta[b : b + 1], x[b : b + 1]) for b in range(len(x))]
        if w.ndim == 4:
            steps = [conv2d_grad_weight(delta_b, x_b, w.shape, stride) for delta_b, x_b in examples]  # eq. (21)
        else:
            steps = [dense_grad_weight(delta_b, x_b) for delta_b, x_b in examples]  # eq. (21)
        weight_steps.append(np.stack(steps))
        bias_steps.append(np.stack([grad_bias(delta_b, bias.shape) for delta_b, _ in examples]))  # eq. (18)
    return deltas, weight_steps, bias_steps


def batch_mean(steps: list[Array]) -> list[Array]:
    """Each (B, ...) to (...), the mean over the examples: what (13) makes of the steps for each J^b."""
    return [sum(step[b] for b in range(len(step))) / len(step) for step in steps]  # eq. (13)
