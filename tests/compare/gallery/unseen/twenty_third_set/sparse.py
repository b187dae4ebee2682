"""Sparse operations and series: a matrix given by its entries, softmax by segment, flatness, a logistic map."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

ROWS, COLUMNS = (0, 2, 1, 0, 3, 2), (1, 0, 1, 3, 1, 3)
SEGMENTS = (0, 0, 1, 2, 2, 2, 1)


def product(values, x):
    matrix = values.new_zeros(4, 4).index_put((torch.tensor(ROWS), torch.tensor(COLUMNS)), values)
    return matrix @ x


class ProductFunction(Function):
    @staticmethod
    def forward(ctx, values, x):
        ctx.save_for_backward(values, x)
        return product(values, x)

    @staticmethod
    def backward(ctx, g):
        values, x = ctx.saved_tensors
        taken = g[list(ROWS)]
        to_x = torch.zeros_like(x)
        for n, column in enumerate(COLUMNS):
            to_x[column] += values[n] * taken[n]
        return (taken * x[list(COLUMNS)]).sum(1), to_x


class SpMM(Function):
    """Sparse matrix times dense matrix; the entries' places are fixed, their values are learned."""

    @staticmethod
    def forward(ctx, values, x):
        row = torch.tensor(ROWS, device=x.device)
        col = torch.tensor(COLUMNS, device=x.device)
        ctx.save_for_backward(values, x, row, col)
        out = torch.zeros_like(x)
        out.index_add_(0, row, values.unsqueeze(1) * x[col])
        return out

    @staticmethod
    def backward(ctx, grad_out):
        values, x, row, col = ctx.saved_tensors
        grad_values = (grad_out[row] * x[col]).sum(dim=1)
        grad_x = torch.zeros_like(x)
        grad_x[col] = values.unsqueeze(1) * grad_out[row]
        return grad_values, grad_x


def softmax_by_segment(scores):
    segment = torch.tensor(SEGMENTS)
    same = (segment[:, None] == segment).to(scores)
    shifted = (scores - scores.detach().amax(0)).exp()
    return shifted / (same @ shifted)


class SegmentsFunction(Function):
    @staticmethod
    def forward(ctx, scores):
        p = softmax_by_segment(scores)
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx, g):
        (p,) = ctx.saved_tensors
        segment = torch.tensor(SEGMENTS)
        same = (segment[:, None] == segment).to(p)
        return p * (g - same @ (g * p))


class EdgeSoftmax(Function):
    """Softmax of edge scores (E, H) over the edges of each target node, as in graph attention."""

    @staticmethod
    def forward(ctx, scores):
        dst = torch.tensor(SEGMENTS, device=scores.device)
        e = torch.exp(scores - scores.max(dim=0).values)
        total = scores.new_zeros(3, scores.shape[1]).index_add_(0, dst, e)
        p = e / total[dst]
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx, grad_p):
        (p,) = ctx.saved_tensors
        gp = grad_p * p
        return gp - p * gp.sum(dim=0, keepdim=True)


def flatness(power):
    return power.log().mean(1).exp() / power.mean(1)


class FlatnessFunction(Function):
    @staticmethod
    def forward(ctx, power):
        ctx.save_for_backward(power)
        return flatness(power)

    @staticmethod
    def backward(ctx, g):
        (power,) = ctx.saved_tensors
        scaled = (g * flatness(power) / power.size(1))[:, None]
        return scaled * (1 / power - 1 / power.mean(1, keepdim=True))


class SpectralFlatness(Function):
    """Geometric over arithmetic mean of a power spectrum (B, F)."""

    @staticmethod
    def forward(ctx, power):
        geometric = torch.exp(torch.log(power).mean(dim=1))
        arithmetic = power.mean(dim=1)
        ctx.save_for_backward(power, geometric, arithmetic)
        return geometric / arithmetic

    @staticmethod
    def backward(ctx, grad_output):
        power, geometric, arithmetic = ctx.saved_tensors
        n = power.shape[1]
        grad_geometric = grad_output / arithmetic
        grad_arithmetic = -grad_output * geometric / arithmetic
        grad_power = (grad_geometric * geometric).unsqueeze(1) / (n * power)
        grad_power = grad_power + grad_arithmetic.unsqueeze(1) / n
        return grad_power


