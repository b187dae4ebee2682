"""Scans: cumulative product, linear recurrence."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def sum_of_later(x):
    """Sum of the elements at an index and after it, along dimension 1."""
    return x.flip(1).cumsum(1).flip(1)


class CumulativeProduct(Function):
    """y[i, t] = x[i, 0] ... x[i, t]."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.cumprod(1)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        grads = []
        before = torch.ones_like(x[:, 0])
        for t in range(x.shape[1]):
            after = torch.cat([torch.ones_like(x[:, :1]), x[:, t + 1 :]], 1).cumprod(1)
            grads.append(before * (g[:, t:] * after).sum(1))
            before = before * x[:, t]
        return torch.stack(grads, 1)


class CumulativeProductWrong(CumulativeProduct):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return sum_of_later(g * x.cumprod(1)) / x


class LinearRecurrence(Function):
    """h[t] = a[t] * h[t-1] + x[t] along dimension 1, for a and x (B, T); h[-1] = 0."""

    @staticmethod
    def forward(ctx, a, x):
        h = [x[:, 0]]
        for t in range(1, x.shape[1]):
            h.append(a[:, t] * h[-1] + x[:, t])
        h = torch.stack(h, 1)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, g):
        a, h = ctx.saved_tensors
        grad_a, grad_x = torch.zeros_like(a), torch.zeros_like(h)
        carry = torch.zeros_like(g[:, 0])
        for t in reversed(range(g.shape[1])):
            grad_x[:, t] = g[:, t] + carry
            if t > 0:
                grad_a[:, t] = grad_x[:, t] * h[:, t - 1]
            carry = a[:, t] * grad_x[:, t]
        return grad_a, grad_x


class LinearRecurrenceWrong(LinearRecurrence):
    @staticmethod
    def backward(ctx, g):
        a, h = ctx.saved_tensors
        grad_a, grad_x = torch.zeros_like(a), torch.zeros_like(h)
        carry = torch.zeros_like(g[:, 0])
        for t in reversed(range(g.shape[1])):
            grad_x[:, t] = g[:, t] + a[:, t] * carry
            if t > 0:
                grad_a[:, t] = grad_x[:, t] * h[:, t - 1]
            carry = grad_x[:, t]
        return grad_a, grad_x


def recurrence(a, x):
    """Linear recurrence of operations that PyTorch differentiates."""
    h = [x[:, 0]]
    for t in range(1, x.shape[1]):
        h.append(a[:, t] * h[-1] + x[:, t])
    return torch.stack(h, 1)


OPERATIONS = [
    Operation(
        "cumulative product",
        CumulativeProduct,
        CumulativeProductWrong,
        lambda x: x.cumprod(1),
        lambda: torch.randn(4, 5),
        named="NaN where x is 0, since backward divides by x",
        kinds=("not finite",),
        named_words=(r"nan", r"not finite", r"infinit"),
        located=(r"gradient of (x|input 0)", r"(\bx|input 0|input)\b.*(is |= ?|exactly |of )(0|zero)|zeros?\b"),
    ),
    Operation(
        "linear recurrence",
        LinearRecurrence,
        LinearRecurrenceWrong,
        recurrence,
        lambda: {"a": torch.rand(3, 5) + 0.5, "x": torch.randn(3, 5)},
        named="the carry from step t + 1 to t is multiplied by a[t] instead of a[t + 1]: an index off by one",
        kinds=("shifted",),
        named_words=(
            r"off by one",
            r"(shifted|earlier|later|next|previous|neighbou?r).*(step|index|element|time)?",
            r"(step|index) t ?[+-] ?1",
            r"carr(y|ied)",
            r"contributions? .*(later|following) (steps|outputs|elements)",
        ),
        located=(
            r"gradient of x|gradients of a and x",
            r"(all|any|every|each|but|except|before).*last|later|step|column|\b[jt]\b",
        ),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
