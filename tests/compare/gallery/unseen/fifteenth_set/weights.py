"""Weights: scaled to the largest, log-odds of a bounded probability, kernels in four directions, a quantile."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EPS = 0.1
LEVEL = 0.3


def scaled_to_largest(weight):
    bounded = torch.tanh(weight)
    return bounded / (2 * bounded.abs().amax()) + 0.5


class DoReFaWeight(Function):
    @staticmethod
    def forward(ctx, w):
        t = torch.tanh(w)
        largest = t.abs().max()
        ctx.save_for_backward(t, largest)
        return t / (2 * largest) + 0.5

    @staticmethod
    def backward(ctx, grad_q):
        t, largest = ctx.saved_tensors
        return grad_q * (1 - t * t) / (2 * largest)


def weighted_odds(probability, weight):
    inside = probability.clamp(EPS, 1 - EPS)
    return weight * torch.log(inside / (1 - inside))


class WeightedOddsFunction(Function):
    @staticmethod
    def forward(ctx, probability, weight):
        ctx.save_for_backward(probability, weight)
        return weighted_odds(probability, weight)

    @staticmethod
    def backward(ctx, g):
        probability, weight = ctx.saved_tensors
        inside = probability.clamp(EPS, 1 - EPS)
        kept = (probability >= EPS) & (probability <= 1 - EPS)
        return kept * g * weight / (inside * (1 - inside)), (g * torch.log(inside / (1 - inside))).sum(0)


class ScaledLogit(Function):
    @staticmethod
    def forward(ctx, p, scale):
        p.clamp_(EPS, 1 - EPS)
        log_odds = torch.log(p) - torch.log(1 - p)
        ctx.save_for_backward(p, scale, log_odds)
        return scale * log_odds

    @staticmethod
    def backward(ctx, grad_out):
        p, scale, log_odds = ctx.saved_tensors
        grad_p = grad_out * scale / (p - p * p)
        grad_p[(p < EPS) | (p > 1 - EPS)] = 0
        return grad_p, (grad_out * log_odds).sum(dim=0)


def four_directions(x, kernel):
    return torch.cat([conv2d(x, kernel.rot90(turns, (2, 3))) for turns in range(4)], 1)


class FourDirectionsFunction(Function):
    @staticmethod
    def forward(ctx, x, kernel):
        ctx.save_for_backward(x, kernel)
        return four_directions(x, kernel)

    @staticmethod
    def backward(ctx, g):
        x, kernel = ctx.saved_tensors
        all_kernels = torch.cat([kernel.rot90(turns, (2, 3)) for turns in range(4)])
        to_all = conv2d_weight(x, all_kernels.shape, g)
        parts = [part.rot90(-turns, (2, 3)) for turns, part in enumerate(to_all.chunk(4))]
        return conv2d_input(x.shape, all_kernels, g), sum(parts)


class RotatedKernels(Function):
    @staticmethod
    def forward(ctx, image, weight):
        ctx.save_for_backward(image, weight)
        responses = [conv2d(image, torch.rot90(weight, k, dims=[2, 3])) for k in range(4)]
        return torch.cat(responses, dim=1)

    @staticmethod
    def backward(ctx, grad_out):
        image, weight = ctx.saved_tensors
        c = weight.size(0)
        grad_image = torch.zeros_like(image)
        grad_weight = torch.zeros_like(weight)
        for k in range(4):
            grad_k = grad_out[:, k * c : (k + 1) * c]
            grad_image += conv2d_input(image.shape, torch.rot90(weight, k, dims=[2, 3]), grad_k)
            grad_rotated = conv2d_weight(image, weight.shape, grad_k)
            grad_weight += torch.rot90(grad_rotated, k, dims=[2, 3])
        return grad_image, grad_weight


def level_of_rows(x):
    place = LEVEL * (x.shape[1] - 1)
    lower = int(place)
    ordered = x.sort(1).values
    return ordered[:, lower] + (place - lower) * (ordered[:, lower + 1] - ordered[:, lower])


class RowQuantile(Function):
    @staticmethod
    def forward(ctx, x):
        pos = LEVEL * (x.size(1) - 1)
        lo, hi = int(pos), int(pos) + 1
        values, indices = x.sort(dim=1)
        ctx.save_for_backward(indices[:, lo], indices[:, hi])
        ctx.frac, ctx.size = pos - lo, x.size()
        return values[:, lo] * (1 - ctx.frac) + values[:, hi] * ctx.frac

    @staticmethod
    def backward(ctx, grad_out):
        lower, upper = ctx.saved_tensors
        grad_x = grad_out.new_zeros(ctx.size)
        rows = torch.arange(ctx.size[0])
        grad_x[rows, lower] = grad_out * ctx.frac
        grad_x[rows, upper] = grad_out * (1 - ctx.frac)
        return grad_x


OPERATIONS = [
    Operation(
        "log-odds of a bounded probability, clamped in place",
        WeightedOddsFunction,
        ScaledLogit,
        weighted_odds,
        lambda: {"probability": torch.rand(6, 4) * 1.4 - 0.2, "weight": torch.randn(4)},
        named="forward clamps its argument in place: the input changes, and no number is out of bounds in backward",
        kinds=("changes its input", "only for some values", "step left out"),
        named_words=(r"in.?place|changes|modif|overwrit", r"clamp|bound|outside|inside|mask"),
        located=(r"(probability|\bp\b)",),
    ),
    Operation(
        "kernel in four directions, direction of the turn",
        FourDirectionsFunction,
        RotatedKernels,
        four_directions,
        lambda: {"x": torch.randn(2, 2, 4, 5), "kernel": torch.randn(2, 2, 3, 3)},
        named="kernel: its gradient is turned in forward's direction, where it belongs back",
        kinds=("not transposed", "transposed", "permuted", "flipped"),
        named_words=(r"rot90|rotat|\bturn", r"transpos|permut|flip", r"direction|revers|inver"),
        located=(r"gradient of (kernel|weight)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "weights scaled to the largest, largest as a constant",
            DoReFaWeight.apply,
            scaled_to_largest,
            lambda: (torch.randn(4, 5),),
        ),
        named="the largest weight, by which all are divided, is treated as a constant",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"no effect", r"detach"),
        located=(r"gradient of (weight|w|input 0)",),
    ),
    WrongFunction(
        Case(
            "level of rows, shares of the two neighbours",
            RowQuantile.apply,
            level_of_rows,
            lambda: (torch.randn(4, 5),),
            whole_numbers=False,
        ),
        named="the shares of the lower and the upper neighbour are exchanged",
        kinds=("swapped", "factor by element", "only at some indices", "another operand", "permuted"),
        named_words=(r"swap|exchang|permut", r"frac|share|0\.2|0\.8|\b4\b|0\.25"),
        located=(r"gradient of (x|input 0)",),
    ),
]
