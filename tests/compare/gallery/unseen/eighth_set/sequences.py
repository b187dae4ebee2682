"""Sequences: selective scan, soft time warping, pooling with a forget gate."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

GAMMA = 0.5
FAR = 1e3  # cost of a path that begins elsewhere; its weight exp(-FAR / GAMMA) is 0


def states(x, step, rate, b):
    """States before the first step and after each, T + 1 tensors (N, S)."""
    h = [torch.zeros_like(b[:, 0])]
    for t in range(x.shape[1]):
        h.append((step[:, t, None] * rate).exp() * h[-1] + (step * x)[:, t, None] * b[:, t])
    return h


def scan(x, step, rate, b, c):
    return (torch.stack(states(x, step, rate, b)[1:], 1) * c).sum(2)


def scan_backward(g, x, step, rate, b, c, *, through_input=True, rate_step=True):
    h = torch.stack(states(x, step, rate, b), 1)
    decay = (step[..., None] * rate).exp()
    carried = [g[:, -1, None] * c[:, -1]]
    for t in reversed(range(x.shape[1] - 1)):
        carried.insert(0, g[:, t, None] * c[:, t] + decay[:, t + 1] * carried[0])
    gh = torch.stack(carried, 1)
    grad_exponent = gh * h[:, :-1] * decay
    grad_input = (gh * b).sum(2)
    grad_step = (grad_exponent * rate).sum(2)
    grad_step = grad_step + grad_input * x if through_input else grad_step
    grad_rate = (grad_exponent * step[..., None] if rate_step else grad_exponent).sum((0, 1))
    return grad_input * step, grad_step, grad_rate, gh * (step * x)[..., None], g[..., None] * h[:, 1:]


def warping_costs(d):
    """Costs of the best paths to each pair of steps, with a border: lists of tensors (N,)."""
    far = torch.full_like(d[:, 0, 0], FAR)
    costs = [[far] * (d.shape[2] + 1) for _ in range(d.shape[1] + 1)]
    costs[0][0] = torch.zeros_like(far)
    for i in range(d.shape[1]):
        for j in range(d.shape[2]):
            before = torch.stack([costs[i][j], costs[i][j + 1], costs[i + 1][j]])
            costs[i + 1][j + 1] = d[:, i, j] - GAMMA * (-before / GAMMA).logsumexp(0)
    return costs


def warping(d):
    return warping_costs(d)[-1][-1]


def warping_backward(g, d, *, diagonal=True, gamma=GAMMA):
    costs = warping_costs(d)
    rows, columns = d.shape[1:]
    grads = [[torch.zeros_like(g)] * (columns + 1) for _ in range(rows + 1)]
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            if (i, j) == (rows - 1, columns - 1):
                grads[i][j] = g
                continue
            for di, dj in ((1, 1), (1, 0), (0, 1)) if diagonal else ((1, 0), (0, 1)):
                if i + di < rows and j + dj < columns:
                    best = costs[i + 1 + di][j + 1 + dj] - d[:, i + di, j + dj]
                    weight = ((best - costs[i + 1][j + 1]) / gamma).exp()
                    grads[i][j] = grads[i][j] + grads[i + di][j + dj] * weight
    return torch.stack([torch.stack(row[:-1], 1) for row in grads[:-1]], 1)


def pooled(z, logits):
    forget = logits.sigmoid()
    h = [torch.zeros_like(z[:, 0])]
    for t in range(z.shape[1]):
        h.append(forget[:, t] * h[-1] + (1 - forget[:, t]) * z[:, t])
    return torch.stack(h[1:], 1)


def pooled_backward(g, z, logits, *, candidate=True):
    forget = logits.sigmoid()
    h = pooled(z, logits)
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    carried = [g[:, -1]]
    for t in reversed(range(z.shape[1] - 1)):
        carried.insert(0, g[:, t] + forget[:, t + 1] * carried[0])
    gh = torch.stack(carried, 1)
    return gh * (1 - forget), gh * (before - z if candidate else before) * forget * (1 - forget)


OPERATIONS = [
    Formulas(
        "selective scan",
        scan,
        lambda: {
            "x": torch.randn(2, 4),
            "step": 0.3 + torch.rand(2, 4),
            "rate": -0.3 - torch.rand(3),
            "b": torch.randn(2, 4, 3),
            "c": torch.randn(2, 4, 3),
        },
        scan_backward,
        (
            Mistake(
                "selective scan, step of the input",
                lambda g, *inputs: scan_backward(g, *inputs, through_input=False),
                named="the gradient of step has the term through the decay only, not that through step b x",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"one use|second use|used twice", r"no effect"),
                located=(r"gradient of step",),
            ),
            Mistake(
                "selective scan, step left out of the rate's gradient",
                lambda g, *inputs: scan_backward(g, *inputs, rate_step=False),
                named="the factor step is missing in the gradient of rate",
                kinds=("step left out", "another operand", "factor by element"),
                named_words=(r"\bmul\b.*left out", r"\bstep\b", r"factor of its own", r"another derivative"),
                located=(r"gradient of rate",),
            ),
        ),
    ),
    Formulas(
        "soft time warping",
        warping,
        lambda: {"d": torch.rand(2, 3, 4)},
        warping_backward,
        (
            Mistake(
                "soft time warping, diagonal moves",
                lambda g, d: warping_backward(g, d, diagonal=False),
                named="backward does not follow the diagonal moves",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"no effect", r"diagonal", r"detach"),
                located=(r"gradient of d",),
            ),
            Mistake(
                "soft time warping, gamma in the weights",
                lambda g, d: warping_backward(g, d, gamma=1),
                named="the weights of the moves lack the division by gamma = 0.5",
                kinds=("step left out", "another operand", "factor by element"),
                named_words=(
                    r"\bdiv\b",
                    r"\b0\.5\b",
                    r"factor of its own",
                    r"another derivative",
                    r"logsumexp|\bexp\b",
                ),
                located=(r"gradient of d",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "pooling with a forget gate",
        pooled,
        lambda: {"z": torch.randn(2, 5, 3), "logits": torch.randn(2, 5, 3)},
        pooled_backward,
        (
            Mistake(
                "pooling with a forget gate, gate of the candidate",
                lambda g, z, logits: pooled_backward(g, z, logits, candidate=False),
                named="the gradient of the gate has the term of the last state only, not that of (1 - f) z",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"one use|second use|used twice"),
                located=(r"gradient of logits",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
