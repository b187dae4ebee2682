"""Losses: powers of probabilities, logarithmic depth, class centres, clipped policy ratio, angles around a mean."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

POWER = 0.7
VARIANCE_SHARE = 0.6
CLIP = 0.2
LABELS = torch.tensor([2, 0, 3, 1, 2, 2])


def power_loss(logits, labels):
    return (1 - logits.softmax(1).gather(1, labels[:, None])[:, 0] ** POWER) / POWER


def power_loss_backward(g, logits, labels, *, powered=True):
    p = logits.softmax(1)
    of_label = p.gather(1, labels[:, None])
    one_hot = torch.zeros_like(p).scatter(1, labels[:, None], 1)
    return g[:, None] * (of_label**POWER if powered else 1) * (p - one_hot), None


def depth(a, b):
    d = a.log() - b.log()
    return (d * d).mean(1) - VARIANCE_SHARE * d.mean(1) ** 2


def depth_backward(g, a, b, *, factor=2, sign=-1):
    d = a.log() - b.log()
    grad = g[:, None] / a.shape[1] * (2 * d - factor * VARIANCE_SHARE * d.mean(1, keepdim=True))
    return grad / a, sign * grad / b


def centre_distances(x, centres, labels):
    return ((x - centres[labels]) ** 2).sum(1) / 2


def centre_distances_backward(g, x, centres, labels, *, divided=False):
    grad = g[:, None] * (x - centres[labels])
    grad_centres = torch.zeros_like(centres).index_add(0, labels, -grad)
    if divided:
        grad_centres = grad_centres / (1 + labels.bincount(minlength=len(centres)).to(x.dtype))[:, None]
    return grad, grad_centres, None


def clipped_policy(log_p, old_log_p, advantage):
    ratio = (log_p - old_log_p).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)


def clipped_policy_backward(g, log_p, old_log_p, advantage, *, smaller=True):
    ratio = (log_p - old_log_p).exp()
    bounded = ratio.clamp(1 - CLIP, 1 + CLIP)
    share = 0.5 + 0.5 * (bounded * advantage - ratio * advantage).sign()  # of the unclipped product; 1/2 if equal
    inside = (ratio > 1 - CLIP) & (ratio < 1 + CLIP)
    grad = -g * ratio * advantage * (share + (1 - share) * inside if smaller else inside)
    return grad, -grad, -g * (share * ratio + (1 - share) * bounded)


def around_mean(x, mean, concentration):
    return concentration * (x - mean).cos() - torch.special.i0(concentration).log()


def around_mean_backward(g, x, mean, concentration, *, order_1=torch.special.i1):
    grad = g * concentration * (x - mean).sin()
    ratio = order_1(concentration) / torch.special.i0(concentration)
    return -grad, grad.sum(0), (g * ((x - mean).cos() - ratio)).sum(0)


OPERATIONS = [
    Formulas(
        "power of probabilities",
        power_loss,
        lambda: {"logits": torch.randn(6, 4), "labels": LABELS},
        power_loss_backward,
        (
            Mistake(
                "power of probabilities, formula of cross-entropy",
                lambda g, logits, labels: power_loss_backward(g, logits, labels, powered=False),
                named="the gradient is that of cross-entropy: it lacks the label's probability to the power of 0.7",
                kinds=("factor by element", "step left out", "another operand"),
                named_words=(
                    r"factor of its own",
                    r"\bpow",
                    r"cross.entropy|\blog",
                    r"another derivative",
                    r"\b0\.7\b",
                ),
                located=(r"gradient of logits",),
            ),
        ),
    ),
    Formulas(
        "logarithmic depth",
        depth,
        lambda: {"a": 0.4 + torch.rand(4, 6), "b": 0.4 + torch.rand(4, 6)},
        depth_backward,
        (
            Mistake(
                "logarithmic depth, factor 2 of the mean",
                lambda g, a, b: depth_backward(g, a, b, factor=1),
                named="the term of the squared mean lacks the factor 2",
                kinds=("factor of one term",),
                named_words=(r"\b0\.5\b", r"1/2|\bhalf\b", r"\b2\b.*\bterm|\bterm\b.*\b2\b"),
                located=(r"gradient of a|\ba and b\b", r"\bb\b"),
            ),
            Mistake(
                "logarithmic depth, sign of the second",
                lambda g, a, b: depth_backward(g, a, b, sign=1),
                named="the gradient of b has the wrong sign",
                kinds=("constant factor",),
                named_words=(r"\bsign\b", r"[-−]1\b", r"negat"),
                located=(r"gradient of b",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "distances from class centres",
        centre_distances,
        lambda: {"x": torch.randn(6, 3), "centres": torch.randn(4, 3), "labels": LABELS},
        centre_distances_backward,
        (
            Mistake(
                "distances from class centres, divided by the count",
                lambda g, *inputs: centre_distances_backward(g, *inputs, divided=True),
                named="each row of the gradient of centres is divided by 1 plus the number of its examples",
                kinds=("factor by element", "only at some indices", "constant factor"),
                named_words=(r"factor", r"1/[24]\b", r"\b0\.(5|25)\b", r"\btimes\b", r"divided|\bcount"),
                located=(r"gradient of centres",),
            ),
        ),
    ),
    Formulas(
        "clipped policy ratio",
        clipped_policy,
        lambda: {
            "log_p": 0.4 * torch.randn(4, 7),
            "old_log_p": 0.4 * torch.randn(4, 7),
            "advantage": torch.randn(4, 7),
        },
        clipped_policy_backward,
        (
            Mistake(
                "clipped policy ratio, minimum left out",
                lambda g, *inputs: clipped_policy_backward(g, *inputs, smaller=False),
                named="the gradient is 0 wherever the ratio is outside of the bounds, also where the unclipped "
                "product is the smaller one",
                kinds=("only for some values", "step left out", "zero", "missing term"),
                named_words=(r"minimum", r"\bclamp\b", r"\badvantage\b", r"\bratio\b", r"missing|\b(is|are) 0\b"),
                located=(r"gradient of log_p|\blog_p and old_log_p\b", r"\bold_log_p\b"),
            ),
        ),
        options={"kinks": True},
    ),
    Formulas(
        "angles around a mean",
        around_mean,
        lambda: {"x": 2 * torch.randn(5, 3), "mean": torch.randn(3), "concentration": 0.5 + 2 * torch.rand(3)},
        around_mean_backward,
        (
            Mistake(
                "angles around a mean, scaled Bessel function",
                lambda g, *inputs: around_mean_backward(g, *inputs, order_1=torch.special.i1e),
                named="the gradient of concentration divides the exponentially scaled i1e by i0, instead of i1 by i0",
                kinds=("another operand", "factor of one term", "missing term", "factor by element"),
                named_words=(
                    r"\bi[01]e?\b",
                    r"bessel",
                    r"missing",
                    r"another derivative",
                    r"one term|factor of its own",
                    r"\blog\b",
                ),
                located=(r"gradient of concentration",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
