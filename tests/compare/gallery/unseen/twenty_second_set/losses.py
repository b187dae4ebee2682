"""Losses: Laplace likelihood, masked squared error, divergence from a normal prior, distances to centres."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def laplace_loss(mu, b, y):
    return (torch.log(2 * b) + (y - mu).abs() / b).mean()


class LaplaceLossFunction(Function):
    @staticmethod
    def forward(ctx, mu, b, y):
        ctx.save_for_backward(y - mu, b)
        return ((2 * b).log() + (y - mu).abs() / b).mean()

    @staticmethod
    def backward(ctx, g):
        difference, b = ctx.saved_tensors
        to_y = g * difference.sign() / b / b.numel()
        to_b = g * (b - difference.abs()) / b.square() / b.numel()
        return -to_y, to_b, to_y


class LaplaceNLL(Function):
    """Negative log-likelihood of y under Laplace(mu, b), averaged."""

    @staticmethod
    def forward(ctx, mu, b, y):
        ctx.save_for_backward(mu, b, y)
        return torch.mean(torch.log(2 * b) + torch.abs(y - mu) / b)

    @staticmethod
    def backward(ctx, grad_output):
        mu, b, y = ctx.saved_tensors
        n = y.numel()
        r = y - mu
        grad_mu = -torch.sign(r) / b
        grad_b = 1 / b - r.abs() / b
        return grad_output * grad_mu / n, grad_output * grad_b / n, -grad_output * grad_mu / n


def masked_squared_error(pred, target, mask):
    return ((pred - target).square() * mask).sum() / mask.sum()


class MaskedMSE(Function):
    """Mean squared error over the valid elements."""

    @staticmethod
    def forward(ctx, pred, target, mask):
        diff = (pred - target) * mask
        ctx.save_for_backward(diff)
        return diff.pow(2).sum() / mask.sum()

    @staticmethod
    def backward(ctx, grad_output):
        (diff,) = ctx.saved_tensors
        grad = grad_output * 2.0 * diff / diff.numel()
        return grad, -grad, None


def divergence_from_prior(mu, logvar):
    return -(1 + logvar - mu.square() - logvar.exp()).sum(1).mean() / 2


class DivergenceFromPriorFunction(Function):
    @staticmethod
    def forward(ctx, mu, logvar):
        variance = logvar.exp()
        ctx.save_for_backward(mu, variance)
        return (variance + mu * mu - 1 - logvar).sum() / (2 * mu.size(0))

    @staticmethod
    def backward(ctx, g):
        mu, variance = ctx.saved_tensors
        g = g / mu.size(0)
        return g * mu, g * (variance - 1) / 2


class KLDivergence(Function):
    """KL(N(mu, exp(logvar)) || N(0, 1)), summed over the latent dimensions and averaged over the batch."""

    @staticmethod
    def forward(ctx, mu, logvar):
        ctx.save_for_backward(mu, logvar)
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)
        return kl.mean()

    @staticmethod
    def backward(ctx, grad_output):
        mu, logvar = ctx.saved_tensors
        batch = mu.shape[0]
        grad_mu = mu / batch
        grad_logvar = 0.5 * (logvar.exp() - 1) / batch
        return grad_mu, grad_logvar


def distances_to_centres(x, centers, labels):
    return (x - centers[labels]).square().sum() / (2 * x.size(0))


class DistancesToCentresFunction(Function):
    @staticmethod
    def forward(ctx, x, centers, labels):
        difference = x - centers.index_select(0, labels)
        ctx.save_for_backward(difference, labels)
        ctx.classes = centers.size(0)
        return (difference * difference).sum() / (2 * x.size(0))

    @staticmethod
    def backward(ctx, g):
        difference, labels = ctx.saved_tensors
        to_x = g * difference / difference.size(0)
        to_centers = torch.zeros_like(difference[:1]).expand(ctx.classes, -1).index_add(0, labels, to_x, alpha=-1)
        return to_x, to_centers, None


class CenterLoss(Function):
    """0.5 * ||x_i - c_{y_i}||^2, averaged over the batch."""

    @staticmethod
    def forward(ctx, x, centers, labels):
        diff = x - centers[labels]
        ctx.save_for_backward(diff, centers, labels)
        return 0.5 * diff.pow(2).sum() / x.size(0)

    @staticmethod
    def backward(ctx, grad_output):
        diff, centers, labels = ctx.saved_tensors
        grad_x = grad_output * diff / diff.size(0)
        grad_centers = torch.zeros_like(centers)
        grad_centers[labels] -= grad_x
        return grad_x, grad_centers, None


OPERATIONS = [
    Operation(
        "Laplace loss, square of the scale",
        LaplaceLossFunction,
        LaplaceNLL,
        laplace_loss,
        lambda: {"mu": torch.randn(4, 3), "b": 0.5 + torch.rand(4, 3), "y": torch.randn(4, 3)},
        named="b: the derivative of 1/b is -1/b^2, and the absolute difference is divided by b only once",
        kinds=("step left out", "another operand", "factor of one term", "missing term", "factor by element"),
        named_words=(r"square|\*\* ?2|b\^2", r"\bb\b.*(\bb\b|once|divi)|divi.*\bb\b"),
        located=(r"gradient of b\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "divergence from a normal prior, incoming gradient",
        DivergenceFromPriorFunction,
        KLDivergence,
        divergence_from_prior,
        lambda: {"mu": torch.randn(5, 4), "logvar": torch.randn(5, 4)},
        named="both gradients lack the factor of the incoming gradient",
        kinds=("ignores the incoming gradient",),
        named_words=(r"incoming gradient|grad_output",),
        located=(r"\bmu\b", r"\blogvar\b"),
    ),
    Operation(
        "distances to centres, centres that occur several times",
        DistancesToCentresFunction,
        CenterLoss,
        distances_to_centres,
        lambda: {
            "x": torch.randn(8, 3),
            "centers": torch.randn(4, 3),
            "labels": torch.cat([torch.arange(4), torch.randint(0, 3, (4,))]),
        },
        named="centers: an assignment to indexed rows keeps one example of each label; it does not add them up",
        kinds=("only at some indices", "wrong sum", "another operand", "step left out"),
        named_words=(
            r"repeat|several|twice|more than once|duplicat",
            r"accumulat|index_add|index_put|overwrit|added",
        ),
        located=(r"gradient of centers\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "masked squared error, number of all elements",
            MaskedMSE.apply,
            masked_squared_error,
            lambda: {
                "pred": torch.randn(4, 6),
                "target": torch.randn(4, 6),
                "mask": torch.arange(6) < torch.randint(1, 6, (4, 1)),
            },
        ),
        named="backward divides by the number of all elements, forward by the number of those in the mask",
        kinds=("constant factor", "another operand", "step left out"),
        named_words=(r"mask", r"number|count|numel|size", r"factor"),
        located=(r"gradient of (pred|target)\b",),
    ),
]
