"""Recurrences: a cell with one gate, the likelihood of a hidden Markov model."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas


def gate_and_candidate(x, h, wf, wc):
    f = (torch.cat([x, h], 1) @ wf.mT).sigmoid()
    return f, (torch.cat([x, f * h], 1) @ wc.mT).tanh()


def cell(x, h, wf, wc):
    f, c = gate_and_candidate(x, h, wf, wc)
    return (1 - f) * h + f * c


def cell_backward(g, x, h, wf, wc, *, inner_gate=True, gated=True):
    f, c = gate_and_candidate(x, h, wf, wc)
    size = x.shape[1]
    grad_c = g * f * (1 - c * c)
    grad_inner = grad_c @ wc
    grad_gated = grad_inner[:, size:]
    grad_f = g * (c - h) + (grad_gated * h if inner_gate else 0)
    grad_f = grad_f * f * (1 - f)
    grad_outer = grad_f @ wf
    return (
        grad_inner[:, :size] + grad_outer[:, :size],
        g * (1 - f) + grad_gated * f + grad_outer[:, size:],
        grad_f.mT @ torch.cat([x, h], 1),
        grad_c.mT @ torch.cat([x, f * h if gated else h], 1),
    )


def likelihood(start, transition, emission):
    alpha = start * emission[0]
    for e in emission[1:]:
        alpha = alpha @ transition * e
    return alpha.sum().log()


def likelihood_backward(g, start, transition, emission, *, transposed=False, first=1):
    alphas = [start * emission[0]]
    for e in emission[1:]:
        alphas.append(alphas[-1] @ transition * e)
    beta = torch.ones_like(start) * g / alphas[-1].sum()
    grad_transition, grad_emission = torch.zeros_like(transition), torch.empty_like(emission)
    for t in range(len(emission) - 1, 0, -1):
        grad_emission[t] = alphas[t - 1] @ transition * beta
        if t >= first:
            grad_transition += torch.outer(alphas[t - 1], emission[t] * beta)
        beta = (transition.mT if transposed else transition) @ (emission[t] * beta)
    grad_emission[0] = start * beta
    return emission[0] * beta, grad_transition, grad_emission


OPERATIONS = [
    Formulas(
        "cell with one gate",
        cell,
        lambda: {"x": torch.randn(3, 4), "h": torch.randn(3, 5), "wf": torch.randn(5, 9), "wc": torch.randn(5, 9)},
        cell_backward,
        (
            Mistake(
                "cell with one gate, inner use of the gate",
                lambda g, *inputs: cell_backward(g, *inputs, inner_gate=False),
                named="the gate's use in the candidate, f * h, has no effect on the gate's gradient",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"detach"),
                located=(r"gradient of (x|wf)", r"\bwf\b", r"mul|sigmoid|gate|candidate|cat"),
            ),
            Mistake(
                "cell with one gate, state before the gate",
                lambda g, *inputs: cell_backward(g, *inputs, gated=False),
                named="the gradient of wc uses h instead of f * h",
                kinds=("another operand", "step left out", "only at some indices"),
                named_words=(r"\bh\b", r"mul.*left out", r"gate"),
                located=(r"gradient of wc", r"column|\[\d, [4-8]\]|dimension 1|mul|\bh\b"),
            ),
        ),
    ),
    Formulas(
        "hidden Markov model",
        likelihood,
        lambda: {
            "start": 0.2 + torch.rand(4),
            "transition": 0.2 + torch.rand(4, 4),
            "emission": 0.2 + torch.rand(5, 4),
        },
        likelihood_backward,
        (
            Mistake(
                "hidden Markov model, transposed transitions",
                lambda g, *inputs: likelihood_backward(g, *inputs, transposed=True),
                named="the recursion in backward multiplies by the transposed transitions",
                kinds=("transposed", "not transposed", "another operand"),
                named_words=(r"transpos", r"exchang"),
                located=(r"gradient of (start|emission|transition)", r"transition|@|matmul|mm\b|mv\b"),
            ),
            Mistake(
                "hidden Markov model, first transition",
                lambda g, *inputs: likelihood_backward(g, *inputs, first=2),
                named="the term of the first transition is missing: the loop ends one step too early",
                kinds=("missing term",),
                named_words=(r"missing",),
                located=(r"gradient of transition", r"first|step 1\b|\b(1|one) of (the )?\d"),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
