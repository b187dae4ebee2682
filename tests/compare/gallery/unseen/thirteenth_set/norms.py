"""Normalizations: of weights, of nodes, without a mean and with a threshold, over time."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EPS, DECAY = 0.1, 0.7


def standardized_dense(x, weight, gain):
    centred = weight - weight.mean(1, keepdim=True)
    return x @ (gain[:, None] * centred / torch.sqrt((centred**2).mean(1, keepdim=True) + EPS)).T


class StandardizedDenseFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, gain):
        ctx.save_for_backward(x, weight, gain)
        return standardized_dense(x, weight, gain)

    @staticmethod
    def backward(ctx, g):
        x, weight, gain = ctx.saved_tensors
        centred = weight - weight.mean(1, keepdim=True)
        deviation = torch.sqrt((centred**2).mean(1, keepdim=True) + EPS)
        unit = centred / deviation
        to_scaled = g.T @ x
        to_unit = gain[:, None] * to_scaled
        to_centred = (to_unit - unit * (to_unit * unit).mean(1, keepdim=True)) / deviation
        grad_weight = to_centred - to_centred.mean(1, keepdim=True)
        return g @ (gain[:, None] * unit), grad_weight, (to_scaled * unit).sum(1)


class WSLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, gain):
        var, mean = torch.var_mean(weight, dim=1, correction=0, keepdim=True)
        inv = torch.rsqrt(var + EPS)
        w_hat = (weight - mean) * inv
        ctx.save_for_backward(x, w_hat, inv, gain)
        return x @ (gain.unsqueeze(1) * w_hat).t()

    @staticmethod
    def backward(ctx, grad_out):
        x, w_hat, inv, gain = ctx.saved_tensors
        scale = gain.unsqueeze(1)
        grad_x = grad_out @ (scale * w_hat)
        grad_w = grad_out.t() @ x
        grad_gain = (grad_w * w_hat).sum(dim=1)
        grad_w = grad_w * scale
        projection = (grad_w * w_hat).mean(dim=1, keepdim=True)
        return grad_x, inv * (grad_w - projection * w_hat), grad_gain


def centred_nodes(x, scale):
    centred = x - x.mean(0)
    return scale * centred / torch.sqrt((centred**2).sum(1).mean() + EPS)


class CentredNodesFunction(Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return centred_nodes(x, scale)

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        centred = x - x.mean(0)
        length = torch.sqrt((centred**2).sum(1).mean() + EPS)
        to_centred = scale * (g / length - centred * (g * centred).sum() / (len(x) * length**3))
        return to_centred - to_centred.mean(0), (g * centred).sum() / length


class PairNorm(Function):
    @staticmethod
    def forward(ctx, x, s):
        xc = x - x.mean(dim=0, keepdim=True)
        inv = 1 / (EPS + xc.square().sum(dim=1).mean()).sqrt()
        ctx.save_for_backward(xc, inv, s)
        return s * xc * inv

    @staticmethod
    def backward(ctx, dy):
        xc, inv, s = ctx.saved_tensors
        ds = (dy * xc).sum() * inv
        dxc = s * dy * inv
        dxc = dxc - s * inv**3 * xc * (dy * xc).sum(dim=1, keepdim=True).mean(dim=0)
        dx = dxc - dxc.mean(dim=0, keepdim=True)
        return dx, ds


class NodeScale(Function):
    @staticmethod
    def forward(ctx, nodes, scale):
        centred = nodes - nodes.mean(dim=0)
        energy = centred.pow(2).sum(dim=1)
        length = (energy.mean() + EPS).sqrt()
        ctx.save_for_backward(centred, length, scale)
        return centred * (scale / length)

    @staticmethod
    def backward(ctx, grad):
        centred, length, scale = ctx.saved_tensors
        grad_scale = (grad * centred).sum() / length
        shares = (grad * centred).sum(dim=1, keepdim=True) / (centred.shape[0] * length**2)
        grad_centred = scale / length * (grad - shares * centred)
        return grad_centred - grad_centred.mean(dim=0), grad_scale


def thresholded_response(x, gain, threshold):
    z = gain * x / torch.sqrt((x**2).mean(2, keepdim=True) + EPS)
    return torch.where(z > threshold, z, threshold)


class FilterResponseNorm(Function):
    @staticmethod
    def forward(ctx, x, gamma, tau):
        inv = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + EPS)
        x_hat = x * inv
        y = gamma * x_hat
        mask = y > tau
        ctx.save_for_backward(x_hat, inv, gamma, mask)
        return torch.where(mask, y, tau)

    @staticmethod
    def backward(ctx, grad_y):
        x_hat, inv, gamma, mask = ctx.saved_tensors
        grad_tau = (grad_y * ~mask).sum(dim=(0, 2)).view(-1, 1)
        active = grad_y * mask
        grad_gamma = (active * x_hat).sum(dim=(0, 2)).view(-1, 1)
        along = (grad_y * gamma * x_hat).mean(dim=-1, keepdim=True)
        return inv * (active * gamma - along * x_hat), grad_gamma, grad_tau


def over_recent_size(x):
    square, rows = torch.ones_like(x[0]), []
    for row in x:
        square = DECAY * square + (1 - DECAY) * row**2
        rows.append(row / (torch.sqrt(square) + EPS))
    return torch.stack(rows)


class OverRecentSizeFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return over_recent_size(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        squares = [torch.ones_like(x[0])]
        for row in x:
            squares.append(DECAY * squares[-1] + (1 - DECAY) * row**2)
        grad, carried = torch.zeros_like(x), torch.zeros_like(x[0])
        for t in reversed(range(len(x))):
            root = torch.sqrt(squares[t + 1])
            carried = carried - g[t] * x[t] / (root + EPS) ** 2 / (2 * root)
            grad[t] = g[t] / (root + EPS) + carried * 2 * (1 - DECAY) * x[t]
            carried = DECAY * carried
        return grad


class RMSPropScaling(Function):
    @staticmethod
    def forward(ctx, grads):
        v = torch.ones_like(grads[0])
        scales = torch.empty_like(grads)
        for t, grad in enumerate(grads):
            v = DECAY * v + (1 - DECAY) * grad * grad
            scales[t] = 1 / (v.sqrt() + EPS)
        ctx.save_for_backward(grads, scales)
        return grads * scales

    @staticmethod
    def backward(ctx, d_out):
        grads, scales = ctx.saved_tensors
        d_grads = d_out * scales
        d_v = torch.zeros_like(grads[0])
        for t in range(len(grads) - 1, -1, -1):
            d_v = DECAY * d_v - 0.5 * d_out[t] * grads[t] * scales[t] ** 3
            d_grads[t] += 2 * (1 - DECAY) * d_v * grads[t]
        return d_grads


WEIGHTS = {"x": (5, 4), "weight": (3, 4), "gain": (3,)}


OPERATIONS = [
    Operation(
        "dense layer of standardized weights, mean",
        StandardizedDenseFunction,
        WSLinear,
        standardized_dense,
        lambda: {name: torch.randn(shape) for name, shape in WEIGHTS.items()},
        named="weight: the part of the derivative through the mean that is subtracted is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"\bmean\b", r"centred"),
        located=(r"gradient of weight",),
    ),
    Operation(
        "centred nodes, a scale for each row",
        CentredNodesFunction,
        NodeScale,
        centred_nodes,
        lambda: {"x": torch.randn(5, 3), "scale": torch.rand(()) + 0.5},
        named="the sum of gradient times value is over each row, where it is over all elements",
        kinds=("wrong sum", "missing term"),
        named_words=(r"\bsum\b|\bmean\b", r"missing|row"),
        located=(r"gradient of x",),
    ),
    Operation(
        "rows over their recent size, root of the mean square",
        OverRecentSizeFunction,
        RMSPropScaling,
        over_recent_size,
        lambda: (torch.randn(6, 3),),
        named="the derivative of 1 / (root + epsilon) is taken as that of 1 / root, -1/2 times its cube",
        kinds=("another operand", "step left out", "factor by element", "missing term", "factor of one term"),
        named_words=(r"\bsqrt\b|root", r"epsilon|\b0\.1\b|\badd\b", r"cube|power 3"),
        located=(r"gradient of (x|input 0)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
RIGHT += [
    Case(
        "centred nodes, sum of the rows' means",
        PairNorm.apply,
        centred_nodes,
        lambda: {"x": torch.randn(5, 3), "scale": torch.rand(()) + 0.5},
    ),
]
WRONG += [
    WrongFunction(
        Case(
            "response with a threshold, mask in one term",
            FilterResponseNorm.apply,
            thresholded_response,
            lambda: {"x": torch.randn(3, 2, 6), "gain": torch.rand(2, 1) + 0.5, "threshold": torch.randn(2, 1) / 4},
        ),
        named="the mean of gradient times value takes the elements below the threshold too",
        kinds=("step left out", "missing term", "only for some values"),
        named_words=(r"where|mask|threshold", r"one too many|extra"),
        located=(r"gradient of x",),
    ),
]
