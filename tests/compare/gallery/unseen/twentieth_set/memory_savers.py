"""To save memory: layers by chunks, gradients computed in forward, softmax in one pass, what is not asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

ROWS = 3


def two_layers(x, w1, w2):
    return F.gelu(x @ w1.mT) @ w2.mT


def gelu_slope(h):
    return 0.5 * (1 + torch.erf(h * 0.5**0.5)) + h * torch.exp(-0.5 * h * h) * (0.5 / torch.pi) ** 0.5


class TwoLayersFunction(Function):
    @staticmethod
    def forward(ctx, x, w1, w2):
        ctx.save_for_backward(x, w1, w2)
        return two_layers(x, w1, w2)

    @staticmethod
    def backward(ctx, g):
        x, w1, w2 = ctx.saved_tensors
        grad_x, grad_w1, grad_w2 = torch.zeros_like(x), torch.zeros_like(w1), torch.zeros_like(w2)
        for rows in torch.arange(len(x)).split(ROWS):
            h = x[rows] @ w1.mT
            grad_w2 += g[rows].mT @ F.gelu(h)
            grad_h = (g[rows] @ w2) * gelu_slope(h)
            grad_w1 += grad_h.mT @ x[rows]
            grad_x[rows] = grad_h @ w1
        return grad_x, grad_w1, grad_w2


class ChunkedMLP(Function):
    """GELU MLP without biases; the hidden layer exists for a few tokens at a time, and is recomputed."""

    @staticmethod
    def forward(ctx, x, up, down):
        ctx.save_for_backward(x, up, down)
        return torch.cat([F.gelu(part @ up.t()) @ down.t() for part in x.split(ROWS)])

    @staticmethod
    def backward(ctx, grad_y):
        x, up, down = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        grad_up = torch.zeros_like(up)
        grad_down = torch.zeros_like(down)
        for i in range(x.shape[0] // ROWS):
            part = slice(i * ROWS, (i + 1) * ROWS)
            pre = x[part] @ up.t()
            cdf = torch.special.ndtr(pre)
            pdf = torch.exp(-pre.pow(2) / 2) / (2 * torch.pi) ** 0.5
            grad_down.addmm_(grad_y[part].t(), pre * cdf)
            grad_pre = (grad_y[part] @ down) * (cdf + pre * pdf)
            grad_up.addmm_(grad_pre.t(), x[part])
            grad_x[part] = grad_pre @ up
        return grad_x, grad_up, grad_down


def losses_of_rows(x, weight, target):
    return F.smooth_l1_loss(x @ weight, target, reduction="none")


class LossesOfRowsFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, target):
        ctx.save_for_backward(x, weight, target)
        return losses_of_rows(x, weight, target)

    @staticmethod
    def backward(ctx, g):
        x, weight, target = ctx.saved_tensors
        grad = g * (x @ weight - target).clamp(-1, 1)
        return grad[:, None] * weight, x.mT @ grad, -grad


class FusedLinearHuber(Function):
    """Linear head and Huber loss for each row. The gradients are made in forward; predictions are not kept."""

    @staticmethod
    def forward(ctx, x, weight, target):
        err = torch.mv(x, weight) - target
        small = err.abs() < 1
        loss = torch.where(small, 0.5 * err * err, err.abs() - 0.5)
        d = torch.where(small, err, err.sign())
        ctx.save_for_backward(torch.outer(d, weight), x.t() @ d, d.neg())
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        grad_x, grad_weight, grad_target = ctx.saved_tensors
        scale = grad_output.reshape(-1)[0]
        return grad_x * scale, grad_weight * scale, grad_target * scale


def log_sum_of_chunks(x):
    return torch.logsumexp(x, 1)


class LogSumOfChunksFunction(Function):
    @staticmethod
    def forward(ctx, x):
        total = torch.full_like(x[:, 0], -torch.inf)
        for part in x.split(ROWS, 1):
            total = torch.logaddexp(total, part.logsumexp(1))
        ctx.save_for_backward(x, total)
        return total

    @staticmethod
    def backward(ctx, g):
        x, total = ctx.saved_tensors
        return torch.cat([g[:, None] * (part - total[:, None]).exp() for part in x.split(ROWS, 1)], 1)


class OnlineLogSumExp(Function):
    """Log-sum-exp of each row in one pass over blocks of columns."""

    @staticmethod
    def forward(ctx, x):
        run_max = torch.full_like(x[:, :1], float("-inf"))
        denom = torch.zeros_like(x[:, :1])
        for blk in x.split(ROWS, dim=1):
            blk_max = blk.amax(dim=1, keepdim=True)
            new_max = torch.maximum(run_max, blk_max)
            denom = denom * torch.exp(run_max - new_max) + torch.exp(blk - new_max).sum(dim=1, keepdim=True)
            run_max = new_max
        ctx.save_for_backward(x, blk_max, denom)
        return (run_max + denom.log()).squeeze(1)

    @staticmethod
    def backward(ctx, grad_out):
        x, row_max, denom = ctx.saved_tensors
        grad = torch.empty_like(x)
        for start in range(0, x.size(1), ROWS):
            blk = slice(start, start + ROWS)
            grad[:, blk] = torch.exp(x[:, blk] - row_max) / denom * grad_out.unsqueeze(1)
        return grad


def scaled_residual(x, weight, scale):
    return x + scale * (x @ weight.mT)


class ScaledResidualFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, scale):
        ctx.save_for_backward(x, weight, scale)
        return scaled_residual(x, weight, scale)

    @staticmethod
    def backward(ctx, g):
        x, weight, scale = ctx.saved_tensors
        scaled = g * scale
        return g + scaled @ weight, scaled.mT @ x, (g * (x @ weight.mT)).sum(0)


class ResidualLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, gamma):
        branch = F.linear(x, weight)
        ctx.save_for_backward(x, weight, gamma, branch)
        return torch.addcmul(x, branch, gamma.expand_as(branch))

    @staticmethod
    def backward(ctx, grad_output):
        x, weight, gamma, branch = ctx.saved_tensors
        grad_x = grad_weight = grad_gamma = None
        grad_branch = grad_output * gamma
        if ctx.needs_input_grad[0]:
            grad_x = grad_output + grad_branch.matmul(weight)
        if ctx.needs_input_grad[1]:
            grad_weight = grad_branch.t().matmul(x)
        if ctx.needs_input_grad[1]:
            grad_gamma = (grad_output * branch).sum(dim=0)
        return grad_x, grad_weight, grad_gamma


OPERATIONS = [
    Operation(
        "two layers by chunks, last rows",
        TwoLayersFunction,
        ChunkedMLP,
        two_layers,
        lambda: {"x": torch.randn(8, 3), "w1": torch.randn(5, 3), "w2": torch.randn(2, 5)},
        named="the rows that fill no whole chunk, the last two of eight, are left out",
        kinds=("only at some indices",),
        named_words=(r"// ?ROWS|ROWS", r"last (two )?(rows|indices)|remainder|\b[67]\b"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "linear and loss of each row, first incoming gradient",
        LossesOfRowsFunction,
        FusedLinearHuber,
        losses_of_rows,
        lambda: {"x": torch.randn(5, 3), "weight": torch.randn(3), "target": torch.randn(5)},
        named="all rows are multiplied by the first row's incoming gradient",
        kinds=("another operand", "wrong sum"),
        named_words=(r"incoming gradient|grad_output", r"\bscale\b", r"first (row|element)|\[0\]"),
        located=(r"gradient of x\b", r"gradient of weight\b"),
    ),
    Operation(
        "log-sum-exp in one pass, last block's maximum",
        LogSumOfChunksFunction,
        OnlineLogSumExp,
        log_sum_of_chunks,
        lambda: {"x": 2 * torch.randn(3, 8)},
        named="the saved maximum is the last block's, not the row's",
        kinds=("another operand", "wrong intermediate value", "factor by element"),
        named_words=(r"row_max|blk_max|run_max|new_max", r"\bmaxim"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "scaled residual, weight without gradient",
        ScaledResidualFunction,
        ResidualLinear,
        scaled_residual,
        lambda: {"x": torch.randn(4, 3), "weight": torch.randn(3, 3), "scale": torch.randn(3)},
        named="the scale gets a gradient only if the weight requires one",
        kinds=("depends on which inputs require a gradient", "none"),
        named_words=(r"requires? a gradient|requires_grad|needs_input_grad|require gradients|frozen",),
        located=(r"scale|gamma", r"weight"),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
