"""Mistakes that one gradient of one draw does not show: they need Jacobians, changed natives, or several draws."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.compare.gallery.wrong_function import hand_written, randn, wrong_function

T = 4  # steps of the scan


def gate(x: Tensor, h: Tensor) -> Tensor:
    z = torch.sigmoid(x + h)
    n = torch.tanh(x)
    return (1 - z) * n + z * h


def gate_backward(
    g: Tensor, x: Tensor, h: Tensor, *, sign: float = 1, tanh_from: str = "result"
) -> tuple[Tensor, Tensor]:
    z, n = torch.sigmoid(x + h), torch.tanh(x)
    from_gate = sign * g * (h - n) * z * (1 - z)
    inner = n if tanh_from == "result" else x
    return from_gate + g * (1 - z) * (1 - inner * inner), from_gate + g * z


def scan(x: Tensor, a: Tensor) -> Tensor:
    states = [0.5 * x[:, 0]]
    for t in range(1, T):
        states.append(a * states[-1] + 0.5 * x[:, t])
    return torch.stack(states, 1)


def masked_softmax(x: Tensor) -> Tensor:
    future = torch.ones(x.shape[-2:], dtype=torch.bool).triu(1)
    return x.masked_fill(future, -1e4).softmax(-1)


def softmax_backward(g: Tensor, p: Tensor, dim: int = -1) -> Tensor:
    return p * (g - (g * p).sum(dim, keepdim=True))


def gradient(function, inputs, g):
    """Gradient of the first input by autograd, in a mistake that comes after it."""
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in inputs]
        return torch.autograd.grad(function(*leaves), leaves[0], g)[0]


def cholesky(a: Tensor) -> Tensor:
    return torch.linalg.cholesky((a + a.T) / 2)


def cholesky_backward(g: Tensor, a: Tensor) -> Tensor:
    right = gradient(cholesky, (a,), g)
    return right.tril() + right.tril(-1)


SECOND_QUESTION = [
    wrong_function(
        "gate: the path through the gate has the wrong sign", "factor of one term", "x",
        hand_written(gate, lambda g, x, h: gate_backward(g, x, h, sign=-1)), gate, randn(x=(4, 3), h=(4, 3)),
        "wrong sign", also_wrong=("h",),
    ),
    wrong_function(
        "gate: the derivative of tanh from its argument", "another operand", "x",
        hand_written(gate, lambda g, x, h: gate_backward(g, x, h, tanh_from="argument")), gate,
        randn(x=(4, 3), h=(4, 3)), "tanh",
    ),
    wrong_function(
        "causal softmax: the mask forgotten in backward", "step left out", "x",
        hand_written(masked_softmax, lambda g, x: softmax_backward(g, x.softmax(-1))), masked_softmax,
        randn(x=(3, 4, 4)), "masked_fill",
    ),
    wrong_function(
        "scan: the carry forgotten", "missing term", "x",
        hand_written(scan, lambda g, x, a: (0.5 * g, gradient(lambda a, x: scan(x, a), (a, x), g))), scan,
        lambda: {"x": torch.randn(3, T), "a": torch.tensor(0.7)}, ("add", "after"),
    ),
    wrong_function(
        "cumsum: forward applied to the incoming gradient", "not transposed", "x",
        hand_written(lambda x: x.cumsum(1), lambda g, x: g.cumsum(1)), lambda x: x.cumsum(1), randn(x=(3, 5)),
    ),
    wrong_function(
        "logsumexp: the mean of the incoming gradient", "wrong sum", "x",
        hand_written(lambda x: x.logsumexp(1), lambda g, x: g.mean() * x.softmax(1)), lambda x: x.logsumexp(1),
        randn(x=(5, 4)), "averaged",
    ),
    wrong_function(
        "cholesky: the gradient is not symmetrised", "wrong half", "a",
        hand_written(cholesky, cholesky_backward), cholesky, 
        lambda: {"a": 4 * torch.eye(4) + 0.3 * torch.randn(4, 4)},
        "diagonal", whole_numbers=False,
    ),
    wrong_function(
        "softsign: the derivative of another function", "factor by element", "x",
        hand_written(lambda x: x / (1 + x.abs()), lambda g, x: g / (1 + x * x)), lambda x: x / (1 + x.abs()),
        randn(x=(4, 5)), "times 1/(1 + x²); that is not the derivative",
    ),
    wrong_function(
        "leaky ReLU: the slope forgotten", "only for some values", "x",
        hand_written(lambda x: torch.where(x > 0, x, 0.125 * x), lambda g, x: g * (x > 0)),
        lambda x: torch.where(x > 0, x, 0.125 * x), randn(x=(4, 5)), "x < 0",
    ),
    wrong_function(
        "product: the first row doubled", "only at some indices", "x",
        hand_written(lambda x: x.sin(), lambda g, x: torch.cat([2 * g[:1], g[1:]]) * x.cos()), lambda x: x.sin(),
        randn(x=(4, 5)), "row is 0",
    ),
]  # fmt: skip
