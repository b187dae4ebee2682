"""Norms: the moments of each position, the nodes of each graph, and a scale with the determinant's logarithm."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPS = 1e-3


def position_moments(x):
    mean = x.mean(1, keepdim=True)
    std = (x.var(1, keepdim=True, unbiased=False) + EPS).sqrt()
    return (x - mean) / std, mean, std


class PositionMomentsFunction(Function):
    @staticmethod
    def forward(ctx, x):
        mean = x.mean(1, keepdim=True)
        std = (x.var(1, keepdim=True, unbiased=False) + EPS).sqrt()
        y = (x - mean) / std
        ctx.save_for_backward(y, std)
        return y, mean, std

    @staticmethod
    def backward(ctx, g, g_mean, g_std):
        y, std = ctx.saved_tensors
        to_std = g_std - (g * y).sum(1, keepdim=True) / std
        to_centred = g / std + to_std * y / y.shape[1]
        return to_centred - to_centred.mean(1, keepdim=True) + g_mean / y.shape[1]


class PONO(Function):
    """Positional normalization over channels; mean and std go to the decoder (moment shortcut)."""

    @staticmethod
    def forward(ctx, x):
        mu = x.mean(dim=1, keepdim=True)
        sigma = x.var(dim=1, keepdim=True, unbiased=False).add(EPS).sqrt()
        out = (x - mu) / sigma
        ctx.save_for_backward(out, sigma)
        return out, mu, sigma

    @staticmethod
    def backward(ctx, grad_out, grad_mu, grad_sigma):
        out, sigma = ctx.saved_tensors
        C = out.size(1)
        m1 = grad_out.mean(dim=1, keepdim=True)
        m2 = (grad_out * out).mean(dim=1, keepdim=True)
        grad_x = (grad_out - m1 - out * m2) / sigma
        grad_x = grad_x + grad_mu / C + grad_sigma * out / (C * sigma)
        return grad_x


def graph_mean(x, graph):
    sums = torch.zeros_like(x[: int(graph.max()) + 1]).index_add(0, graph, x)
    return (sums / torch.bincount(graph)[:, None].to(x.dtype))[graph]


def normalized_graphs(x, alpha, weight, bias, graph):
    shifted = x - alpha * graph_mean(x, graph)
    return weight * shifted / (graph_mean(shifted**2, graph) + EPS).sqrt() + bias


class NormalizedGraphsFunction(Function):
    @staticmethod
    def forward(ctx, x, alpha, weight, bias, graph):
        mean = graph_mean(x, graph)
        shifted = x - alpha * mean
        std = (graph_mean(shifted**2, graph) + EPS).sqrt()
        y = shifted / std
        ctx.save_for_backward(mean, std, y, alpha, weight, graph)
        return weight * y + bias

    @staticmethod
    def backward(ctx, g):
        mean, std, y, alpha, weight, graph = ctx.saved_tensors
        to_y = g * weight
        to_shifted = (to_y - y * graph_mean(to_y * y, graph)) / std
        to_x = to_shifted - alpha * graph_mean(to_shifted, graph)
        return to_x, -(to_shifted * mean).sum(0), (g * y).sum(0), g.sum(0), None


class GraphNorm(Function):
    """GraphNorm: gamma * (h - alpha * mean) / std + beta with the statistics of each graph in the batch."""

    @staticmethod
    def forward(ctx, h, alpha, gamma, beta, batch):
        num_graphs = int(batch.max()) + 1
        count = torch.bincount(batch, minlength=num_graphs).to(h.dtype).unsqueeze(1)
        mean = h.new_zeros(num_graphs, h.shape[1]).index_add_(0, batch, h) / count
        sub = h - alpha * mean[batch]
        var = h.new_zeros(num_graphs, h.shape[1]).index_add_(0, batch, sub * sub) / count
        inv_std = torch.rsqrt(var + EPS)
        h_hat = sub * inv_std[batch]
        ctx.save_for_backward(h_hat, inv_std, mean, gamma, batch, count)
        return gamma * h_hat + beta

    @staticmethod
    def backward(ctx, grad_out):
        h_hat, inv_std, mean, gamma, batch, count = ctx.saved_tensors

        def scatter_mean(t):
            return torch.zeros_like(mean).index_add_(0, batch, t) / count

        grad_hat = grad_out * gamma
        grad_sub = inv_std[batch] * (grad_hat - h_hat * scatter_mean(grad_hat * h_hat)[batch])
        grad_h = grad_sub - scatter_mean(grad_sub)[batch]
        grad_alpha = -(grad_sub * mean[batch]).sum(dim=0)
        grad_gamma = (grad_out * h_hat).sum(dim=0)
        grad_beta = grad_out.sum(dim=0)
        return grad_h, grad_alpha, grad_gamma, grad_beta, None


def scaled_with_determinant(x, bias, logs):
    y = (x + bias[:, None, None]) * logs.exp()[:, None, None]
    return y, logs.sum() * (x.shape[-1] * x.shape[-2])


class ScaledWithDeterminantFunction(Function):
    @staticmethod
    def forward(ctx, x, bias, logs):
        scale = logs.exp()[:, None, None]
        y = (x + bias[:, None, None]) * scale
        ctx.save_for_backward(y, scale)
        return y, logs.sum() * (x.shape[-1] * x.shape[-2])

    @staticmethod
    def backward(ctx, g, g_det):
        y, scale = ctx.saved_tensors
        to_x = g * scale
        pixels = y.shape[-1] * y.shape[-2]
        return to_x, to_x.sum((0, 2, 3)), (g * y).sum((0, 2, 3)) + g_det * pixels


class ActNorm(Function):
    """Glow's activation normalization; returns the output and the log-determinant of one sample."""

    @staticmethod
    def forward(ctx, x, bias, logs):
        b = bias.view(1, -1, 1, 1)
        s = logs.view(1, -1, 1, 1).exp()
        out = (x + b) * s
        logdet = x.shape[2] * x.shape[3] * logs.sum()
        ctx.save_for_backward(x, b, s)
        return out, logdet

    @staticmethod
    def backward(ctx, grad_out, grad_logdet):
        x, b, s = ctx.saved_tensors
        grad_x = grad_out * s
        grad_bias = grad_x.sum(dim=(0, 2, 3))
        grad_logs = (grad_out * (x + b) * s).sum(dim=(0, 2, 3))
        grad_logs = grad_logs + grad_logdet
        return grad_x, grad_bias, grad_logs


