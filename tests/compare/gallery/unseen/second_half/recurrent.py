"""Recurrent layers: a weight per unit, a weight matrix."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def states_of(x, step):
    """States h[t] = tanh(x[t] + step(h[t-1])) for x (B, T, D); h[-1] = 0."""
    h, states = x.new_zeros(x[:, 0].shape), []
    for t in range(x.shape[1]):
        h = (x[:, t] + step(h)).tanh()
        states.append(h)
    return torch.stack(states, 1)


def previous(states):
    """States one step before: 0, h[0], h[1], ..."""
    return torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)


def grad_arguments(g, states, step_back):
    """Gradients of the arguments of tanh, from the last step to the first."""
    grads, carry = [], torch.zeros_like(g[:, 0])
    for t in reversed(range(g.shape[1])):
        grad = (g[:, t] + carry) * (1 - states[:, t] ** 2)
        grads.append(grad)
        carry = step_back(grad)
    return torch.stack(grads[::-1], 1)


class IndRNN(Function):
    """States of a layer with one recurrent weight for each unit, u (D)."""

    @staticmethod
    def forward(ctx, x, u):
        states = states_of(x, lambda h: h * u)
        ctx.save_for_backward(states, u)
        return states

    @staticmethod
    def backward(ctx, g):
        states, u = ctx.saved_tensors
        grad = grad_arguments(g, states, lambda grad: grad * u)
        return grad, (grad * previous(states)).sum((0, 1))


class IndRNNWrong(IndRNN):
    @staticmethod
    def backward(ctx, g):
        states, u = ctx.saved_tensors
        grad = grad_arguments(g, states, lambda grad: grad * u)
        return grad, (grad * states).sum((0, 1))


class Elman(Function):
    """States of a layer with the recurrent weights u (D, D)."""

    @staticmethod
    def forward(ctx, x, u):
        states = states_of(x, lambda h: h @ u)
        ctx.save_for_backward(states, u)
        return states

    @staticmethod
    def backward(ctx, g):
        states, u = ctx.saved_tensors
        grad = grad_arguments(g, states, lambda grad: grad @ u.t())
        return grad, torch.einsum("bti,btj->ij", previous(states), grad)


class ElmanWrong(Elman):
    @staticmethod
    def backward(ctx, g):
        states, u = ctx.saved_tensors
        grad = grad_arguments(g, states, lambda grad: grad @ u.t())
        return grad, previous(states)[:, -1].t() @ grad[:, -1]


OPERATIONS = [
    Operation(
        "RNN of independent units",
        IndRNN,
        IndRNNWrong,
        lambda x, u: states_of(x, lambda h: h * u),
        lambda: {"x": torch.randn(3, 4, 5), "u": torch.rand(5)},
        named="the gradient of u uses the state h[t] instead of the previous one, h[t-1]",
        kinds=("shifted",),
        named_words=(
            r"previous|earlier|next|later",
            r"off by one|shift",
            r"t ?[-+−] ?1",
            r"(another|wrong) (step|state|output|operand|tensor)",
            r"output .*(instead|in place)",
        ),
        located=(r"gradient of u\b",),
    ),
    Operation(
        "Elman RNN",
        Elman,
        ElmanWrong,
        lambda x, u: states_of(x, lambda h: h @ u),
        lambda: {"x": torch.randn(3, 4, 2), "u": torch.randn(2, 2) / 2},
        named="the gradient of u has only the term of the last step",
        kinds=("missing term",),
        named_words=(
            r"(only|except|but) .*(last|one) (step|output|column|index|slice|state|term)",
            r"(earlier|first|other|previous) (steps|outputs|columns|states)",
            r"(missing|lacks|ignored|without) .*(term|step|output|contribution|entr|coefficient)",
            r"(term|step|output|contribution|entr|coefficient).*(missing|lack|ignored)",
            r"last (step|output|state)",
        ),
        located=(r"gradient of u\b",),
    ),
]
WRONG, RIGHT = wrong_and_right(OPERATIONS)
