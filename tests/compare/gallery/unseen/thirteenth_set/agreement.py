"""Agreement of rows: concordance."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction


def disagreement(x, y):
    mx, my = x.mean(1), y.mean(1)
    cx, cy = x - mx[:, None], y - my[:, None]
    return 1 - 2 * (cx * cy).mean(1) / ((cx**2).mean(1) + (cy**2).mean(1) + (mx - my) ** 2)


class ConcordanceLoss(Function):
    @staticmethod
    def forward(ctx, x, y):
        mx, my = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
        cov = ((x - mx) * (y - my)).mean(dim=1, keepdim=True)
        total = x.var(dim=1, unbiased=False, keepdim=True) + y.var(dim=1, unbiased=False, keepdim=True)
        total = total + (mx - my).square()
        ctx.save_for_backward(x - mx, y - my, cov, total)
        return (1 - 2 * cov / total).squeeze(1)

    @staticmethod
    def backward(ctx, grad):
        xc, yc, cov, total = ctx.saved_tensors
        n = xc.shape[1]
        scale = -2 * grad.unsqueeze(1) / (n * total)
        ratio = 2 * cov / total
        return scale * (yc - ratio * xc), scale * (xc - ratio * yc)


RIGHT: list[Case] = []
WRONG = [
    WrongFunction(
        Case(
            "concordance, distance of the means",
            ConcordanceLoss.apply,
            disagreement,
            lambda: {"x": torch.randn(3, 5), "y": torch.randn(3, 5) + 0.5},
            whole_numbers=False,
        ),
        named="x and y: the part of the derivative through the means' difference in the denominator is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of x", r"gradient of y"),
    ),
]
