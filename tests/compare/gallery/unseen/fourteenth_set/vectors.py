"""Vectors: signed powers, two vectors made a rotation."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction

USED = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]])


def signed_power(x, power):
    return torch.sign(x) * x.abs() ** power


class SignedPower(Function):
    @staticmethod
    def forward(ctx, x, p):
        mag = x.abs()
        y = mag.pow(p).mul(x.sign())
        ctx.save_for_backward(mag, p, y)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        mag, p, y = ctx.saved_tensors
        grad_x = grad_y * p * mag.pow(p - 1)
        grad_p = (grad_y * y * mag.log()).sum(dim=0)
        return grad_x, grad_p


def frame(x):
    """Rotations (N, 3, 3) whose first two columns span the two vectors in each row of x (N, 6)."""
    first, second = x[:, :3], x[:, 3:]
    one = first / first.norm(dim=1, keepdim=True)
    rest = second - (one * second).sum(1, keepdim=True) * one
    two = rest / rest.norm(dim=1, keepdim=True)
    return torch.stack([one, two, torch.linalg.cross(one, two)], 2)


def normalize_vjp(grad, unit, length):
    return (grad - (grad * unit).sum(dim=1, keepdim=True) * unit) / length


class Rotation6D(Function):
    @staticmethod
    def forward(ctx, x):
        a1, a2 = x.split(3, dim=1)
        n1 = a1.norm(dim=1, keepdim=True)
        b1 = a1 / n1
        dot = (b1 * a2).sum(dim=1, keepdim=True)
        u2 = a2 - dot * b1
        n2 = u2.norm(dim=1, keepdim=True)
        b2 = u2 / n2
        b3 = torch.cross(b1, b2, dim=1)
        ctx.save_for_backward(a2, b1, b2, n1, n2, dot)
        return torch.stack([b1, b2, b3], dim=2)

    @staticmethod
    def backward(ctx, grad_R):
        a2, b1, b2, n1, n2, dot = ctx.saved_tensors
        g1, g2, g3 = grad_R.unbind(dim=2)
        g1 = g1 + torch.cross(b2, g3, dim=1)
        g2 = g2 + torch.cross(b1, g3, dim=1)
        gu = normalize_vjp(g2, b2, n2)
        along = (gu * b1).sum(dim=1, keepdim=True)
        g1 = g1 - dot * gu - along * a2
        return torch.cat([normalize_vjp(g1, b1, n1), gu - along * b1], dim=1)


RIGHT: list[Case] = []
WRONG = [
    WrongFunction(
        Case(
            "signed powers, power at zero",
            SignedPower.apply,
            signed_power,
            lambda: {"x": torch.randn(6, 3) * USED, "power": torch.rand(3) * 0.8 + 1.6},
        ),
        named="power: 0 times the logarithm of 0 is NaN",
        kinds=("not finite", "only at zeros"),
        named_words=(r"\bnan\b|not finite|infinite",),
        located=(r"gradient of power",),
    ),
    WrongFunction(
        Case(
            "two vectors made a rotation, cross product",
            Rotation6D.apply,
            frame,
            lambda: (torch.randn(4, 6),),
            whole_numbers=False,
        ),
        named="the cross product's derivative by its second factor has the wrong sign: its factors are exchanged",
        kinds=("factor of one term",),
        named_words=(r"sign", r"-1|negat", r"order|swap|exchang"),
        located=(r"gradient of (x|input 0)",),
    ),
]
