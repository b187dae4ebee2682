"""Calls: elements at places counted over all rows, an update of low rank to a frozen weight, kernels of examples."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

PLACES = torch.tensor([3, 17, 0, 11, 3, 8])
SCALING = 0.5


def elements_at(x):
    return x.reshape(-1)[PLACES]


class ElementsAtFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return elements_at(x)

    @staticmethod
    def backward(ctx, g):
        grad = g.new_zeros(ctx.shape.numel())
        for place, value in zip(PLACES.tolist(), g, strict=True):
            grad[place] += value
        return grad.reshape(ctx.shape)


class FlatTake(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.take(x, PLACES)

    @staticmethod
    def backward(ctx, grad_out):
        (x,) = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        grad_x.reshape(-1).index_add_(0, PLACES, grad_out)
        return grad_x


def with_low_rank(x, weight, down, up):
    return x @ weight.T + SCALING * x @ down.T @ up.T


class LowRankFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, down, up):
        ctx.save_for_backward(x, weight, down, up)
        return with_low_rank(x, weight, down, up)

    @staticmethod
    def backward(ctx, g):
        x, weight, down, up = ctx.saved_tensors
        wants = ctx.needs_input_grad
        to_narrow = SCALING * g @ up
        grad_x = g @ weight + to_narrow @ down if wants[0] else None
        grad_weight = g.T @ x if wants[1] else None
        grad_down = to_narrow.T @ x if wants[2] else None
        return grad_x, grad_weight, grad_down, SCALING * g.T @ (x @ down.T) if wants[3] else None


class LoRALinear(Function):
    @staticmethod
    def forward(ctx, x, W, A, B):
        xa = x @ A.t()
        ctx.save_for_backward(x, W, A, B, xa)
        return x @ W.t() + SCALING * (xa @ B.t())

    @staticmethod
    def backward(ctx, grad_y):
        x, W, A, B, xa = ctx.saved_tensors
        grad_x = grad_W = grad_A = grad_B = None
        grad_xa = SCALING * (grad_y @ B)
        if ctx.needs_input_grad[0]:
            grad_x = grad_y @ W + grad_xa @ A
        if ctx.needs_input_grad[1]:
            grad_W = grad_y.t() @ x
            grad_A = grad_xa.t() @ x
        if ctx.needs_input_grad[3]:
            grad_B = SCALING * (grad_y.t() @ xa)
        return grad_x, grad_W, grad_A, grad_B


def own_kernels(x, kernel):
    length = x.shape[2] - kernel.shape[2] + 1
    return sum(kernel[:, :, k, None] * x[:, :, k : k + length] for k in range(kernel.shape[2]))


class OwnKernelsFunction(Function):
    @staticmethod
    def forward(ctx, x, kernel):
        ctx.save_for_backward(x, kernel)
        return own_kernels(x, kernel)

    @staticmethod
    def backward(ctx, g):
        x, kernel = ctx.saved_tensors
        grad_x, grad_kernel = torch.zeros_like(x), torch.zeros_like(kernel)
        for k in range(kernel.shape[2]):
            grad_x[:, :, k : k + g.shape[2]] += kernel[:, :, k, None] * g
            grad_kernel[:, :, k] = (g * x[:, :, k : k + g.shape[2]]).sum(2)
        return grad_x, grad_kernel


class DynamicDepthwiseConv(Function):
    @staticmethod
    def forward(ctx, x, kernel):
        windows = x.unfold(2, kernel.size(2), 1)
        ctx.save_for_backward(x, kernel)
        return torch.einsum("nclk,nck->ncl", windows, kernel)

    @staticmethod
    def backward(ctx, grad_out):
        x, kernel = ctx.saved_tensors
        k = kernel.size(2)
        padded = grad_out.new_zeros(*grad_out.shape[:2], grad_out.size(2) + 2 * (k - 1))
        padded[:, :, k - 1 : k - 1 + grad_out.size(2)] = grad_out
        grad_x = torch.einsum("nclk,nck->ncl", padded.unfold(2, k, 1), kernel.flip(2))
        grad_kernel = torch.einsum("nclk,ncl->ck", x.unfold(2, k, 1), grad_out)
        return grad_x, grad_kernel.expand_as(kernel)


OPERATIONS = [
    Operation(
        "elements at places, layout of x",
        ElementsAtFunction,
        FlatTake,
        elements_at,
        lambda: (torch.randn(4, 5),),
        named="zeros_like keeps the strides of a transposed x, so reshape copies: the gradient stays 0",
        kinds=("only in one layout", "zero"),
        named_words=(r"layout|contiguous|stride|transposed",),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "update of low rank, frozen weight",
        LowRankFunction,
        LoRALinear,
        with_low_rank,
        lambda: {
            "x": torch.randn(6, 5),
            "weight": torch.randn(4, 5),
            "down": torch.randn(2, 5),
            "up": torch.randn(4, 2),
        },
        named="down has no gradient if weight requires none: both are computed under weight's condition",
        kinds=("depends on which inputs require a gradient", "none", "zero"),
        named_words=(r"requires? a gradient|requires_grad|needs_input_grad|require gradients", r"\bnone\b|zero"),
        located=(r"gradient of down",),
    ),
    Operation(
        "kernels of examples, sum over the batch",
        OwnKernelsFunction,
        DynamicDepthwiseConv,
        own_kernels,
        lambda: {"x": torch.randn(3, 2, 7), "kernel": torch.randn(3, 2, 3)},
        named="kernel: every example gets the sum over the batch, instead of its own gradient",
        kinds=("summed over the batch", "wrong sum"),
        named_words=(r"batch", r"\bsum\b", r"examples?"),
        located=(r"gradient of kernel",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
