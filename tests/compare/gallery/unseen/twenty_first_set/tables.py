"""Tables: crossed features, numbers in bins with learned edges."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def crossed_features(x, w, b):
    state = x
    for weight, bias in zip(w, b, strict=True):
        state = x * (state @ weight)[:, None] + bias + state
    return state


class CrossedFeaturesFunction(Function):
    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w, b)
        return crossed_features(x, w, b)

    @staticmethod
    def backward(ctx, g):
        x, w, b = ctx.saved_tensors
        states = [x]
        for n in range(len(w)):
            states.append(x * (states[n] @ w[n])[:, None] + b[n] + states[n])
        grad_x, grad_w, grad_b = torch.zeros_like(x), torch.zeros_like(w), torch.zeros_like(b)
        for n in reversed(range(len(w))):
            to_score = (g * x).sum(1)
            grad_x = grad_x + g * (states[n] @ w[n])[:, None]
            grad_w[n] = to_score @ states[n]
            grad_b[n] = g.sum(0)
            g = g + to_score[:, None] * w[n]
        return grad_x + g, grad_w, grad_b


class CrossNet(Function):
    """Cross layers of Deep & Cross (Wang et al. 2017): x_{l+1} = x_0 (x_l . w_l) + b_l + x_l."""

    @staticmethod
    def forward(ctx, x0, kernels, biases):
        xl = x0
        inputs, scores = [], []
        for i in range(kernels.shape[0]):
            inputs.append(xl)
            score = torch.matmul(xl, kernels[i]).unsqueeze(1)
            scores.append(score)
            xl = x0 * score + biases[i] + xl
        ctx.save_for_backward(x0, kernels, *inputs, *scores)
        return xl

    @staticmethod
    def backward(ctx, grad_out):
        x0, kernels, *rest = ctx.saved_tensors
        depth = kernels.shape[0]
        inputs, scores = rest[:depth], rest[depth:]
        grad_kernels, grad_biases = [], []
        grad_xl = grad_out
        for i in range(depth - 1, -1, -1):
            grad_score = (grad_xl * x0).sum(dim=1, keepdim=True)
            grad_x0 = grad_xl * scores[i]
            grad_kernels.insert(0, (grad_score * inputs[i]).sum(dim=0))
            grad_biases.insert(0, grad_xl.sum(dim=0))
            grad_xl = grad_xl + grad_score * kernels[i]
        return grad_x0 + grad_xl, torch.stack(grad_kernels), torch.stack(grad_biases)


def binned(x, edges):
    lower, upper = edges[:-1], edges[1:]
    return ((x[:, None] - lower) / (upper - lower)).clamp(0, 1)


class BinnedFunction(Function):
    @staticmethod
    def forward(ctx, x, edges):
        ctx.save_for_backward(x, edges)
        return binned(x, edges)

    @staticmethod
    def backward(ctx, g):
        x, edges = ctx.saved_tensors
        width = edges.diff()
        share = (x[:, None] - edges[:-1]) / width
        to_share = g * ((share >= 0) & (share <= 1)) / width
        grad_edges = torch.zeros_like(edges)
        grad_edges[:-1] += (to_share * (share - 1)).sum(0)
        grad_edges[1:] -= (to_share * share).sum(0)
        return to_share.sum(1), grad_edges


class PiecewiseLinearEncoding(Function):
    """Encoding of a numerical feature by bins (Gorishniy et al. 2022), with trainable bin edges."""

    @staticmethod
    def forward(ctx, x, edges):
        start = edges[:-1].unsqueeze(0)
        width = (edges[1:] - edges[:-1]).unsqueeze(0)
        ratio = (x.unsqueeze(1) - start) / width
        inside = (ratio >= 0) & (ratio <= 1)
        ctx.save_for_backward(x, edges, inside)
        return ratio.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx, grad_enc):
        x, edges, inside = ctx.saved_tensors
        start, end = edges[:-1], edges[1:]
        width = end - start
        grad_ratio = torch.where(inside, grad_enc, torch.zeros_like(grad_enc))
        grad_x = (grad_ratio / width).sum(dim=1)
        grad_start = -(grad_ratio / width).sum(dim=0)
        grad_end = -(grad_ratio * (x.unsqueeze(1) - start) / width.square()).sum(dim=0)
        grad_edges = torch.zeros_like(edges)
        grad_edges[:-1] += grad_start
        grad_edges[1:] += grad_end
        return grad_x, grad_edges


OPERATIONS = [
    Operation(
        "crossed features, first features of the last layer",
        CrossedFeaturesFunction,
        CrossNet,
        crossed_features,
        lambda: {"x": torch.randn(5, 4), "w": 0.5 * torch.randn(3, 4), "b": torch.randn(3, 4)},
        named="x: each layer of the loop overwrites the gradient of x_0 in place of adding to it",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"overwr|accumul|\+="),
        located=(r"gradient of (x|x0)\b",),
    ),
    Operation(
        "numbers in bins, width of the lower edge",
        BinnedFunction,
        PiecewiseLinearEncoding,
        binned,
        lambda: {"x": 3 * torch.rand(9), "edges": torch.arange(4) + 0.6 * torch.rand(4)},
        named="edges: the lower edge of a bin is also in its width, and this term of the quotient is missing",
        kinds=("missing term", "step left out", "another operand"),
        named_words=(r"missing", r"width|quotient|divisor|denominator"),
        located=(r"gradient of edges\b",),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
