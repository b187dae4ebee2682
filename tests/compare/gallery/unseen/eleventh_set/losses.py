"""Losses: logistic, counts with many zeros, censored values, ordered classes, a linear layer in chunks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

SIGNS = torch.tensor([[1, -1, -1, 1, 1, -1]]).repeat(5, 1)
COUNTS = torch.tensor([[0, 2, 1, 0, 3], [1, 0, 0, 4, 1], [0, 1, 2, 1, 0], [3, 0, 1, 0, 2]])
CENSORED = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
CLASSES = torch.tensor([1, 3, 0, 2, 1, 2, 3])
FAR = 50.0
CHUNK = 4
TARGETS = torch.tensor([1, 0, 3, 2, 2, 1, 0, 3, 1, 2])


def logistic(score, label):
    return torch.logaddexp(-label * score, torch.zeros_like(score))


def logistic_backward(g, score, label, *, signed=True):
    grad = -g * torch.sigmoid(-label * score)
    return grad * label if signed else grad, None


def exponential_over_one_plus(g, score, label):
    e = (-label * score).exp()
    return -g * label * e / (1 + e), None


def with_many_zeros(log_rate, logit, count):
    rate = log_rate.exp()
    of_zero = torch.logaddexp(F.logsigmoid(logit), F.logsigmoid(-logit) - rate)
    return -torch.where(count == 0, of_zero, F.logsigmoid(-logit) + count * log_rate - rate)


def with_many_zeros_backward(g, log_rate, logit, count, *, zeros=True):
    rate = log_rate.exp()
    share = torch.sigmoid(-logit - rate)  # of the Poisson distribution in a count of 0
    is_zero = (count == 0) & zeros
    grad_log_rate = g * torch.where(is_zero, share * rate, rate - count)
    return grad_log_rate, (g * torch.where(is_zero, share - torch.sigmoid(-logit), logit.sigmoid())).sum(0), None


def censored(value, mean, log_sd, is_censored):
    u = (value - mean) / log_sd.exp()
    return torch.where(is_censored == 1, -(torch.erfc(u / math.sqrt(2)) / 2).log(), u * u / 2 + log_sd)


def censored_backward(g, value, mean, log_sd, is_censored, *, tail=1):
    sd = log_sd.exp()
    u = (value - mean) / sd
    hazard = (-u * u / 2).exp() * math.sqrt(2 / math.pi) / torch.erfc(tail * u / math.sqrt(2))
    grad_u = g * torch.where(is_censored == 1, hazard, u)
    return grad_u / sd, -grad_u / sd, (g * (is_censored == 0) - grad_u * u).sum(0), None


def bounds(cuts):
    far = cuts.new_full((1,), FAR)
    return torch.cat([-far, cuts, far])


def ordered_classes(score, cuts, label):
    edges = bounds(cuts)
    return -((edges[label + 1] - score).sigmoid() - (edges[label] - score).sigmoid()).log()


def ordered_classes_backward(g, score, cuts, label, *, lower_index=0):
    edges = bounds(cuts)
    upper, lower = (edges[label + 1] - score).sigmoid(), (edges[label] - score).sigmoid()
    grad_upper = -g * upper * (1 - upper) / (upper - lower)
    grad_lower = g * lower * (1 - lower) / (upper - lower)
    grad = torch.zeros_like(edges).index_add(0, label + 1, grad_upper).index_add(0, label + lower_index, grad_lower)
    return -grad_upper - grad_lower, grad[1:-1], None


def classified(x, weight, target):
    return F.cross_entropy(x @ weight.mT, target, reduction="none")


def in_chunks(g, x, weight, target, *, chunks=math.ceil):
    grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight)
    for n in range(chunks(len(x) / CHUNK)):
        rows = slice(n * CHUNK, (n + 1) * CHUNK)
        one_hot = F.one_hot(target[rows], len(weight)).to(x.dtype)
        grad_logits = g[rows, None] * ((x[rows] @ weight.mT).softmax(1) - one_hot)
        grad_x[rows] = grad_logits @ weight
        grad_weight += grad_logits.mT @ x[rows]
    return grad_x, grad_weight, None


OPERATIONS = [
    Formulas(
        "logistic loss",
        logistic,
        lambda: {"score": 12 * torch.randn(5, 6), "label": SIGNS},
        logistic_backward,
        (
            Mistake(
                "logistic loss, overflow of the exponential",
                exponential_over_one_plus,
                named="exp(-m) / (1 + exp(-m)) is inf / inf, NaN, in float16 for large scores with the wrong sign",
                kinds=("not finite", "only in one dtype", "only for some values"),
                named_words=(r"\bNaN\b|infinit|not finite", r"overflow"),
                located=(r"gradient of score", r"float16|\bhalf\b"),
            ),
            Mistake(
                "logistic loss, label left out",
                lambda g, score, label: logistic_backward(g, score, label, signed=False),
                named="the factor label is missing: the wrong sign where the label is -1",
                kinds=("only for some values", "only at some indices", "another operand", "step left out"),
                named_words=(r"\blabel\b", r"\bsign\b", r"[-−]1\b"),
                located=(r"gradient of score",),
            ),
        ),
    ),
    Formulas(
        "counts with many zeros",
        with_many_zeros,
        lambda: {"log_rate": 0.7 * torch.randn(4, 5), "logit": torch.randn(5), "count": COUNTS},
        with_many_zeros_backward,
        (
            Mistake(
                "counts with many zeros, zeros as other counts",
                lambda g, *inputs: with_many_zeros_backward(g, *inputs, zeros=False),
                named="a count of 0 has the gradient of the other counts, that of the Poisson distribution alone",
                kinds=("only for some values", "only at some indices", "another operand", "step left out"),
                named_words=(r"\bcount\b.*\b0\b", r"\bwhere\b.*(branch|argument|operand)", r"logaddexp"),
                located=(r"gradient of log_rate|\blog_rate and logit\b", r"\blogit\b"),
            ),
        ),
    ),
    Formulas(
        "censored values",
        censored,
        lambda: {
            "value": 0.7 * torch.randn(4, 5),
            "mean": 0.7 * torch.randn(4, 5),
            "log_sd": 0.2 * torch.randn(5),
            "is_censored": CENSORED,
        },
        censored_backward,
        (
            Mistake(
                "censored values, other tail",
                lambda g, *inputs: censored_backward(g, *inputs, tail=-1),
                named="the density of a censored value is divided by the probability of the other tail",
                kinds=("only for some values", "another operand", "step left out", "only at some indices"),
                named_words=(r"\berfc\b", r"\btail\b", r"\bis_censored\b"),
                located=(r"\bvalue\b", r"\bmean\b", r"\blog_sd\b"),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "ordered classes",
        ordered_classes,
        lambda: {
            "score": 0.7 * torch.randn(7),
            "cuts": torch.tensor([-1.3, 0.1, 1.4]) + 0.3 * torch.rand(3),
            "label": CLASSES,
        },
        ordered_classes_backward,
        (
            Mistake(
                "ordered classes, lower cut",
                lambda g, *inputs: ordered_classes_backward(g, *inputs, lower_index=1),
                named="the part of the lower cut is added to the gradient of the upper cut: an index off by one",
                kinds=("shifted", "permuted", "another operand", "missing term", "not transposed"),
                named_words=(
                    r"shift|off by one|one too (large|small)",
                    r"\bplaces?\b|\bpositions?\b",
                    r"\bind(ex|ices)\b.*(instead|order|rotat|one too|other)|(other|wrong|instead).*\bind(ex|ices)\b",
                ),
                located=(r"gradient of cuts",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "linear layer and cross-entropy in chunks",
        classified,
        lambda: {"x": torch.randn(10, 3), "weight": torch.randn(4, 3), "target": TARGETS},
        in_chunks,
        (
            Mistake(
                "linear layer and cross-entropy in chunks, last chunk",
                lambda g, *inputs: in_chunks(g, *inputs, chunks=math.floor),
                named="the last, incomplete chunk is left out: rows 8 and 9 have no gradient and add none to weight",
                kinds=(
                    "only at some indices",
                    "missing term",
                    "zero",
                    "few elements",
                    "only at borders",
                    "wrong sum",
                ),
                named_words=(
                    r"missing|no effect|left out",
                    r"\b(is|are) 0\b|instead of 0|\bzero",
                    r"too few",
                    r"\b(rows?|index|examples?)\b.*\b(7|8|9|last)\b",
                ),
                located=(r"gradient of x|\bx and weight\b", r"\bweight\b", r"\b(7|8|9|last)\b"),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
