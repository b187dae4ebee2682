"""Losses: Gaussian likelihood, ignored labels, distance of sorted samples, similarities without the diagonal."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

TEMPERATURE = 2.0


def gaussian(mean, var, target):
    return 0.5 * (var.log() + (target - mean) ** 2 / var).mean()


def gaussian_backward(g, mean, var, target, *, power=2):
    error = mean - target
    share = g / mean.numel()
    grad_mean = share * error / var
    return grad_mean, 0.5 * share * (1 / var - error**2 / var**power), -grad_mean


def labelled(z, labels):
    return F.cross_entropy(z, labels, ignore_index=0)


def labelled_backward(g, z, labels, *, masked=True, total=None):
    kept = labels != 0
    grad = z.softmax(1) - F.one_hot(labels, z.shape[1]).to(z.dtype)
    grad = grad * kept[:, None] if masked else grad
    return g * grad / (kept.sum() if total is None else total), None


def sorted_distance(x, y):
    return ((x.sort(1).values - y.sort(1).values) ** 2).sum(1)


def sorted_distance_backward(g, x, y, *, inverse=True, averaged=False):
    (sorted_x, order_x), (sorted_y, order_y) = x.sort(1), y.sort(1)
    step = 2 * (g.mean() if averaged else g[:, None]) * (sorted_x - sorted_y)
    grad_x = torch.zeros_like(x).scatter(1, order_x, step) if inverse else step.gather(1, order_x)
    return grad_x, -torch.zeros_like(y).scatter(1, order_y, step)


def similarities(x, *, masked=True):
    scores = x @ x.mT / TEMPERATURE
    return scores.masked_fill(torch.eye(len(x), dtype=torch.bool), -math.inf) if masked else scores


def similar(x, partner):
    return F.cross_entropy(similarities(x), partner)


def similar_backward(g, x, partner, *, masked=True):
    grad = similarities(x, masked=masked).softmax(1) - F.one_hot(partner, len(x)).to(x.dtype)
    grad = g * grad / (len(x) * TEMPERATURE)
    return (grad + grad.mT) @ x, None


OPERATIONS = [
    Formulas(
        "Gaussian likelihood",
        gaussian,
        lambda: {"mean": torch.randn(4, 3), "var": 0.3 + torch.rand(4, 3), "target": torch.randn(4, 3)},
        gaussian_backward,
        (
            Mistake(
                "Gaussian likelihood, variance not squared",
                lambda g, *inputs: gaussian_backward(g, *inputs, power=1),
                named="the squared error is divided by var instead of var^2 in the gradient of var",
                kinds=("another operand", "factor of one term", "step left out"),
                named_words=(r"\bdiv\b", r"var\b.*instead|instead of.*var", r"square|\bpow\b"),
                located=(r"gradient of var", r"div|square|pow|var\b.*instead"),
            ),
            Mistake(
                "Gaussian likelihood, incoming gradient",
                lambda g, *inputs: gaussian_backward(torch.ones_like(g), *inputs),
                named="the incoming gradient is ignored",
                kinds=("ignores the incoming gradient", "not linear in the incoming gradient"),
                named_words=(r"incoming gradient",),
                located=(r"gradient of (mean|var|target)|all gradients|every gradient|backward",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "ignored labels",
        labelled,
        lambda: {"z": torch.randn(7, 4), "labels": torch.tensor([1, 0, 2, 3, 0, 2, 1])},
        labelled_backward,
        (
            Mistake(
                "ignored labels, mean over all rows",
                lambda g, z, labels: labelled_backward(g, z, labels, total=len(z)),
                named="divided by the number of rows, 7, instead of the number of labels that count, 5",
                kinds=("constant factor",),
                named_words=(r"0\.714", r"5/7", r"number of"),
                located=(r"gradient of z",),
            ),
            Mistake(
                "ignored labels, rows not masked",
                lambda g, z, labels: labelled_backward(g, z, labels, masked=False),
                named="rows with the ignored label 0 get a gradient",
                kinds=("only for some values", "step left out", "only at some indices"),
                named_words=(r"labels? (=|is|==) 0", r"ignore", r"rows? (\[)?1\b.*4|rows 1 and 4"),
                located=(r"gradient of z", r"label|rows? (\[)?1|\[[14], "),
            ),
        ),
    ),
    Formulas(
        "distance of sorted samples",
        sorted_distance,
        lambda: {"x": torch.randn(3, 6), "y": torch.randn(3, 6)},
        sorted_distance_backward,
        (
            Mistake(
                "distance of sorted samples, order",
                lambda g, x, y: sorted_distance_backward(g, x, y, inverse=False),
                named="the order of the sort is applied again, instead of its inverse",
                kinds=("permuted", "not transposed"),
                named_words=(r"permut", r"order", r"transpos", r"other places", r"derivative of forward"),
                located=(r"gradient of x",),
            ),
            Mistake(
                "distance of sorted samples, mean of the incoming gradient",
                lambda g, x, y: sorted_distance_backward(g, x, y, averaged=True),
                named="every row gets the mean of the incoming gradient instead of its own element",
                kinds=("wrong sum", "summed over the batch", "missing term", "another operand"),
                named_words=(r"\bmean\b|average", r"between|other (examples|rows)"),
                located=(r"gradient of x", r"\by\b", r"row|example|batch|incoming|dimension 0"),
            ),
        ),
    ),
    Formulas(
        "similar pairs",
        similar,
        lambda: {"x": torch.randn(5, 3), "partner": torch.tensor([1, 0, 3, 2, 0])},
        similar_backward,
        (
            Mistake(
                "similar pairs, diagonal not masked",
                lambda g, x, partner: similar_backward(g, x, partner, masked=False),
                named="the softmax in backward includes the similarity of each row with itself: a mask is missing",
                kinds=("step left out",),
                named_words=(r"mask", r"diagonal|i = j"),
                located=(r"gradient of x",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
