"""States that evolve: two species."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction

STEP = 0.25


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
            "two species, order of two updates",
            LotkaVolterra.apply,
            species,
            lambda: {"prey": torch.rand(4) + 0.5, "hunters": torch.rand(4) + 0.5, "rates": torch.rand(4) + 0.3},
        ),
        named="the hunters' gradient takes the prey's gradient that is already that of the step before",
        kinds=("another operand", "missing term", "step left out"),
        named_words=(r"prey.*instead of|instead of.*prey", r"already|updated|order"),
        located=(r"gradient of hunters",),
    ),
]
