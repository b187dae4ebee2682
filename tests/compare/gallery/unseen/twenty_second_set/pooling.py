"""Pooling: mean and deviation of the frames of an utterance, sums of differences from soft clusters."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def mean_and_deviation(x):
    return torch.cat([x.mean(2), x.std(2)], 1)


class MeanAndDeviationFunction(Function):
    @staticmethod
    def forward(ctx, x):
        centred = x - x.mean(2, keepdim=True)
        deviation = (centred.square().sum(2, keepdim=True) / (x.size(2) - 1)).sqrt()
        ctx.save_for_backward(centred / deviation)
        return torch.cat([x.mean(2), deviation[..., 0]], 1)

    @staticmethod
    def backward(ctx, g):
        (standardized,) = ctx.saved_tensors
        frames = standardized.size(2)
        to_mean, to_deviation = g.unsqueeze(2).chunk(2, 1)
        return to_mean / frames + to_deviation * standardized / (frames - 1)


class StatsPooling(Function):
    """x-vector statistics pooling: (B, C, T) -> (B, 2C)"""

    @staticmethod
    def forward(ctx, x):
        mean = x.mean(dim=-1)
        std = x.std(dim=-1)
        ctx.save_for_backward(x, mean, std)
        return torch.cat((mean, std), dim=1)

    @staticmethod
    def backward(ctx, grad_output):
        x, mean, std = ctx.saved_tensors
        T = x.shape[-1]
        C = x.shape[1]
        grad_mean = grad_output[:, :C].unsqueeze(-1)
        grad_std = grad_output[:, C:].unsqueeze(-1)
        grad_x = (grad_mean / T).expand_as(x).clone()
        grad_x += grad_std * (x - mean.unsqueeze(-1)) / (T * std.unsqueeze(-1))
        return grad_x


def soft_clusters(x, w, centers):
    share = torch.softmax(x @ w.mT, 2)
    return (share.unsqueeze(3) * (x.unsqueeze(2) - centers)).sum(1)


class SoftClustersFunction(Function):
    @staticmethod
    def forward(ctx, x, w, centers):
        share = torch.softmax(x @ w.mT, 2)
        ctx.save_for_backward(x, w, centers, share)
        return share.mT @ x - share.sum(1).unsqueeze(2) * centers

    @staticmethod
    def backward(ctx, g):
        x, w, centers, share = ctx.saved_tensors
        to_share = x @ g.mT - (g * centers).sum(2).unsqueeze(1)
        to_scores = share * (to_share - (share * to_share).sum(2, keepdim=True))
        to_centers = -(share.sum(1).unsqueeze(2) * g).sum(0)
        return share @ g + to_scores @ w, torch.einsum("bnk,bnd->kd", to_scores, x), to_centers


class NetVLAD(Function):
    """V[b, k] = sum_n a[b, n, k] * (x[b, n] - c[k]) with a = softmax_k(x @ w.T)"""

    @staticmethod
    def forward(ctx, x, w, c):
        s = x @ w.t()
        s = s - s.max(dim=-1, keepdim=True)[0]
        e = s.exp()
        a = e / e.sum(dim=-1, keepdim=True)
        residual = x.unsqueeze(2) - c  # B, N, K, D
        ctx.save_for_backward(x, w, a, residual)
        return (a.unsqueeze(-1) * residual).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_v):
        x, w, a, residual = ctx.saved_tensors
        grad_v = grad_v.unsqueeze(1)  # B, 1, K, D
        grad_residual = a.unsqueeze(-1) * grad_v
        grad_a = (grad_v * residual).sum(dim=-1)
        grad_s = grad_a * a * (1 - a)
        grad_x = grad_residual.sum(dim=2) + grad_s @ w
        grad_w = torch.einsum("bnk,bnd->kd", grad_s, x)
        grad_c = -grad_residual.sum(dim=(0, 1))
        return grad_x, grad_w, grad_c


OPERATIONS = [
    Operation(
        "mean and deviation of frames, divisor of the deviation",
        MeanAndDeviationFunction,
        StatsPooling,
        mean_and_deviation,
        lambda: {"x": torch.randn(3, 4, 6)},
        named="the deviation divides by the number of frames less 1, and its derivative by the number of frames",
        kinds=("factor of one term", "constant factor", "another operand"),
        named_words=(r"std\b|deviation", r"factor.*(5/6|0\.83|6/5|1\.2)|(5/6|0\.83|6/5|1\.2)", r"T - 1|frames"),
        located=(r"gradient of x\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "differences from soft clusters, diagonal of the softmax's Jacobian",
        SoftClustersFunction,
        NetVLAD,
        soft_clusters,
        lambda: {"x": torch.randn(2, 5, 3), "w": torch.randn(4, 3), "centers": torch.randn(4, 3)},
        named="softmax has only the diagonal of its Jacobian: the sum over the other clusters is missing",
        kinds=("missing term", "another operand", "step left out"),
        named_words=(r"softmax|Jacobian", r"missing", r"sum over"),
        located=(r"gradient of x\b", r"gradient of w\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
