"""Scores: attention by random features, words as heads of one another, mean and spread by precision."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import WrongFunction


def features(x, projection):
    return torch.exp(x @ projection.T - (x**2).sum(1, keepdim=True) / 2)


def attention_by_features(query, key, value, projection):
    of_query, of_key = features(query, projection), features(key, projection)
    return of_query @ (of_key.T @ value) / (of_query @ of_key.sum(0))[:, None]


class FavorAttention(Function):
    @staticmethod
    def forward(ctx, q, k, v, omega):
        phi_q = torch.exp(q @ omega.t() - 0.5 * q.square().sum(dim=-1, keepdim=True))
        phi_k = torch.exp(k @ omega.t() - 0.5 * k.square().sum(dim=-1, keepdim=True))
        kv = phi_k.t() @ v
        z = phi_q @ phi_k.sum(dim=0, keepdim=True).t()
        out = phi_q @ kv / z
        ctx.save_for_backward(q, k, v, omega, phi_q, phi_k, kv, z, out)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        q, k, v, omega, phi_q, phi_k, kv, z, out = ctx.saved_tensors
        grad_num = grad_out / z
        grad_z = -(grad_num * out).sum(dim=-1, keepdim=True)
        grad_phi_q = grad_num @ kv.t() + grad_z * phi_k.sum(dim=0)
        grad_kv = phi_q.t() @ grad_num
        grad_phi_k = v @ grad_kv.t() + (grad_z * phi_q).sum(dim=0)
        grad_v = phi_k @ grad_kv
        grad_log_q = grad_phi_q * phi_q
        grad_log_k = grad_phi_k * phi_k
        grad_q = grad_log_q @ omega - grad_phi_q.sum(dim=-1, keepdim=True) * q
        grad_k = grad_log_k @ omega - grad_phi_k.sum(dim=-1, keepdim=True) * k
        grad_omega = grad_log_q.t() @ q + grad_log_k.t() @ k
        return grad_q, grad_k, grad_v, grad_omega


def scores_of_heads(heads, words, matrix, of_head, of_word):
    return heads @ matrix @ words.T + (heads @ of_head)[:, None] + words @ of_word


class Biaffine(Function):
    @staticmethod
    def forward(ctx, h, d, U, u, w):
        ctx.save_for_backward(h, d, U, u, w)
        return torch.einsum("ia,ab,jb->ij", h, U, d) + (h @ u).unsqueeze(1) + (d @ w).unsqueeze(0)

    @staticmethod
    def backward(ctx, grad_s):
        h, d, U, u, w = ctx.saved_tensors
        per_head = grad_s.sum(dim=1)
        per_word = grad_s.sum(dim=0)
        grad_h = grad_s @ d @ U.t() + torch.outer(per_head, u)
        grad_d = grad_s.t() @ h @ U + torch.outer(per_word, w)
        grad_U = h.t() @ grad_s @ d
        grad_u = h.t() @ per_word
        grad_w = d.t() @ per_word
        return grad_h, grad_d, grad_U, grad_u, grad_w


def combined(x, log_variance):
    precision = torch.exp(-log_variance)
    variance = 1 / precision.sum(1)
    return variance * (precision * x).sum(1), variance


class PrecisionWeightedMean(Function):
    @staticmethod
    def forward(ctx, x, log_var):
        precision = torch.exp(-log_var)
        total = precision.sum(dim=1, keepdim=True)
        weight = precision / total
        mean = (weight * x).sum(dim=1)
        var = total.reciprocal().squeeze(1)
        ctx.save_for_backward(x, weight, mean)
        ctx.mark_non_differentiable(var)
        return mean, var

    @staticmethod
    def backward(ctx, grad_mean, _):
        x, weight, mean = ctx.saved_tensors
        grad_x = grad_mean.unsqueeze(1) * weight
        return grad_x, grad_x * (mean.unsqueeze(1) - x)


WRONG = [
    WrongFunction(
        Case(
            "attention by random features, length of the vectors",
            FavorAttention.apply,
            attention_by_features,
            lambda: {
                "query": torch.randn(4, 3) / 2,
                "key": torch.randn(5, 3) / 2,
                "value": torch.randn(5, 2),
                "projection": torch.randn(6, 3),
            },
        ),
        named="query and key: the length's part sums the features' gradient without the features themselves",
        kinds=("step left out", "another operand", "factor of one term"),
        named_words=(r"phi|feature|exp", r"grad_log|multipli"),
        located=(r"gradient of (query|q)\b", r"gradient of (key|k)\b"),
    ),
    WrongFunction(
        Case(
            "words as heads, sum of the heads' scores",
            Biaffine.apply,
            scores_of_heads,
            lambda: {
                "heads": torch.randn(5, 3),
                "words": torch.randn(5, 4),
                "matrix": torch.randn(3, 4),
                "of_head": torch.randn(3),
                "of_word": torch.randn(4),
            },
        ),
        named="of_head: the incoming gradient is summed over the heads, where it belongs over the words",
        kinds=("wrong sum", "another operand", "transposed", "not transposed"),
        named_words=(r"\bsum\b|summed", r"per_word|per_head", r"transpos"),
        located=(r"gradient of (of_head|u)\b",),
    ),
    WrongFunction(
        Case(
            "mean by precision, variance without gradient",
            PrecisionWeightedMean.apply,
            combined,
            lambda: {"x": torch.randn(4, 3), "log_variance": torch.randn(4, 3)},
        ),
        named="the second output, the variance, is marked as not differentiable: it gives log_variance no gradient",
        kinds=("missing term", "none", "zero", "ignores the incoming gradient"),
        named_words=(r"differentiable|requires no gradient|no gradient", r"missing|constant|no effect|detach"),
        located=(r"log_var|output 1|second output|variance",),
    ),
]

RIGHT: list[Case] = []
