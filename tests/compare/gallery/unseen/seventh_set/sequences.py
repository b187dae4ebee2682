"""Sequences: a recurrence of order 2, the trapezoidal rule, running sums that start anew."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def recurrence(x, a, b):
    """Each element plus ``a`` times the last result and ``b`` times the one before, (N, T)."""
    zero = torch.zeros_like(a)
    columns = [zero, zero]
    for t in range(x.shape[1]):
        columns.append(x[:, t] + a * columns[-1] + b * columns[-2])
    return torch.stack(columns[2:], 1)


def delayed(y, steps):
    return torch.cat([torch.zeros_like(y[:, :steps]), y[:, :-steps]], 1)


def recurrence_backward(g, x, a, b, *, carried=True, steps_of_b=2):
    y = recurrence(x, a, b)
    grad = recurrence(g.flip(1), a, b if carried else torch.zeros_like(b)).flip(1)
    return grad, (grad * delayed(y, 1)).sum(1), (grad * delayed(y, steps_of_b)).sum(1)


def integral(y, place):
    return torch.cumulative_trapezoid(y, place, dim=1)


def integral_backward(g, y, place, *, halved_at_ends=True):
    zero = torch.zeros_like(y[:, :1])
    later = g.flip(1).cumsum(1).flip(1)
    area = later * place.diff()
    grad_y = (torch.cat([area, zero], 1) + torch.cat([zero, area], 1)) / 2
    if not halved_at_ends:
        grad_y[:, 0] *= 2
        grad_y[:, -1] *= 2
    height = (later * (y[:, 1:] + y[:, :-1]) / 2).sum(0)
    return grad_y, torch.cat([zero[0], height]) - torch.cat([height, zero[0]])


def sums(x, start):
    columns = [x[:, 0]]
    for t in range(1, x.shape[1]):
        columns.append(x[:, t] + (1 - start[:, t]) * columns[-1])
    return torch.stack(columns, 1)


def sums_backward(g, x, start, *, offset=1):
    columns = [g[:, -1]]
    for t in reversed(range(x.shape[1] - 1)):
        columns.insert(0, g[:, t] + (1 - start[:, t + offset]) * columns[0])
    return torch.stack(columns, 1), None


OPERATIONS = [
    Formulas(
        "recurrence of order 2",
        recurrence,
        lambda: {"x": torch.randn(3, 7), "a": 0.8 * torch.rand(3), "b": 0.3 + 0.5 * torch.rand(3)},
        recurrence_backward,
        (
            Mistake(
                "recurrence of order 2, second carry",
                lambda g, *inputs: recurrence_backward(g, *inputs, carried=False),
                named="backward does not carry the gradient over two steps, through b y[t - 2]",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"detach", r"no effect", r"later|earlier|previous"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "recurrence of order 2, index of the second",
                lambda g, *inputs: recurrence_backward(g, *inputs, steps_of_b=1),
                named="the gradient of b uses y[t - 1] instead of y[t - 2]: it is the gradient of a",
                kinds=("swapped", "shifted", "another operand"),
                named_words=(r"gradient of (input )?a\b", r"shift", r"instead of", r"one step"),
                located=(r"gradient of b\b",),
            ),
        ),
    ),
    Formulas(
        "trapezoidal rule",
        integral,
        lambda: {"y": torch.randn(3, 6), "place": (0.2 + torch.rand(6)).cumsum(0)},
        integral_backward,
        (
            Mistake(
                "trapezoidal rule, weight of the ends",
                lambda g, y, place: integral_backward(g, y, place, halved_at_ends=False),
                named="the first and the last column have the weight 1 instead of 1/2",
                kinds=("only at borders", "only at some indices", "factor by element"),
                named_words=(r"border|edge", r"\bfirst\b.*\blast\b", r"columns? (\[)?0"),
                located=(r"gradient of y", r"border|edge|first|last|columns? (\[)?0"),
            ),
        ),
    ),
    Formulas(
        "sums that start anew",
        sums,
        lambda: {
            "x": torch.randn(3, 6),
            "start": torch.tensor([[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0]]),
        },
        sums_backward,
        (
            Mistake(
                "sums that start anew, one step too early",
                lambda g, x, start: sums_backward(g, x, start, offset=0),
                named="the carry to step t is stopped by start[t] instead of start[t + 1]",
                kinds=("missing term", "shifted", "another operand", "permuted"),
                named_words=(
                    r"missing",
                    r"no effect",
                    r"too many|surplus|should not|should have",
                    r"shift",
                    r"\bstart\b",
                ),
                located=(r"gradient of x",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
