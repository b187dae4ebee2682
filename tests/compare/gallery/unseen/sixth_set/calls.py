"""Mistakes in what a Function keeps or asks for: a cell with two outputs, RMS of rows, scale and shift, sequences."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def coupled(f, o, u, c):
    """Next output and state of a cell whose input gate is 1 minus its forget gate."""
    f = f.sigmoid()
    state = f * c + (1 - f) * u.tanh()
    return o.sigmoid() * state.tanh(), state


class CoupledCell(Function):
    uses_state_gradient = True

    @staticmethod
    def forward(ctx, f, o, u, c):
        ctx.save_for_backward(f, o, u, c)
        return coupled(f, o, u, c)

    @classmethod
    def backward(cls, ctx, gh, gc):
        f, o, u, c = ctx.saved_tensors
        state = coupled(f, o, u, c)[1].tanh()
        f, o, u = f.sigmoid(), o.sigmoid(), u.tanh()
        g = gh * o * (1 - state**2)
        g = g + gc if cls.uses_state_gradient else g
        return g * (c - u) * f * (1 - f), gh * state * o * (1 - o), g * (1 - f) * (1 - u**2), g * f


class CoupledCellOfOneOutput(CoupledCell):
    uses_state_gradient = False


def scaled(x):
    return x / (x**2).mean(1, keepdim=True).sqrt()


class RowRMS(Function):
    @staticmethod
    def forward(ctx, x):
        rms = (x**2).mean(1, keepdim=True).sqrt()
        ctx.save_for_backward(x, rms)
        return x / rms

    @staticmethod
    def backward(ctx, g):
        x, rms = ctx.saved_tensors
        y = x / rms
        return (g - y * (g * y).mean(1, keepdim=True)) / rms


class RowRMSOnClass(RowRMS):
    rms = None

    @classmethod
    def forward(cls, ctx, x):
        cls.rms = (x**2).mean(1, keepdim=True).sqrt()
        ctx.save_for_backward(x)
        return x / cls.rms

    @classmethod
    def backward(cls, ctx, g):
        y = ctx.saved_tensors[0] / cls.rms
        return (g - y * (g * y).mean(1, keepdim=True)) / cls.rms


class Modulate(Function):
    asked = (0, 1, 2)

    @staticmethod
    def forward(ctx, x, scale, shift):
        ctx.save_for_backward(x, scale)
        return x * scale + shift

    @classmethod
    def backward(cls, ctx, g):
        x, scale = ctx.saved_tensors
        needed = [ctx.needs_input_grad[i] for i in cls.asked]
        grads = g * scale, (g * x).sum(0), g.sum(0)
        return tuple(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True))


class ModulateAskedWrongly(Modulate):
    asked = (1, 0, 2)


class SequenceLinear(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w.mT, x.reshape(-1, len(w)).mT @ g.reshape(-1, w.shape[1])


class SequenceLinearByView(SequenceLinear):
    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w.mT, x.reshape(-1, len(w)).mT @ g.view(-1, w.shape[1])


OPERATIONS = [
    Operation(
        "cell with coupled gates, gradient of the state",
        CoupledCell,
        CoupledCellOfOneOutput,
        coupled,
        lambda: {name: torch.randn(3, 4) for name in "fouc"},
        named="the incoming gradient of the second output, the state, is ignored",
        kinds=("missing term", "zero"),
        named_words=(r"missing", r"second output|output (1|2)", r"no effect", r"state"),
        located=(r"gradient of (f|u|c)", r"output|incoming"),
    ),
    Operation(
        "RMS of rows, kept on the class",
        RowRMS,
        RowRMSOnClass,
        scaled,
        lambda: {"x": torch.randn(4, 5)},
        named="the RMS is kept on the class: a second forward before backward replaces it",
        kinds=("depends on earlier calls", "raises"),
        named_words=(r"(other|earlier|second|between|after).*calls?\b", r"two forwards|second forward"),
        located=(r"gradient of x|backward",),
        options={"whole_numbers": False},
    ),
    Operation(
        "scale and shift, questions exchanged",
        Modulate,
        ModulateAskedWrongly,
        lambda x, scale, shift: x * scale + shift,
        lambda: {"x": torch.randn(3, 4), "scale": torch.randn(4), "shift": torch.randn(4)},
        named="the gradient of x is None if only x requires one: needs_input_grad has the wrong index",
        kinds=("depends on which inputs require a gradient", "none"),
        named_words=(r"requires? a gradient", r"needs_input_grad", r"\bonly x\b"),
        located=(r"gradient of (x|scale)",),
    ),
    Operation(
        "linear layer of sequences, view",
        SequenceLinear,
        SequenceLinearByView,
        torch.matmul,
        lambda: {"x": torch.randn(2, 3, 4), "w": torch.randn(4, 5)},
        named="backward calls view, which fails for an incoming gradient that is transposed",
        kinds=("only in one layout", "raises"),
        named_words=(r"\bview\b", r"layout", r"transposed|expanded", r"contiguous"),
        located=(r"backward|gradient of w", r"incoming"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
