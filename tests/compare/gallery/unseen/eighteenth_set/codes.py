"""Codes: rounded levels, soft signs, learned frequencies of positions, tables whose rows are multiplied."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

HALF = 2.5
STRETCH, HEIGHT = 2.0, 1.5
ROWS, COLUMNS = 3, 4
NUMBERS = torch.tensor([[1, 5, 9, 5], [0, 5, 11, 3]])


def finite_levels(z, gain):
    bounded = HALF * torch.tanh(gain * z)
    return (bounded + (bounded.round() - bounded).detach()) / HALF


class FiniteLevelsFunction(Function):
    @staticmethod
    def forward(ctx, z, gain):
        bounded = torch.tanh(gain * z)
        ctx.save_for_backward(z, gain, bounded)
        return (HALF * bounded).round() / HALF

    @staticmethod
    def backward(ctx, g):
        z, gain, bounded = ctx.saved_tensors
        g = g * (1 - bounded.square())
        return g * gain, (g * z).sum(0)


class FSQ(Function):
    """Finite scalar quantization with a learned gain for each channel; rounding is passed straight through."""

    @staticmethod
    def forward(ctx, z, gain):
        zhat = torch.tanh(gain * z)
        zhat = torch.round(zhat * HALF) / HALF
        ctx.save_for_backward(z, gain, zhat)
        return zhat

    @staticmethod
    def backward(ctx, grad_output):
        z, gain, zhat = ctx.saved_tensors
        grad_pre = grad_output * (1 - zhat * zhat)
        return grad_pre * gain, (grad_pre * z).sum(dim=0)


def learned_frequencies(x, frequency):
    angle = torch.arange(x.size(1), dtype=x.dtype)[:, None] * frequency
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class LearnedFrequenciesFunction(Function):
    @staticmethod
    def forward(ctx, x, frequency):
        place = torch.arange(x.size(1), dtype=x.dtype)[:, None]
        ctx.save_for_backward(x, place, place * frequency)
        return learned_frequencies(x, frequency)

    @staticmethod
    def backward(ctx, g):
        x, place, angle = ctx.saved_tensors
        (a, b), (ga, gb) = x.chunk(2, -1), g.chunk(2, -1)
        c, s = angle.cos(), angle.sin()
        to_angle = ga * (-a * s - b * c) + gb * (a * c - b * s)
        return torch.cat([ga * c + gb * s, gb * c - ga * s], -1), (to_angle * place).sum((0, 1))


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


class LearnableRoPE(Function):
    @staticmethod
    def forward(ctx, x, inv_freq):
        t = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
        freqs = torch.outer(t, inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        cos, sin = emb.cos(), emb.sin()
        out = x * cos + rotate_half(x) * sin
        ctx.save_for_backward(cos, sin, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        cos, sin, out = ctx.saved_tensors
        grad_x = grad * cos - rotate_half(grad) * sin
        # d out / d angle is out turned by another 90 degrees
        grad_emb = (grad * rotate_half(out)).sum(dim=0)
        d1, d2 = grad_emb.chunk(2, dim=-1)
        grad_freqs = d1 + d2
        return grad_x, grad_freqs.sum(dim=0)


def multiplied_rows(quotients, remainders):
    return quotients[NUMBERS // COLUMNS] * remainders[NUMBERS % COLUMNS]


class MultipliedRowsFunction(Function):
    @staticmethod
    def forward(ctx, quotients, remainders):
        ctx.save_for_backward(quotients, remainders)
        return multiplied_rows(quotients, remainders)

    @staticmethod
    def backward(ctx, g):
        quotients, remainders = ctx.saved_tensors
        q, r = (NUMBERS // COLUMNS).flatten(), (NUMBERS % COLUMNS).flatten()
        g = g.reshape(-1, g.size(-1))
        return (
            torch.zeros_like(quotients).index_add(0, q, g * remainders[r]),
            torch.zeros_like(remainders).index_add(0, r, g * quotients[q]),
        )


class QREmbedding(Function):
    """Compositional embedding: row of the quotient times row of the remainder."""

    @staticmethod
    def forward(ctx, weight_q, weight_r):
        idx_q = torch.div(NUMBERS, COLUMNS, rounding_mode="floor")
        idx_r = torch.remainder(NUMBERS, COLUMNS)
        ctx.save_for_backward(weight_q, weight_r, idx_q, idx_r)
        return weight_q[idx_q] * weight_r[idx_r]

    @staticmethod
    def backward(ctx, grad_output):
        weight_q, weight_r, idx_q, idx_r = ctx.saved_tensors
        grad_q = torch.zeros_like(weight_q)
        grad_r = torch.zeros_like(weight_r)
        for b in range(NUMBERS.shape[0]):
            grad_q[idx_q[b]] += grad_output[b] * weight_r[idx_r[b]]
            grad_r[idx_r[b]] += grad_output[b] * weight_q[idx_q[b]]
        return grad_q, grad_r


OPERATIONS = [
    Operation(
        "finite levels, slope at the rounded value",
        FiniteLevelsFunction,
        FSQ,
        finite_levels,
        lambda: {"z": torch.randn(5, 3), "gain": 0.5 + torch.rand(3)},
        named="the slope of tanh is taken at the rounded level instead of the value before rounding",
        kinds=("another operand", "factor by element", "wrong intermediate value", "step left out"),
        named_words=(r"round", r"zhat"),
        located=(r"gradients? of .*\b(z|gain)\b",),
        options={"kinks": True},
    ),
    Operation(
        "positions with learned frequencies, position in the angle",
        LearnedFrequenciesFunction,
        LearnableRoPE,
        learned_frequencies,
        lambda: {"x": torch.randn(2, 4, 6), "frequency": torch.rand(3)},
        named="the angle is position times frequency, and the frequency's gradient lacks the position",
        kinds=("step left out", "factor by element", "wrong sum", "another operand"),
        named_words=(r"arange|position", r"\bt\b|\bplace\b", r"\bmul\b|outer|left out"),
        located=(r"gradient of (frequency|inv_freq)\b",),
    ),
    Operation(
        "rows of two tables multiplied, the same row twice",
        MultipliedRowsFunction,
        QREmbedding,
        multiplied_rows,
        lambda: {"quotients": torch.randn(ROWS, 2), "remainders": torch.randn(COLUMNS, 2)},
        named="indexed += keeps one of the values of a row that occurs twice in an example",
        kinds=("missing term", "only at some indices", "few elements"),
        named_words=(r"repeat|twice|more than once|duplicate", r"index_add|accumulat", r"last|missing"),
        located=(r"gradients? of .*\b(quotients|remainders|weight_q|weight_r)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)


def soft_signs(w):
    soft = HEIGHT * torch.tanh(STRETCH * w)
    return soft + (w.sign() - soft).detach()


class ErrorDecaySign(Function):
    """IR-Net: sign in forward, slope of k * tanh(t * x) in backward."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return torch.sign(w)

    @staticmethod
    def backward(ctx, grad_output):
        (w,) = ctx.saved_tensors
        return HEIGHT * STRETCH * (1 - torch.tanh(w).pow(2)) * grad_output


WRONG += [
    WrongFunction(
        Case(
            "signs with the slope of a tanh, stretch inside of it",
            ErrorDecaySign.apply,
            soft_signs,
            lambda: {"w": torch.randn(4, 5)},
            kinks=True,
            whole_numbers=False,
        ),
        named="the slope is that of tanh at w instead of STRETCH times w",
        kinds=("another operand", "step left out", "factor by element"),
        named_words=(r"STRETCH", r"\bmul\b"),
        located=(r"gradient of w\b",),
    ),
]
