"""Windows: a kernel for each place, products of two taps."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

TAPS = 3
WORKSPACE: dict[tuple, torch.Tensor] = {}


def own_kernel_of_places(x, kernels):
    return torch.einsum("nclk,lock->nol", x.unfold(2, TAPS, 1), kernels)


class OwnKernelOfPlacesFunction(Function):
    @staticmethod
    def forward(ctx, x, kernels):
        ctx.save_for_backward(x, kernels)
        return own_kernel_of_places(x, kernels)

    @staticmethod
    def backward(ctx, g):
        x, kernels = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        for k in range(TAPS):
            grad_x[:, :, k : k + g.shape[2]] += torch.einsum("nol,loc->ncl", g, kernels[..., k])
        return grad_x, torch.einsum("nol,nclk->lock", g, x.unfold(2, TAPS, 1))


def im2col(x):
    n, c, length = x.shape
    key = (n, c, length, x.dtype, x.device)
    if key not in WORKSPACE:
        WORKSPACE[key] = torch.empty(length - TAPS + 1, n, c * TAPS, dtype=x.dtype, device=x.device)
    cols = WORKSPACE[key]
    for i in range(length - TAPS + 1):
        cols[i] = x[:, :, i : i + TAPS].reshape(n, c * TAPS)
    return cols


class LocallyConnected1d(Function):
    @staticmethod
    def forward(ctx, x, weight):
        cols = im2col(x)
        w = weight.reshape(weight.size(0), weight.size(1), -1)
        ctx.cols, ctx.w = cols, w
        ctx.x_shape, ctx.w_shape = x.shape, weight.shape
        return torch.bmm(cols, w.transpose(1, 2)).permute(1, 2, 0)

    @staticmethod
    def backward(ctx, grad_out):
        grad = grad_out.permute(2, 0, 1)
        grad_w = torch.bmm(grad.transpose(1, 2), ctx.cols).reshape(ctx.w_shape)
        grad_cols = torch.bmm(grad, ctx.w)
        n, c, _ = ctx.x_shape
        grad_x = grad_out.new_zeros(ctx.x_shape)
        for i in range(grad_cols.size(0)):
            grad_x[:, :, i : i + TAPS] += grad_cols[i].reshape(n, c, TAPS)
        return grad_x, grad_w


def products_of_taps(x, kernel):
    taps = x.unfold(1, TAPS, 1)
    return torch.einsum("nti,ij,ntj->nt", taps, kernel, taps)


def frames(x, length):
    return torch.as_strided(x, (x.size(0), length - TAPS + 1, TAPS), (length, 1, 1))


class VolterraFilter(Function):
    """Second-order Volterra filter over overlapping frames."""

    @staticmethod
    def forward(ctx, x, h):
        f = frames(x.contiguous(), x.size(1))
        ctx.save_for_backward(x, h)
        return ((f @ h) * f).sum(dim=-1)

    @staticmethod
    def backward(ctx, grad_y):
        x, h = ctx.saved_tensors
        f = frames(x, x.size(1))
        grad_f = grad_y.unsqueeze(-1) * (f @ (h + h.t()))
        grad_h = torch.einsum("nt,nti,ntj->ij", grad_y, f, f)
        grad_x = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        for k in range(TAPS):
            grad_x[:, k : k + grad_f.size(1)] += grad_f[:, :, k]
        return grad_x, grad_h


OPERATIONS = [
    Operation(
        "kernel for each place, workspace of all calls",
        OwnKernelOfPlacesFunction,
        LocallyConnected1d,
        own_kernel_of_places,
        lambda: {"x": torch.randn(2, 3, 6), "kernels": torch.randn(4, 5, 3, TAPS)},
        named="kernels: the columns are kept in a workspace that the next call of the same shape overwrites",
        kinds=("depends on earlier calls", "not repeatable"),
        named_words=(r"call", r"WORKSPACE|overwr|written over|shared|buffer"),
        located=(r"gradient of (kernels|weight)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "products of taps, layout of the frames",
            VolterraFilter.apply,
            products_of_taps,
            lambda: {"x": torch.randn(4, 7), "kernel": torch.randn(TAPS, TAPS)},
        ),
        named="backward reads the frames of the saved x as if it were contiguous, as its copy in forward was",
        kinds=("only in one layout", "raises"),
        named_words=(r"layout|contiguous|stride|transposed|expanded", r"as_strided"),
        located=(r"gradient of (x|kernel|h)\b",),
    ),
]
