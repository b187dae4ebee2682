"""needs_input_grad of the wrong input. Expected: "gradient of w: is None where only w and b require a gradient"."""

import torch
from torch.autograd import Function

import compare


class Linear(Function):
    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return x @ w.t() + b

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        gx = gw = gb = None
        if ctx.needs_input_grad[0]:
            gx, gw = g @ w, g.t() @ x  # w's own is [1]
        if ctx.needs_input_grad[2]:
            gb = g.sum(0)
        return gx, gw, gb


CASES = [
    compare.Case(
        "linear",
        Linear.apply,
        torch.nn.functional.linear,
        lambda: {"x": torch.randn(5, 3), "w": torch.randn(4, 3), "b": torch.randn(4)},
    )
]
