"""Pixels: sums of rectangles, the largest of shifted values, colours between grey and full."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

SHARES = torch.tensor([0.3, 0.6, 0.1])


def rectangle_sums(x):
    return x.cumsum(1).cumsum(2)


class IntegralImage(Function):
    @staticmethod
    def forward(ctx, image):
        return torch.cumsum(torch.cumsum(image, dim=-1), dim=-2)

    @staticmethod
    def backward(ctx, grad):
        down = grad.flip(-2).cumsum(dim=-2).flip(-2)
        right = down.flip(-1).cumsum(dim=-1)
        return right.flip(-2)


def dilated(x, element):
    return (x.unfold(1, 3, 1) + element).max(2).values


class DilatedFunction(Function):
    @staticmethod
    def forward(ctx, x, element):
        ctx.save_for_backward(x, element)
        return dilated(x, element)

    @staticmethod
    def backward(ctx, g):
        x, element = ctx.saved_tensors
        offset = (x.unfold(1, 3, 1) + element).max(2).indices
        place = offset + torch.arange(g.shape[1])
        grad_element = torch.zeros_like(element).index_add(0, offset.flatten(), g.flatten())
        return torch.zeros_like(x).scatter_add(1, place, g), grad_element


class MorphologicalDilation(Function):
    @staticmethod
    def forward(ctx, x, se):
        k = se.numel()
        out_len = x.shape[1] - k + 1
        best = x[:, :out_len] + se[0]
        where = torch.arange(out_len).expand_as(best).clone()
        for i in range(1, k):
            candidate = x[:, i : i + out_len] + se[i]
            better = candidate > best
            best = torch.where(better, candidate, best)
            where = torch.where(better, torch.arange(i, i + out_len), where)
        ctx.save_for_backward(where)
        ctx.sizes = x.shape, k
        return best

    @staticmethod
    def backward(ctx, grad_out):
        (where,) = ctx.saved_tensors
        shape, k = ctx.sizes
        grad_x = grad_out.new_zeros(shape).scatter_add_(1, where, grad_out)
        grad_se = grad_out.new_zeros(k)
        for i in range(k):
            grad_se[i] = grad_out[where % k == i].sum()
        return grad_x, grad_se


def saturated(x, amount):
    grey = (SHARES.to(x.dtype)[:, None] * x).sum(1, keepdim=True)
    return grey + amount[:, None, None] * (x - grey)


class AdjustSaturation(Function):
    @staticmethod
    def forward(ctx, image, factor):
        luma = torch.einsum("c,bcn->bn", SHARES.to(image), image).unsqueeze(1)
        ctx.save_for_backward(image, luma, factor)
        return torch.lerp(luma, image, factor.view(-1, 1, 1))

    @staticmethod
    def backward(ctx, grad):
        image, luma, factor = ctx.saved_tensors
        f = factor.view(-1, 1, 1)
        grad_luma = ((1 - f) * grad).sum(dim=1, keepdim=True)
        grad_image = f * grad + grad_luma / image.shape[1]
        grad_factor = (grad * (image - luma)).sum(dim=(1, 2))
        return grad_image, grad_factor


OPERATIONS = [
    Operation(
        "largest of shifted values, index of the element",
        DilatedFunction,
        MorphologicalDilation,
        dilated,
        lambda: {"x": torch.randn(4, 8), "element": torch.randn(3) / 2},
        named="element: its index is taken as the place in x modulo 3, not as the place in the window",
        kinds=("permuted", "another operand", "shifted"),
        named_words=(r"permut|place|index|window",),
        located=(r"gradient of element",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "sums of rectangles, columns not turned back",
            IntegralImage.apply,
            rectangle_sums,
            lambda: (torch.randn(2, 4, 5),),
        ),
        named="the last flip is of the rows instead of the columns, so rows and columns come out reversed",
        kinds=("permuted", "another operand", "step left out", "not transposed"),
        named_words=(r"flip|revers|turned", r"permut|place|order"),
        located=(r"gradient of (x|input 0)",),
    ),
    WrongFunction(
        Case(
            "colours between grey and full, shares of the channels",
            AdjustSaturation.apply,
            saturated,
            lambda: {"x": torch.rand(2, 3, 5), "amount": torch.rand(2) * 2},
        ),
        named="x: the grey's gradient goes to the three channels in equal shares instead of 0.3, 0.6 and 0.1",
        kinds=("another operand", "factor by element", "step left out"),
        named_words=(r"\bmean\b|average|equal", r"shares|weights", r"\bmul\b"),
        located=(r"gradient of x",),
    ),
]
