"""Scans: a state space with learned steps, discounted returns."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def states(dt, x, a, b):
    """States before the first step and after each, (T + 1, S)."""
    h = [torch.zeros_like(a)]
    for t in range(len(x)):
        h.append((-dt[t] * a).exp() * h[-1] + dt[t] * x[t] * b)
    return torch.stack(h)


def state_space(dt, x, a, b, c):
    return states(dt, x, a, b)[1:] @ c


def state_space_backward(g, dt, x, a, b, c, *, state_after=False):
    h = states(dt, x, a, b)
    decay = (-dt[:, None] * a).exp()
    carried = torch.zeros_like(a)
    grad_h = torch.empty_like(decay)
    for t in reversed(range(len(x))):
        grad_h[t] = carried + g[t] * c
        carried = grad_h[t] * decay[t]
    grad_dt = (grad_h * (x[:, None] * b - a * decay * h[:-1])).sum(1)
    grad_a = -(dt[:, None] * grad_h * decay * (h[1:] if state_after else h[:-1])).sum(0)
    return grad_dt, dt * (grad_h @ b), grad_a, (dt * x) @ grad_h, g @ h[1:]


def returns(r, discount):
    """Each reward plus the discounted return after it, (N, T)."""
    columns = [r[:, -1]]
    for t in reversed(range(r.shape[1] - 1)):
        columns.insert(0, r[:, t] + discount * columns[0])
    return torch.stack(columns, 1)


def carry(g, discount):
    """Sums of the incoming gradient with the discount, from the first step to the last."""
    columns = [g[:, 0]]
    for t in range(1, g.shape[1]):
        columns.append(g[:, t] + discount * columns[-1])
    return torch.stack(columns, 1)


def returns_backward(g, r, discount, *, as_forward=False, carried=True):
    grad = carry(g, discount)
    grad_discount = ((grad if carried else g)[:, :-1] * returns(r, discount)[:, 1:]).sum()
    return returns(g, discount) if as_forward else grad, grad_discount


OPERATIONS = [
    Formulas(
        "state space",
        state_space,
        lambda: {
            "dt": 0.1 + torch.rand(6),
            "x": torch.randn(6),
            "a": 0.5 + torch.rand(3),
            "b": torch.randn(3),
            "c": torch.randn(3),
        },
        state_space_backward,
        (
            Mistake(
                "state space, state after the step",
                lambda g, *inputs: state_space_backward(g, *inputs, state_after=True),
                named="the gradient of the decay a uses the state after the step instead of the one before",
                kinds=("another operand", "shifted"),
                named_words=(r"state after|after the step", r"shift", r"instead of"),
                located=(r"gradient of a\b",),
            ),
        ),
    ),
    Formulas(
        "discounted returns",
        returns,
        lambda: {"r": torch.randn(3, 6), "discount": torch.tensor(0.7)},
        returns_backward,
        (
            Mistake(
                "discounted returns, direction",
                lambda g, r, d: returns_backward(g, r, d, as_forward=True),
                named="the scan in backward runs in the direction of forward instead of the reverse",
                kinds=("not transposed", "flipped"),
                named_words=(r"transpos", r"derivative of forward", r"revers|direction|flip"),
                located=(r"gradient of r\b",),
            ),
            Mistake(
                "discounted returns, carry detached",
                lambda g, r, d: returns_backward(g, r, d, carried=False),
                named="the gradient of the discount has only the direct effect on each step, not that of later steps",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"detach", r"later|earlier|previous"),
                located=(r"gradient of discount",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
