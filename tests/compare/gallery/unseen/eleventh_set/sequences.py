"""Sequences: a transducer, the delta rule, a clockwork network."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

PERIODS = torch.tensor([1, 2, 3, 2])
NEVER = -100.0


def before_nodes(blank, emit):
    """Logarithm of the summed paths to each node (t, u) of the grid, T lists of U tensors (N,)."""
    grid = []
    for t in range(blank.shape[1]):
        row = []
        for u in range(blank.shape[2]):
            ways = [grid[t - 1][u] + blank[:, t - 1, u]] if t else []
            ways += [row[u - 1] + emit[:, t, u - 1]] if u else []
            row.append(torch.stack(ways).logsumexp(0) if ways else torch.zeros_like(blank[:, 0, 0]))
        grid.append(row)
    return grid


def after_nodes(blank, emit):
    """Logarithm of the summed paths from each node to the end, with one further row that cannot reach it."""
    steps, labels = blank.shape[1:]
    grid = [[torch.full_like(blank[:, 0, 0], NEVER)] * (labels + 1) for _ in range(steps + 1)]
    for t in reversed(range(steps)):
        for u in reversed(range(labels)):
            if (t, u) == (steps - 1, labels - 1):
                grid[t][u] = blank[:, t, u]
                continue
            ways = [grid[t + 1][u] + blank[:, t, u]]
            ways += [grid[t][u + 1] + emit[:, t, u]] if u + 1 < labels else []
            grid[t][u] = torch.stack(ways).logsumexp(0)
    return grid


def transducer(blank, emit):
    return -(before_nodes(blank, emit)[-1][-1] + blank[:, -1, -1])


def transducer_backward(g, blank, emit, *, last_blank=True, next_label=1):
    before, after = before_nodes(blank, emit), after_nodes(blank, emit)
    total = before[-1][-1] + blank[:, -1, -1]
    grad_blank, grad_emit = torch.zeros_like(blank), torch.zeros_like(emit)
    for t in range(blank.shape[1]):
        for u in range(blank.shape[2]):
            grad_blank[:, t, u] = -g * (before[t][u] + blank[:, t, u] + after[t + 1][u] - total).exp()
            if u < emit.shape[2]:
                grad_emit[:, t, u] = -g * (before[t][u] + emit[:, t, u] + after[t][u + next_label] - total).exp()
    grad_blank[:, -1, -1] = -g if last_blank else 0
    return grad_blank, grad_emit


def delta_states(k, v, beta):
    """States before each step, (D, E) each, and the errors of the values that they store, (E,) each."""
    states, errors = [k.new_zeros(k.shape[1], v.shape[1])], []
    for t in range(len(k)):
        errors.append(v[t] - k[t] @ states[t])
        states.append(states[t] + beta[t] * k[t, :, None] * errors[t])
    return states, errors


def delta_rule(q, k, v, beta):
    states, _ = delta_states(k, v, beta)
    return torch.stack([q[t] @ states[t + 1] for t in range(len(q))])


def delta_rule_backward(g, q, k, v, beta, *, error=True, through_read=True):
    states, errors = delta_states(k, v, beta)
    grad_q, grad_k, grad_v, grad_beta = (torch.zeros_like(x) for x in (q, k, v, beta))
    grad = torch.zeros_like(states[0])
    for t in reversed(range(len(q))):
        grad_q[t] = states[t + 1] @ g[t]
        grad = grad + q[t, :, None] * g[t]
        grad_beta[t] = k[t] @ grad @ (errors[t] if error else v[t])
        grad_v[t] = beta[t] * (k[t] @ grad)
        grad_k[t] = beta[t] * (grad @ errors[t]) - states[t] @ grad_v[t]
        if through_read:
            grad = grad - k[t, :, None] * grad_v[t]
    return grad_q, grad_k, grad_v, grad_beta


def clockwork(x, u):
    h, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.where(t % PERIODS == 0, (x[:, t] + u * h).tanh(), h)
        states.append(h)
    return torch.stack(states, 1)


def clockwork_backward(g, x, u, *, from_end=False):
    states = clockwork(x, u)
    grad_x, grad_u, carry = torch.zeros_like(x), torch.zeros_like(u), torch.zeros_like(x[:, 0])
    for n, t in enumerate(reversed(range(x.shape[1]))):
        is_updated = (n if from_end else t) % PERIODS == 0
        before = states[:, t - 1] if t else torch.zeros_like(carry)
        carry = carry + g[:, t]
        grad = carry * is_updated * (1 - (x[:, t] + u * before).tanh() ** 2)
        grad_x[:, t] = grad
        grad_u = grad_u + (grad * before).sum(0)
        carry = carry * ~is_updated + grad * u
    return grad_x, grad_u


OPERATIONS = [
    Formulas(
        "transducer",
        transducer,
        lambda: {"blank": torch.randn(2, 3, 3), "emit": torch.randn(2, 3, 2)},
        transducer_backward,
        (
            Mistake(
                "transducer, last blank",
                lambda g, *inputs: transducer_backward(g, *inputs, last_blank=False),
                named="the last blank, with which every path ends, has no gradient",
                kinds=("missing term", "zero", "only at some indices", "few elements", "only at borders"),
                named_words=(r"missing|no effect", r"\b(is|are) 0\b|\bzero|got 0\b", r"constant"),
                located=(r"gradient of blank", r"2, 2\]|\blast\b|\b= 2\b|(row|column) 2|line \d+"),
            ),
            Mistake(
                "transducer, node after a label",
                lambda g, *inputs: transducer_backward(g, *inputs, next_label=0),
                named="the paths after a label are those from the node before it: an index off by one",
                kinds=("another operand", "factor by element", "missing term", "step left out"),
                named_words=(
                    r"shift|off by one|one too (large|small)|rotated",
                    r"(earlier|later|previous|next|other|same) (step|label|node|place|index)",
                    r"\bind(ex|ices)\b.*(instead|one too|other)|(other|wrong|instead).*\bind(ex|ices)\b",
                ),
                located=(r"gradient of emit",),
            ),
        ),
    ),
    Formulas(
        "delta rule",
        delta_rule,
        lambda: {
            "q": torch.randn(4, 3),
            "k": 0.7 * torch.randn(4, 3),
            "v": torch.randn(4, 2),
            "beta": 0.3 + 0.6 * torch.rand(4),
        },
        delta_rule_backward,
        (
            Mistake(
                "delta rule, value for error",
                lambda g, *inputs: delta_rule_backward(g, *inputs, error=False),
                named="the gradient of beta uses the value v instead of the error, v minus what the state has",
                kinds=("another operand", "step left out", "missing term"),
                named_words=(r"\bsub\b", r"\bv\b.*instead", r"without (the )?(sub|state)|missing"),
                located=(r"gradient of beta",),
            ),
            Mistake(
                "delta rule, read as a constant",
                lambda g, *inputs: delta_rule_backward(g, *inputs, through_read=False),
                named="what a step reads from the state is a constant when the gradient is carried back to the state",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"no effect", r"detach"),
                located=(r"\bk\b", r"\bv\b", r"\bbeta\b"),
            ),
        ),
    ),
    Formulas(
        "clockwork network",
        clockwork,
        lambda: {"x": torch.randn(2, 6, 4), "u": torch.randn(4)},
        clockwork_backward,
        (
            Mistake(
                "clockwork network, steps counted from the end",
                lambda g, x, u: clockwork_backward(g, x, u, from_end=True),
                named="backward counts the steps from the end: it takes other steps for those that update a unit",
                kinds=(
                    "another operand",
                    "flipped",
                    "permuted",
                    "step left out",
                    "missing term",
                    "only at some indices",
                ),
                named_words=(
                    r"revers|flip",
                    r"\bremainder\b|\bwhere\b|condition|\bmask",
                    r"(other|another|wrong|different) (steps?|order|places?)",
                ),
                located=(r"gradient of x|\bx and u\b", r"\bu\b"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
