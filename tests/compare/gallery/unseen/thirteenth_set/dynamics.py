"""States that evolve: peaks that decay, two species."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction

STEP = 0.25


def peaks(x, decay):
    held = [x[0]]
    for value in x[1:]:
        held.append(torch.maximum(value, decay * held[-1]))
    return torch.stack(held)


class EnvelopeFollower(Function):
    @staticmethod
    def forward(ctx, x, decay):
        level = x[0]
        levels = [level]
        for t in range(1, x.shape[0]):
            level = torch.maximum(x[t], decay * level)
            levels.append(level)
        levels = torch.stack(levels)
        ctx.save_for_backward(x, decay, levels)
        return levels

    @staticmethod
    def backward(ctx, grad):
        x, decay, levels = ctx.saved_tensors
        grad_x, grad_decay = torch.zeros_like(x), torch.zeros_like(decay)
        carried = torch.zeros_like(x[0])
        for t in range(x.shape[0] - 1, 0, -1):
            total = grad[t] + carried
            new_peak = x[t] > decay * levels[t - 1]
            grad_x[t] = torch.where(new_peak, total, 0)
            falling = torch.where(new_peak, 0, total)
            grad_decay += (falling * levels[t]).sum()
            carried = falling * decay
        grad_x[0] = grad[0] + carried
        return grad_x, grad_decay


def species(prey, hunters, rates):
    a, b, c, d = rates.unbind()
    for _ in range(3):
        meetings = prey * hunters
        prey, hunters = prey + STEP * (a * prey - b * meetings), hunters + STEP * (c * meetings - d * hunters)
    return prey, hunters


class LotkaVolterra(Function):
    @staticmethod
    def forward(ctx, x, y, rates):
        a, b, c, d = rates.unbind()
        path = []
        for _ in range(3):
            path += [x, y]
            x, y = x + STEP * x * (a - b * y), y + STEP * y * (c * x - d)
        ctx.save_for_backward(rates, *path)
        return x, y

    @staticmethod
    def backward(ctx, gx, gy):
        rates, *path = ctx.saved_tensors
        a, b, c, d = rates.unbind()
        grad_rates = torch.zeros_like(rates)
        while path:
            y, x = path.pop(), path.pop()
            local = [(gx * x).sum(), -(gx * x * y).sum(), (gy * x * y).sum(), -(gy * y).sum()]
            grad_rates = grad_rates + STEP * torch.stack(local)
            gx = gx * (1 + STEP * (a - b * y)) + gy * STEP * c * y
            gy = gy * (1 + STEP * (c * x - d)) - gx * STEP * b * x
        return gx, gy, grad_rates


RIGHT: list[Case] = []
WRONG = [
    WrongFunction(
        Case(
            "peaks that decay, peak kept",
            EnvelopeFollower.apply,
            peaks,
            lambda: (torch.randn(6, 3), torch.tensor(0.7)),
            whole_numbers=False,
        ),
        named="decay: its factor is the peak before, not the peak that results (decay times too small)",
        kinds=("another operand", "constant factor"),
        named_words=(r"instead of", r"\b0\.7\b|times|factor"),
        located=(r"gradient of decay",),
    ),
    WrongFunction(
        Case(
            "two species, order of two updates",
            LotkaVolterra.apply,
            species,
            lambda: {"prey": torch.rand(4) + 0.5, "hunters": torch.rand(4) + 0.5, "rates": torch.rand(4) + 0.3},
        ),
        named="the hunters' gradient takes the prey's gradient that is already that of the step before",
        kinds=("another operand", "missing term", "step left out"),
        named_words=(r"instead of", r"already|updated|order", r"one too many|missing"),
        located=(r"gradient of hunters",),
    ),
]
