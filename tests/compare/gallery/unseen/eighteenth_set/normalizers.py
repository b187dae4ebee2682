"""Normalizations: parts of a batch, a part of the features, a modulated norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPS = 1e-3
CHUNKS = 2
COUNTED = 3


def norm_of_parts(x, weight, bias):
    parts = [F.batch_norm(part, None, None, weight, bias, True, eps=EPS) for part in x.chunk(CHUNKS)]
    return torch.cat(parts)


class NormOfPartsFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        parts = x.view(CHUNKS, -1, x.size(1))
        deviation = (parts.var(1, unbiased=False, keepdim=True) + EPS).sqrt()
        normal = (parts - parts.mean(1, keepdim=True)) / deviation
        ctx.save_for_backward(normal, deviation, weight)
        return (normal * weight + bias).view_as(x)

    @staticmethod
    def backward(ctx, g):
        normal, deviation, weight = ctx.saved_tensors
        g = g.reshape(normal.shape)
        to_normal = g * weight
        across = to_normal.mean(1, keepdim=True) + normal * (to_normal * normal).mean(1, keepdim=True)
        return ((to_normal - across) / deviation).flatten(0, 1), (g * normal).sum((0, 1)), g.sum((0, 1))


class GhostBatchNorm(Function):
    """Batch norm with the statistics of virtual batches."""

    @staticmethod
    def forward(ctx, x, gamma, beta):
        out = torch.empty_like(x)
        x_hat = torch.empty_like(x)
        inv_stds = []
        for xi, hi, oi in zip(x.chunk(CHUNKS), x_hat.chunk(CHUNKS), out.chunk(CHUNKS), strict=True):
            inv_std = (xi.var(0, unbiased=False) + EPS).rsqrt()
            hi.copy_((xi - xi.mean(0)) * inv_std)
            oi.copy_(hi * gamma + beta)
            inv_stds.append(inv_std)
        ctx.save_for_backward(x_hat, gamma, torch.stack(inv_stds))
        return out

    @staticmethod
    def backward(ctx, grad_output):
        x_hat, gamma, inv_stds = ctx.saved_tensors
        N = x_hat.shape[0]
        grad_gamma = (grad_output * x_hat).sum(0)
        grad_beta = grad_output.sum(0)
        grad_x = []
        for hi, gi, inv_std in zip(x_hat.chunk(CHUNKS), grad_output.chunk(CHUNKS), inv_stds, strict=True):
            dh = gi * gamma
            grad_x.append(inv_std / N * (N * dh - dh.sum(0) - hi * (dh * hi).sum(0)))
        return torch.cat(grad_x), grad_gamma, grad_beta


def norm_by_a_part(x, weight):
    return x * weight / (x[:, :COUNTED].square().mean(1, keepdim=True) + EPS).sqrt()


class NormByAPartFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        scale = (x[:, :COUNTED].square().mean(1, keepdim=True) + EPS).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        return x * scale * weight

    @staticmethod
    def backward(ctx, g):
        x, weight, scale = ctx.saved_tensors
        to_scale = (g * weight * x).sum(1, keepdim=True)
        to_x = g * weight * scale
        to_x[:, :COUNTED] -= to_scale * scale**3 * x[:, :COUNTED] / COUNTED
        return to_x, (g * x * scale).sum(0)


class PartialRMSNorm(Function):
    """pRMSNorm: the root mean square is estimated from the first features only."""

    @staticmethod
    def forward(ctx, x, g):
        rms = torch.sqrt(x[:, :COUNTED].pow(2).mean(dim=1, keepdim=True) + EPS)
        x_hat = x / rms
        ctx.save_for_backward(x_hat, rms, g)
        return g * x_hat

    @staticmethod
    def backward(ctx, dy):
        x_hat, rms, g = ctx.saved_tensors
        dg = (dy * x_hat).sum(dim=0)
        dx_hat = dy * g
        dx = (dx_hat - x_hat * (dx_hat * x_hat).sum(dim=1, keepdim=True) / COUNTED) / rms
        return dx, dg


def modulated_branch(x, shift, scale, gate):
    normal = F.layer_norm(x, x.shape[-1:], eps=EPS)
    return x + gate[:, None] * (normal * (1 + scale[:, None]) + shift[:, None])


class ModulatedBranchFunction(Function):
    @staticmethod
    def forward(ctx, x, shift, scale, gate):
        deviation = (x.var(-1, unbiased=False, keepdim=True) + EPS).sqrt()
        normal = (x - x.mean(-1, keepdim=True)) / deviation
        ctx.save_for_backward(normal, deviation, shift, scale, gate)
        return x + gate[:, None] * (normal * (1 + scale[:, None]) + shift[:, None])

    @staticmethod
    def backward(ctx, g):
        normal, deviation, shift, scale, gate = ctx.saved_tensors
        to_gate = (g * (normal * (1 + scale[:, None]) + shift[:, None])).sum(1)
        inside = g * gate[:, None]
        d = inside * (1 + scale[:, None])
        d = (d - d.mean(-1, keepdim=True) - normal * (d * normal).mean(-1, keepdim=True)) / deviation
        return g + d, inside.sum(1), (inside * normal).sum(1), to_gate


class AdaLNZero(Function):
    """Block of a diffusion transformer without its layer: x + gate * modulate(norm(x), shift, scale)."""

    @staticmethod
    def forward(ctx, x, shift, scale, gate):
        mu = x.mean(dim=-1, keepdim=True)
        rstd = torch.rsqrt(x.var(dim=-1, keepdim=True, unbiased=False) + EPS)
        x_hat = (x - mu) * rstd
        h = x_hat * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
        ctx.save_for_backward(x_hat, rstd, scale, gate, h)
        return x + gate.unsqueeze(1) * h

    @staticmethod
    def backward(ctx, grad_output):
        x_hat, rstd, scale, gate, h = ctx.saved_tensors
        grad_gate = (grad_output * h).sum(dim=1)
        grad_h = grad_output * gate.unsqueeze(1)
        grad_shift = grad_h.sum(dim=1)
        grad_scale = (grad_h * x_hat).sum(dim=1)
        grad_hat = grad_h * scale.unsqueeze(1)
        c1 = grad_hat.mean(dim=-1, keepdim=True)
        c2 = (grad_hat * x_hat).mean(dim=-1, keepdim=True)
        grad_x = grad_output + (grad_hat - c1 - x_hat * c2) * rstd
        return grad_x, grad_shift, grad_scale, grad_gate


OPERATIONS = [
    Operation(
        "batch norm of parts, size of the whole batch",
        NormOfPartsFunction,
        GhostBatchNorm,
        norm_of_parts,
        lambda: {"x": torch.randn(8, 3), "weight": torch.randn(3), "bias": torch.randn(3)},
        named="the two means are over a part of the batch, and the whole batch's size stands for the part's",
        kinds=("factor of one term", "wrong sum", "another operand"),
        named_words=(r"\bN\b", r"size|number|mean|elements", r"CHUNKS|shape"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "RMS of a part, correction everywhere",
        NormByAPartFunction,
        PartialRMSNorm,
        norm_by_a_part,
        lambda: {"x": torch.randn(4, 7), "weight": torch.randn(7)},
        named="the features that do not enter the root mean square get its correction too",
        kinds=("missing term", "only at some indices", "step left out", "wrong sum"),
        named_words=(r"COUNTED|:3|first", r"index|column|>= ?3|> ?2", r"path|term"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "modulated norm with a gate, scale without 1",
        ModulatedBranchFunction,
        AdaLNZero,
        modulated_branch,
        lambda: {
            "x": torch.randn(2, 3, 5),
            "shift": torch.randn(2, 5),
            "scale": torch.randn(2, 5),
            "gate": torch.randn(2, 5),
        },
        named="x: the normalized rows are multiplied by 1 + scale, and backward multiplies by scale",
        kinds=("another operand", "missing term", "step left out"),
        named_words=(r"1 \+ scale", r"scale\S* \+ 1", r"missing|left out"),
        located=(r"gradient of x\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
