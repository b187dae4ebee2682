"""Losses: angular margin, logarithmic depth, class centres, clipped policy ratio, angles around a mean."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

MARGIN, SCALE = 0.5, 4.0
VARIANCE_SHARE = 0.6
CLIP = 0.2
LABELS = torch.tensor([2, 0, 3, 1, 2, 2])


def is_label(cosine, labels):
    return labels[:, None] == torch.arange(cosine.shape[1])


def margins(cosine, labels):
    return SCALE * torch.where(is_label(cosine, labels), (cosine.acos() + MARGIN).cos(), cosine)


def margins_backward(g, cosine, labels):
    angle = cosine.acos()
    slope = (angle + MARGIN).sin() / angle.sin()
    return SCALE * g * torch.where(is_label(cosine, labels), slope, torch.ones_like(slope)), None


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
    inside = ratio == bounded
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
        "angular margin",
        margins,
        lambda: {"cosine": 1.8 * torch.rand(6, 4) - 0.9, "labels": LABELS},
        margins_backward,
        (
            Mistake(
                "angular margin, as if it were a constant",
                lambda g, cosine, labels: (SCALE * g, None),
                named="the derivative at the label is 4, as without the margin, not 4 sin(angle + 0.5) / sin(angle)",
                kinds=("only at some indices", "only for some values", "step left out", "factor by element"),
                named_words=(r"\blabels?\b", r"\badd\b", r"\bacos\b|\bcos\b", r"\bwhere\b"),
                located=(r"gradient of cosine", r"\blabels?\b|add|cos\b|where"),
            ),
        ),
        options={"whole_numbers": False},
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
