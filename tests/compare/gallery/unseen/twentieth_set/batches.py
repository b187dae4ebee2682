"""Batches: the middle element of each row, examples that are mixed with others."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def middle(x):
    n = x.shape[1]
    ordered = x.sort(1).values
    return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2


class MiddleFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return middle(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        order, n = x.argsort(1), x.shape[1]
        both = torch.stack([order[:, (n - 1) // 2], order[:, n // 2]], 1)
        return torch.zeros_like(x).scatter_add_(1, both, (g / 2)[:, None].expand(-1, 2))


class RowMedian(Function):
    """Median of each row, the mean of the middle two for an even number of columns."""

    @staticmethod
    def forward(ctx, x):
        values, order = torch.sort(x, dim=1)
        half = x.size(1) // 2
        ctx.save_for_backward(order)
        if x.size(1) % 2:
            return values[:, half]
        return 0.5 * (values[:, half - 1] + values[:, half])

    @staticmethod
    def backward(ctx, grad_out):
        (order,) = ctx.saved_tensors
        rows = torch.arange(order.size(0), device=order.device)
        half = order.size(1) // 2
        grad_x = grad_out.new_zeros(order.shape)
        if order.size(1) % 2:
            grad_x[rows, order[:, half]] = grad_out
        else:
            grad_x[rows, order[:, half]] = 0.5 * grad_out
            grad_x[rows, order[:, half + 1]] = 0.5 * grad_out
        return grad_x


PARTNERS = torch.tensor([2, 0, 3, 4, 1])


def mixed_examples(x, share):
    return share * x + (1 - share) * x[PARTNERS]


class MixedExamplesFunction(Function):
    @staticmethod
    def forward(ctx, x, share):
        ctx.save_for_backward(x, share)
        return mixed_examples(x, share)

    @staticmethod
    def backward(ctx, g):
        x, share = ctx.saved_tensors
        grad_share = (g * (x - x[PARTNERS])).sum(1, keepdim=True)
        return (g * share).index_add(0, PARTNERS, g * (1 - share)), grad_share


class ManifoldMixup(Function):
    """Mix each hidden state with that of its partner; lam has shape (B, 1) and is trained."""

    @staticmethod
    def forward(ctx, h, lam):
        perm = PARTNERS.to(h.device)
        ctx.save_for_backward(h, lam, perm)
        return torch.lerp(h[perm], h, lam.expand_as(h))

    @staticmethod
    def backward(ctx, grad_out):
        h, lam, perm = ctx.saved_tensors
        other = (1 - lam) * grad_out
        grad_h = lam * grad_out + other[perm]
        grad_lam = ((h - h[perm]) * grad_out).sum(dim=1, keepdim=True)
        return grad_h, grad_lam


OPERATIONS = [
    Operation(
        "middle of each row, one place further",
        MiddleFunction,
        RowMedian,
        middle,
        lambda: {"x": torch.randn(3, 6)},
        options={"whole_numbers": False},
        named="of an even number the gradient goes to the middle element and the next one, not to that before",
        kinds=("another operand", "shifted", "only at some indices"),
        named_words=(r"half [+-] 1", r"shifted|next one|place before|one (place|element)"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "mixed examples, partners of partners",
        MixedExamplesFunction,
        ManifoldMixup,
        mixed_examples,
        lambda: {"x": torch.randn(5, 3), "share": torch.rand(5, 1)},
        named="the partner's gradient is permuted as in forward, not by the inverse permutation",
        kinds=("permuted", "another operand"),
        named_words=(r"permut|inverse", r"\bperm\b", r"index_add|scatter"),
        located=(r"gradient of (x|h)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