def logistic(x, r):
    states = []
    for _ in range(4):
        x = r * x * (1 - x)
        states.append(x)
    return torch.stack(states, 1)


class LogisticFunction(Function):
    @staticmethod
    def forward(ctx, x, r):
        states = logistic(x, r)
        ctx.save_for_backward(torch.cat([x[:, None], states[:, :-1]], 1), r)
        return states

    @staticmethod
    def backward(ctx, g):
        before, r = ctx.saved_tensors
        to_x, to_r = torch.zeros_like(r), torch.zeros_like(r)
        for t in reversed(range(g.size(1))):
            to_state, state = g[:, t] + to_x, before[:, t]
            to_r = to_r + to_state * state * (1 - state)
            to_x = to_state * r * (1 - 2 * state)
        return to_x, to_r


class LogisticMap(Function):
    """Four steps of x <- r x (1 - x) for populations x (B,) with rates r (B,); returns all states (B, 4)."""

    @staticmethod
    def forward(ctx, x, r):
        xs = [x]
        for _ in range(4):
            xs.append(r * xs[-1] * (1 - xs[-1]))
        ctx.save_for_backward(r, *xs)
        return torch.stack(xs[1:], dim=1)

    @staticmethod
    def backward(ctx, grad):
        r, *xs = ctx.saved_tensors
        grad_x = torch.zeros_like(r)
        grad_r = torch.zeros_like(r)
        for t in range(3, -1, -1):
            grad_x = grad_x + grad[:, t]
            grad_r += grad_x * xs[t] * (1 - xs[t])
            grad_x = grad_x * r * (1 - 2 * xs[t + 1])
        return grad_x, grad_r


OPERATIONS = [
    Operation(
        "matrix given by its entries, columns with several entries",
        ProductFunction,
        SpMM,
        product,
        lambda: {"values": torch.randn(6), "x": torch.randn(4, 3)},
        named="x: gradients of entries in the same column overwrite each other instead of being added",
        kinds=("only at some indices", "missing term", "wrong sum", "few elements"),
        named_words=(
            r"overwr|accumulat|index_add|scatter_add|\+=|repeated|several",
            r"same (column|row|index|place)",
        ),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "softmax by segment, sum over all edges",
        SegmentsFunction,
        EdgeSoftmax,
        softmax_by_segment,
        lambda: (torch.randn(7, 2),),
        named="the sum of grad * p in the Jacobian is over all edges instead of over each segment",
        kinds=("wrong sum", "missing term", "another operand"),
        named_words=(r"segment", r"sum.*(all|every|dim|over)"),
        located=(r"gradient of (scores|input 0)\b",),
    ),
    Operation(
        "flatness of a spectrum, square of the mean",
        FlatnessFunction,
        SpectralFlatness,
        flatness,
        lambda: {"power": 0.5 + 2 * torch.rand(4, 5)},
        named="the arithmetic mean's gradient is divided by the mean, not by its square",
        kinds=("factor of one term", "step left out"),
        named_words=(r"square|\*\* ?2|pow", r"arithmetic|mean"),
        located=(r"gradient of power\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "steps of a logistic map, state after the step",
        LogisticFunction,
        LogisticMap,
        logistic,
        lambda: {"x": 0.1 + 0.8 * torch.rand(5), "r": 2 + 1.5 * torch.rand(5)},
        named="the derivative by the state takes the state after the step, xs[t + 1], instead of that before it",
        kinds=("shifted", "another operand", "wrong intermediate value"),
        named_words=(r"xs\[t\]|\bt ?\+ ?1", r"after|before|previous|step.*(later|earlier)|shift"),
        located=(r"gradient of (x|r)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
