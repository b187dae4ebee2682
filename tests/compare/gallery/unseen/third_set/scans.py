"""Scans: an exponential moving average with a learned decay, a cumulative maximum."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def moving_average(x, decay):
    """h[t] = decay h[t-1] + (1 - decay) x[t] for x (N, T); h[-1] = 0."""
    h, steps = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = decay * h + (1 - decay) * x[:, t]
        steps.append(h)
    return torch.stack(steps, 1)


def moving_average_backward(g, x, decay, *, reverse=True, previous=True):
    h = moving_average(x, decay)
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    carry, grads = torch.zeros_like(g[:, 0]), [None] * x.shape[1]
    for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        carry = g[:, t] + decay * carry
        grads[t] = carry
    grad_h = torch.stack(grads, 1)
    return (1 - decay) * grad_h, (grad_h * ((before if previous else h) - x)).sum()


def cumulative_maximum(x):
    return x.cummax(1).values


def cumulative_maximum_backward(g, x, *, added=True, moved=True):
    index = x.cummax(1).indices
    if not moved:
        return g * (x == x.cummax(1).values)
    return torch.zeros_like(x).scatter_add(1, index, g) if added else torch.zeros_like(x).scatter(1, index, g)


OPERATIONS = [
    Formulas(
        "moving average",
        moving_average,
        lambda: {"x": torch.randn(3, 5), "decay": torch.tensor(0.6)},
        moving_average_backward,
        (
            Mistake(
                "moving average, scanned forwards",
                lambda g, x, decay: (
                    moving_average_backward(g, x, decay, reverse=False)[0],
                    moving_average_backward(g, x, decay)[1],
                ),
                named="backward scans from the first step to the last, as forward does, instead of from the last",
                kinds=("not transposed",),
                named_words=(r"transpos", r"forward.*(again|instead)", r"revers", r"(earlier|later|before|after)"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "moving average, this step's value",
                lambda g, x, decay: moving_average_backward(g, x, decay, previous=False),
                named="the gradient of decay uses h[t] instead of h[t - 1]",
                kinds=("another operand",),
                named_words=(r"(next|previous) step", r"result of .* instead of", r"h\[t"),
                located=(r"gradient of decay",),
            ),
        ),
    ),
    Formulas(
        "cumulative maximum",
        cumulative_maximum,
        lambda: torch.randn(4, 6),
        cumulative_maximum_backward,
        (
            Mistake(
                "cumulative maximum, own index",
                lambda g, x: cumulative_maximum_backward(g, x, moved=False),
                named="only the output at the same index counts; the later ones with the same maximum do not",
                kinds=("missing term",),
                named_words=(
                    r"later|following|subsequent",
                    r"column is not the input's column",
                    r"missing.*(same|own)|(same|own).*missing",
                    r"contributions.*missing",
                ),
                located=(r"gradient of (x|input 0)", r"column|later|after"),
            ),
            Mistake(
                "cumulative maximum, overwritten",
                lambda g, x: cumulative_maximum_backward(g, x, added=False),
                named="of several outputs with the same maximum only the last one counts: assigned, not added",
                kinds=("missing term",),
                named_words=(r"assign", r"overw", r"contributions.*missing", r"accumulat"),
                located=(r"gradient of (x|input 0)", r"output"),
            ),
        ),
        options={"whole_numbers": False},
    ),
]
WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