OPERATIONS = [
    Operation(
        "moments of each position, deviations divided twice",
        PositionMomentsFunction,
        PONO,
        position_moments,
        lambda: {"x": torch.randn(2, 4, 3)},
        named="std's derivative is (x - mu) / (C sigma), which is out / C; backward divides by sigma once more",
        kinds=("another operand", "step left out", "factor of one term", "factor by element"),
        named_words=(r"\bsigma\b", r"\bstd\b", r"sqrt", r"divi"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "nodes of a graph, learned part of the mean",
        NormalizedGraphsFunction,
        GraphNorm,
        normalized_graphs,
        lambda: {
            "x": torch.randn(7, 3),
            "alpha": 0.3 + torch.rand(3),
            "weight": torch.randn(3),
            "bias": torch.randn(3),
            "graph": torch.tensor([0, 0, 0, 1, 1, 1, 1]),
        },
        named="x: the whole mean of the gradient is subtracted, as in a layer norm; alpha is missing as its factor",
        kinds=("another operand", "step left out", "factor of one term"),
        named_words=(r"\balpha\b",),
        located=(r"gradient of (x|h)\b",),
    ),
    Operation(
        "scale with the determinant's logarithm, number of pixels",
        ScaledWithDeterminantFunction,
        ActNorm,
        scaled_with_determinant,
        lambda: {"x": torch.randn(2, 3, 2, 4), "bias": torch.randn(3), "logs": 0.5 * torch.randn(3)},
        named="logs: the log-determinant is H * W times the sum of logs; this factor is missing in its gradient",
        kinds=("factor of one term", "constant factor", "step left out"),
        named_words=(r"\b8\b|1/8|0\.125|size|shape", r"factor"),
        located=(r"gradient of logs\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
