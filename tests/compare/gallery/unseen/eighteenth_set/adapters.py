"""Adapters and routers: rows of a learned size, products of two low ranks, soft slots of experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

SCALE = 0.5


def sized_rows(x, w, a, b, size):
    merged = w + SCALE * b @ a
    return x @ (size[:, None] * merged / merged.norm(dim=1, keepdim=True).detach()).mT


class SizedRowsFunction(Function):
    @staticmethod
    def forward(ctx, x, w, a, b, size):
        merged = w + SCALE * b @ a
        length = merged.norm(dim=1)
        ctx.save_for_backward(x, merged, length, a, b, size)
        return x @ merged.mT * (size / length)

    @staticmethod
    def backward(ctx, g):
        x, merged, length, a, b, size = ctx.saved_tensors
        to_product = g * (size / length)
        to_merged = to_product.mT @ x
        to_size = (g * (x @ merged.mT) / length).sum(0)
        return to_product @ merged, to_merged, SCALE * b.mT @ to_merged, SCALE * to_merged @ a.mT, to_size


class DoRALinear(Function):
    """mag / ||W + s B A|| * (W + s B A) x; the norm is a constant in backward, as in the paper."""

    @staticmethod
    def forward(ctx, x, W, A, B, magnitude):
        weight = W + SCALE * (B @ A)
        mag_scale = magnitude / weight.norm(p=2, dim=1)
        result = (x @ weight.t()) * mag_scale
        ctx.save_for_backward(x, weight, A, B, magnitude, mag_scale, result)
        return result

    @staticmethod
    def backward(ctx, dY):
        x, weight, A, B, magnitude, mag_scale, result = ctx.saved_tensors
        d_mag = (dY * result).sum(dim=0) * mag_scale / magnitude
        dY = dY * mag_scale
        dW = dY.t() @ x
        dA = SCALE * (B.t() @ dW)
        dB = SCALE * (dW @ A.t())
        return dY @ weight, dW, dA, dB, d_mag


def product_of_low_ranks(x, a1, b1, a2, b2):
    return x @ ((b1 @ a1) * (b2 @ a2)).mT


class ProductOfLowRanksFunction(Function):
    @staticmethod
    def forward(ctx, x, a1, b1, a2, b2):
        ctx.save_for_backward(x, a1, b1, a2, b2)
        return product_of_low_ranks(x, a1, b1, a2, b2)

    @staticmethod
    def backward(ctx, g):
        x, a1, b1, a2, b2 = ctx.saved_tensors
        first, second = b1 @ a1, b2 @ a2
        d = g.mT @ x
        to_first, to_second = d * second, d * first
        return g @ (first * second), b1.mT @ to_first, to_first @ a1.mT, b2.mT @ to_second, to_second @ a2.mT


class LoHa(Function):
    """Hadamard product of two low-rank updates."""

    @staticmethod
    def forward(ctx, x, w1_down, w1_up, w2_down, w2_up):
        w1 = w1_up @ w1_down
        w2 = w2_up @ w2_down
        ctx.save_for_backward(x, w1_down, w1_up, w2_down, w2_up, w1, w2)
        return F.linear(x, w1 * w2)

    @staticmethod
    def backward(ctx, grad_out):
        x, w1_down, w1_up, w2_down, w2_up, w1, w2 = ctx.saved_tensors
        grad_x = grad_out @ (w1 * w2)
        grad_w = grad_out.t() @ x
        temp = grad_w * w2
        grad_w1_up = temp @ w1_down.t()
        grad_w1_down = w1_up.t() @ temp
        temp = temp * w1
        grad_w2_up = temp @ w2_down.t()
        grad_w2_down = w2_up.t() @ temp
        return grad_x, grad_w1_down, grad_w1_up, grad_w2_down, grad_w2_up


def soft_slots(x, phi, w):
    logits = x @ phi
    slots = logits.softmax(0).mT @ x
    return logits.softmax(1) @ (slots[:, None] @ w).squeeze(1)


class SoftSlotsFunction(Function):
    @staticmethod
    def forward(ctx, x, phi, w):
        logits = x @ phi
        dispatch, combine = logits.softmax(0), logits.softmax(1)
        slots = dispatch.mT @ x
        ctx.save_for_backward(x, phi, w, dispatch, combine, slots)
        return combine @ torch.einsum("sd,sde->se", slots, w)

    @staticmethod
    def backward(ctx, g):
        x, phi, w, dispatch, combine, slots = ctx.saved_tensors
        done = torch.einsum("sd,sde->se", slots, w)
        to_combine, to_done = g @ done.mT, combine.mT @ g
        to_slots = torch.einsum("se,sde->sd", to_done, w)
        to_dispatch = x @ to_slots.mT
        to_logits = combine * (to_combine - (combine * to_combine).sum(1, keepdim=True))
        to_logits = to_logits + dispatch * (to_dispatch - (dispatch * to_dispatch).sum(0, keepdim=True))
        return (
            dispatch @ to_slots + to_logits @ phi.mT,
            x.mT @ to_logits,
            torch.einsum("sd,se->sde", slots, to_done),
        )


class SoftMoE(Function):
    """Every expert (a matrix) has one slot; slots are mixtures of all tokens."""

    @staticmethod
    def forward(ctx, x, phi, experts):
        logits = x @ phi
        D = torch.softmax(logits, dim=0)
        C = torch.softmax(logits, dim=1)
        xs = D.t() @ x
        ys = torch.bmm(xs.unsqueeze(1), experts).squeeze(1)
        ctx.save_for_backward(x, phi, experts, D, C, xs, ys)
        return C @ ys

    @staticmethod
    def backward(ctx, grad_y):
        x, phi, experts, D, C, xs, ys = ctx.saved_tensors
        grad_C = grad_y @ ys.t()
        grad_ys = C.t() @ grad_y
        grad_experts = xs.unsqueeze(2) * grad_ys.unsqueeze(1)
        grad_xs = torch.bmm(grad_ys.unsqueeze(1), experts.transpose(1, 2)).squeeze(1)
        grad_D = x @ grad_xs.t()
        grad_logits = D * (grad_D - (grad_D * D).sum(0)) + C * (grad_C - (grad_C * C).sum(1, keepdim=True))
        grad_x = grad_logits @ phi.t()
        grad_phi = x.t() @ grad_logits
        return grad_x, grad_phi, grad_experts


OPERATIONS = [
    Operation(
        "update with rows of a learned size, scaled result",
        SizedRowsFunction,
        DoRALinear,
        sized_rows,
        lambda: {
            "x": torch.randn(5, 4),
            "w": torch.randn(3, 4),
            "a": torch.randn(2, 4),
            "b": torch.randn(3, 2),
            "size": 0.5 + torch.rand(3),
        },
        named="the saved result is scaled already, and the size's gradient scales it again",
        kinds=("factor by element", "another operand", "wrong intermediate value", "step left out"),
        named_words=(r"mag_scale", r"saved.*result|result.*saved", r"scaled|twice"),
        located=(r"gradient of (size|magnitude)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "product of two low ranks, gradient of the first for the second",
        ProductOfLowRanksFunction,
        LoHa,
        product_of_low_ranks,
        lambda: {
            "x": torch.randn(5, 4),
            "a1": torch.randn(2, 4),
            "b1": torch.randn(3, 2),
            "a2": torch.randn(2, 4),
            "b2": torch.randn(3, 2),
        },
        named="the second factor's gradient starts from the first one's, which was multiplied by the second factor",
        kinds=("another operand", "factor by element", "wrong intermediate value"),
        named_words=(r"grad_w \* w1|grad_w\b", r"\btemp\b", r"w2"),
        located=(r"gradients? of .*\b(a2|b2|w2_down|w2_up)\b",),
    ),
    Operation(
        "soft slots of experts, tokens in the slots",
        SoftSlotsFunction,
        SoftMoE,
        soft_slots,
        lambda: {"x": torch.randn(4, 3), "phi": torch.randn(3, 2), "w": torch.randn(2, 3, 3)},
        named="x: the slots are mixtures of x, and only the part through the scores is there",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"D @ grad_xs", r"dispatch|slots|constant"),
        located=(r"gradient of x\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
