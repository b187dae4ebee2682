"""Sequences: a cell with peepholes, mixing of neighbouring steps, spikes with a leak."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

LEAK, STEEPNESS = 0.6, 2.0


def peepholes(gates, cell, peep):
    """Next state of a cell whose output gate reads the new cell; gates are (N, 4, H), peep is (3, H)."""
    i, f, c, o = gates.unbind(1)
    i, f = (i + peep[0] * cell).sigmoid(), (f + peep[1] * cell).sigmoid()
    new = f * cell + i * c.tanh()
    return (o + peep[2] * new).sigmoid() * new.tanh()


def peepholes_backward(g, gates, cell, peep, *, old_cell=False):
    i, f, c, o = gates.unbind(1)
    i, f, c = (i + peep[0] * cell).sigmoid(), (f + peep[1] * cell).sigmoid(), c.tanh()
    new = f * cell + i * c
    o = (o + peep[2] * new).sigmoid()
    go = g * new.tanh() * o * (1 - o)
    gc = g * o * (1 - new.tanh() ** 2) + go * peep[2]
    gi, gf = gc * c * i * (1 - i), gc * cell * f * (1 - f)
    grad_peep = torch.stack([gi * cell, gf * cell, go * (cell if old_cell else new)]).sum(1)
    return torch.stack([gi, gf, gc * i * (1 - c**2), go], 1), gc * f + gi * peep[0] + gf * peep[1], grad_peep


def potentials(x):
    u = [x[:, 0]]
    for t in range(1, x.shape[1]):
        u.append(LEAK * u[-1] + x[:, t])
    return torch.stack(u, 1)


def spikes(x):
    """1 where the potential is above 1, with the derivative of a sigmoid."""
    u = potentials(x)
    smooth = (STEEPNESS * (u - 1)).sigmoid()
    return (u > 1).to(x.dtype) + smooth - smooth.detach()


def spikes_backward(g, x, *, leak=LEAK):
    smooth = (STEEPNESS * (potentials(x) - 1)).sigmoid()
    gu = g * STEEPNESS * smooth * (1 - smooth)
    carried = [gu[:, -1]]
    for t in reversed(range(x.shape[1] - 1)):
        carried.insert(0, gu[:, t] + leak * carried[0])
    return torch.stack(carried, 1)


def shifted(x):
    """Steps before each; zeros come before the first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def neighbours(x, mix):
    return mix * x + (1 - mix) * shifted(x)


def neighbours_backward(g, x, mix, *, forward_again=False):
    previous = (1 - mix) * g
    later = torch.cat([previous[:, 1:], torch.zeros_like(g[:, :1])], 1)
    grad_x = mix * g + (shifted(previous) if forward_again else later)
    return grad_x, (g * (x - shifted(x))).sum((0, 1))


OPERATIONS = [
    Formulas(
        "cell with peepholes",
        peepholes,
        lambda: {"gates": torch.randn(5, 4, 3), "cell": torch.randn(5, 3), "peep": torch.randn(3, 3)},
        peepholes_backward,
        (
            Mistake(
                "cell with peepholes, old cell for the output gate",
                lambda g, *inputs: peepholes_backward(g, *inputs, old_cell=True),
                named="the gradient of the output gate's peephole, row 2, uses the cell before the step",
                kinds=("only at some indices", "another operand", "step left out"),
                named_words=(r"\bcell\b", r"(row|index|slice)\D* 2\b", r"\[2", r"left out"),
                located=(r"gradient of peep",),
            ),
        ),
    ),
    Formulas(
        "mix of neighbouring steps",
        neighbours,
        lambda: {"x": torch.randn(2, 5, 3), "mix": torch.rand(3)},
        neighbours_backward,
        (
            Mistake(
                "mix of neighbouring steps, direction",
                lambda g, x, mix: neighbours_backward(g, x, mix, forward_again=True),
                named="the part of the step before is moved one step later, as in forward, instead of one earlier",
                kinds=("not transposed", "shifted", "missing term", "another operand", "flipped"),
                named_words=(r"transpos", r"shift", r"direction", r"later", r"forward.*again", r"missing"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "spikes with a leak",
        spikes,
        lambda: {"x": torch.randn(3, 5)},
        spikes_backward,
        (
            Mistake(
                "spikes with a leak, carry left out",
                lambda g, x: spikes_backward(g, x, leak=0),
                named="the gradient of the potential is not carried back to earlier steps",
                kinds=("missing term", "step left out"),
                named_words=(
                    r"missing",
                    r"later steps|earlier steps|carr(y|ied)",
                    r"constant",
                    r"no effect",
                    r"detach",
                ),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
