"""Layers: messages through gates of edges, a dropout with bias and residual, a smooth rectifier after a product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPS = 1e-2
DROPPED = 0.25
LINEAR_ABOVE = 20  # the default threshold of softplus


def gated_messages(nodes, gates, source, target):
    gates = torch.sigmoid(gates)
    total = torch.zeros_like(nodes).index_add(0, target, gates * nodes[source])
    weights = torch.zeros_like(nodes).index_add(0, target, gates)
    return total / (weights + EPS)


class GatedMessagesFunction(Function):
    @staticmethod
    def forward(ctx, nodes, gates, source, target):
        gates = torch.sigmoid(gates)
        total = torch.zeros_like(nodes).index_add(0, target, gates * nodes[source])
        weights = torch.zeros_like(nodes).index_add(0, target, gates) + EPS
        ctx.save_for_backward(nodes, gates, source, target, total / weights, weights)
        return total / weights

    @staticmethod
    def backward(ctx, g):
        nodes, gates, source, target, mean, weights = ctx.saved_tensors
        to_edges = (g / weights)[target]
        to_nodes = torch.zeros_like(nodes).index_add(0, source, to_edges * gates)
        to_gates = to_edges * (nodes[source] - mean[target])
        return to_nodes, to_gates * gates * (1 - gates), None, None


class GatedGCNAggregate(Function):
    """h_i = sum_j eta_ij * x_j / (sum_j eta_ij + eps), eta = sigmoid(e) (Bresson and Laurent 2017)."""

    @staticmethod
    def forward(ctx, x, e, src, dst):
        eta = torch.sigmoid(e)
        msg = eta * x[src]
        num = torch.zeros_like(x)
        num.index_add_(0, dst, msg)
        den = torch.zeros_like(x)
        den.index_add_(0, dst, eta)
        den += EPS
        ctx.save_for_backward(x, eta, src, dst, num, den)
        return num / den

    @staticmethod
    def backward(ctx, grad_h):
        x, eta, src, dst, num, den = ctx.saved_tensors
        grad_num = grad_h / den
        grad_den = -grad_h * num / den**2
        grad_x = torch.zeros_like(x)
        grad_x.index_add_(0, dst, eta * grad_num[src])
        grad_eta = grad_num[dst] * x[src] + grad_den[dst]
        grad_e = grad_eta * eta * (1 - eta)
        return grad_x, grad_e, None, None


def residual_with_dropout(x, bias, residual, kept):
    return residual + torch.where(kept, x + bias, 0) / (1 - DROPPED)


class ResidualWithDropoutFunction(Function):
    @staticmethod
    def forward(ctx, x, bias, residual, kept):
        ctx.save_for_backward(kept)
        return residual + torch.where(kept, x + bias, 0) / (1 - DROPPED)

    @staticmethod
    def backward(ctx, g):
        (kept,) = ctx.saved_tensors
        to_x = torch.where(kept, g, 0) / (1 - DROPPED)
        return to_x, to_x.sum((0, 1)), g, None


class BiasDropoutAdd(Function):
    """out = residual + dropout(x + bias), as fused in Megatron; the mask is drawn outside."""

    @staticmethod
    def forward(ctx, x, bias, residual, mask):
        ctx.save_for_backward(mask)
        ctx.scale = 1.0 / (1.0 - DROPPED)
        out = x + bias
        out *= mask
        out *= ctx.scale
        out += residual
        return out

    @staticmethod
    def backward(ctx, grad_output):
        (mask,) = ctx.saved_tensors
        grad_output = grad_output.contiguous()
        grad_x = grad_output.mul_(mask).mul_(ctx.scale)
        grad_bias = grad_x.reshape(-1, grad_x.size(-1)).sum(dim=0)
        grad_residual = grad_output
        return grad_x, grad_bias, grad_residual, None


def smooth_dense(x, weight, bias):
    return F.softplus(F.linear(x, weight, bias))


class SmoothDenseFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        output = F.softplus(x @ weight.mT + bias)
        ctx.save_for_backward(x, weight, output)
        return output

    @staticmethod
    def backward(ctx, g):
        x, weight, output = ctx.saved_tensors
        slope = g * torch.where(output > LINEAR_ABOVE, 1, -torch.expm1(-output))
        return slope @ weight, slope.mT @ x, slope.sum(0)


class LinearSoftplus(Function):
    """softplus(x W^T + b), e.g. for the scale head of a probabilistic model"""

    @staticmethod
    def forward(ctx, input, weight, bias):
        output = input.mm(weight.t())
        output += bias
        output = F.softplus(output)
        ctx.save_for_backward(input, weight, output)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        input, weight, output = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        # softplus'(z) = sigmoid(z)
        grad_z = grad_output * torch.sigmoid(output)
        if ctx.needs_input_grad[0]:
            grad_input = grad_z.mm(weight)
        if ctx.needs_input_grad[1]:
            grad_weight = grad_z.t().mm(input)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_z.sum(0)
        return grad_input, grad_weight, grad_bias


OPERATIONS = [
    Operation(
        "messages through gates of edges, ends exchanged",
        GatedMessagesFunction,
        GatedGCNAggregate,
        gated_messages,
        lambda: {
            "nodes": torch.randn(5, 3),
            "gates": torch.randn(9, 3),
            "source": torch.randint(5, (9,)),
            "target": torch.randint(5, (9,)),
        },
        named="nodes: the gradient goes from the edges' sources to their targets, and must go from target to source",
        kinds=("swapped", "transposed", "not transposed", "another operand", "permuted"),
        named_words=(r"swap|exchang", r"transpos", r"source|target|\bsrc\b|\bdst\b|index_add"),
        located=(r"gradient of (nodes|x)\b",),
    ),
    Operation(
        "dropout with bias and residual, gradient masked in place",
        ResidualWithDropoutFunction,
        BiasDropoutAdd,
        residual_with_dropout,
        lambda: {
            "x": torch.randn(2, 4, 3),
            "bias": torch.randn(3),
            "residual": torch.randn(2, 4, 3),
            "kept": torch.rand(2, 4, 3) > DROPPED,
        },
        named="backward masks the incoming gradient in place, so the residual's gradient is masked and scaled too",
        kinds=("changes the incoming gradient", "factor by element", "another operand", "step left out"),
        named_words=(r"incoming gradient.*in place|in.?place", r"mul_", r"mask|kept|where"),
        located=(r"gradient of residual\b|incoming gradient",),
    ),
    Operation(
        "smooth rectifier after a product, sigmoid of the output",
        SmoothDenseFunction,
        LinearSoftplus,
        smooth_dense,
        lambda: {"x": torch.randn(4, 3), "weight": torch.randn(2, 3), "bias": torch.randn(2)},
        named="the derivative of softplus is the sigmoid of its input, and backward takes that of its output",
        kinds=("another operand", "factor by element", "wrong intermediate value"),
        named_words=(r"output|result", r"softplus|sigmoid"),
        located=(r"gradient of (x|input)\b", r"gradient of weight\b", r"gradient of bias\b"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
