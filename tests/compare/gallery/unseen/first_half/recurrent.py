"""Recurrent cells: sequences of unequal lengths, an LSTM cell."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def run(x, u, valid):
    """Compute all states of h = tanh(x[t] + h U) for x (B, T, D); where a step is not valid, h stays."""
    h, states = x.new_zeros(x[:, 0].shape), []
    for t in range(x.shape[1]):
        mask = valid[:, t, None] != 0
        h = torch.where(mask, (x[:, t] + h @ u).tanh(), h)
        states.append(h)
    return torch.stack(states, 1)


class MaskedRNN(Function):
    """States of a recurrent layer; steps that are not valid keep the state."""

    @staticmethod
    def forward(ctx, x, u, valid):
        states = run(x, u, valid)
        ctx.save_for_backward(u, valid, states)
        return states

    @classmethod
    def grads(cls, ctx, g, use_mask):
        u, valid, states = ctx.saved_tensors
        grad_x, grad_u, carry = torch.zeros_like(states), torch.zeros_like(u), torch.zeros_like(states[:, 0])
        for t in reversed(range(g.shape[1])):
            total = g[:, t] + carry
            keep = (valid[:, t, None] == 0) if use_mask else torch.zeros_like(valid[:, t, None], dtype=torch.bool)
            before = states[:, t - 1] if t else torch.zeros_like(total)
            grad = torch.where(keep, 0, total * (1 - states[:, t] ** 2))
            grad_x[:, t] = grad
            grad_u += before.t() @ grad
            carry = grad @ u.t() + torch.where(keep, total, 0)
        return grad_x, grad_u, None

    @staticmethod
    def backward(ctx, g):
        return MaskedRNN.grads(ctx, g, use_mask=True)


class MaskedRNNWrong(MaskedRNN):
    @staticmethod
    def backward(ctx, g):
        return MaskedRNN.grads(ctx, g, use_mask=False)


def lstm_cell(gates, c):
    """Next cell state and output of pre-activations (B, 4 D), in the order i, f, g, o, and cell state c (B, D)."""
    i, f, z, o = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * z.tanh()
    return o.sigmoid() * c.tanh(), c


class LSTMCell(Function):
    """Next h and c of pre-activations and c."""

    @staticmethod
    def forward(ctx, gates, c):
        h, c_next = lstm_cell(gates, c)
        ctx.save_for_backward(gates, c, c_next)
        return h, c_next

    @classmethod
    def grads(cls, ctx, grad_h, grad_c, factor_of_f):
        gates, _, c_next = ctx.saved_tensors
        i, f, z, o = gates.chunk(4, 1)
        i, f, z, o = i.sigmoid(), f.sigmoid(), z.tanh(), o.sigmoid()
        grad_c = grad_c + grad_h * o * (1 - c_next.tanh() ** 2)
        parts = [
            grad_c * z * i * (1 - i),
            grad_c * factor_of_f * f * (1 - f),
            grad_c * i * (1 - z * z),
            grad_h * c_next.tanh() * o * (1 - o),
        ]
        return torch.cat(parts, 1), grad_c * f

    @staticmethod
    def backward(ctx, grad_h, grad_c):
        return LSTMCell.grads(ctx, grad_h, grad_c, ctx.saved_tensors[1])


class LSTMCellWrong(LSTMCell):
    @staticmethod
    def backward(ctx, grad_h, grad_c):
        return LSTMCell.grads(ctx, grad_h, grad_c, ctx.saved_tensors[2])


OPERATIONS = [
    Operation(
        "RNN with lengths",
        MaskedRNN,
        MaskedRNNWrong,
        run,
        lambda: {
            "x": torch.randn(3, 4, 2),
            "u": torch.randn(2, 2) / 2,
            "valid": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
        },
        named="the mask is ignored in backward: steps after an example's end get a gradient and change the carry",
        kinds=(),
        named_words=(r"mask", r"\bvalid\b", r"padd(ed|ing)", r"length"),
        located=(r"gradient of x|gradients of x", r"valid|\[[12],|example|row"),
    ),
    Operation(
        "LSTM cell",
        LSTMCell,
        LSTMCellWrong,
        lstm_cell,
        lambda: {"gates": torch.randn(3, 20), "c": torch.randn(3, 5)},
        named="the forget gate's gradient has the new cell state as a factor instead of the previous one",
        kinds=(),
        named_words=(
            r"(new|next|output 1|second output|output\b).*(instead|in place|for|not|where).*\bc\b",
            r"(wrong|another) (operand|tensor|factor|input|state)",
            r"computed (from|with|at) .*(output|another)",
            r"output.*/ ?c\b|c\b.*(factor|times)",
        ),
        located=(r"gradient of gates", r"columns? 5|\b5 (to|-|–|\.\.|≤) ?[<j≤ ]*(9|10)|5:10|\[:, 5|quarter"),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
