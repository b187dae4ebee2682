"""Normalizations: the statistics of another sequence, batch norm of images, the likelihood of scaled channels."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

EPSILON = 1e-3
OF_CHANNELS = (0, 2, 3)


def standardize(x, dims):
    """Standardized x, its mean and its deviation over dims."""
    mean = x.mean(dims, keepdim=True)
    deviation = ((x - mean).square().mean(dims, keepdim=True) + EPSILON).sqrt()
    return (x - mean) / deviation, mean, deviation


def restyled(x, style):
    _, mean, deviation = standardize(style, (2,))
    return standardize(x, (2,))[0] * deviation + mean


def restyled_backward(g, x, style, *, through_deviation=True):
    y, _, deviation_x = standardize(x, (2,))
    z, _, deviation = standardize(style, (2,))
    grad = g * deviation / deviation_x
    grad_x = grad - grad.mean(2, keepdim=True) - y * (grad * y).mean(2, keepdim=True)
    grad_style = g.sum(2, keepdim=True).expand_as(style)
    if through_deviation:
        grad_style = grad_style + (g * y).sum(2, keepdim=True) * z
    return grad_x, grad_style / style.shape[2]


def of_images(x, gain, bias):
    return standardize(x, OF_CHANNELS)[0] * gain[:, None, None] + bias[:, None, None]


def of_images_backward(g, x, gain, bias, *, count=None):
    y, _, deviation = standardize(x, OF_CHANNELS)
    count = x.numel() // x.shape[1] if count is None else count
    scaled = g * gain[:, None, None]
    of_mean, of_deviation = (t.sum(OF_CHANNELS, keepdim=True) / count for t in (scaled, scaled * y))
    return (scaled - of_mean - y * of_deviation) / deviation, (g * y).sum(OF_CHANNELS), g.sum(OF_CHANNELS)


def channel_likelihood(x, scale, bias):
    y = scale[:, None] * (x + bias[:, None])
    return (y * y).sum((1, 2)) / 2 - x.shape[2] * scale.abs().log().sum()


def channel_likelihood_backward(g, x, scale, bias, *, steps=None):
    shifted = x + bias[:, None]
    grad_y = g[:, None, None] * scale[:, None] * shifted
    grad_x = grad_y * scale[:, None]
    grad_scale = (grad_y * shifted).sum((0, 2)) - g.sum() * (x.shape[2] if steps is None else steps) / scale
    return grad_x, grad_scale, grad_x.sum((0, 2))


OPERATIONS = [
    Formulas(
        "statistics of another sequence",
        restyled,
        lambda: {"x": torch.randn(2, 3, 5), "style": torch.randn(2, 3, 4)},
        restyled_backward,
        (
            Mistake(
                "statistics of another sequence, deviation as a constant",
                lambda g, x, style: restyled_backward(g, x, style, through_deviation=False),
                named="the deviation of style is treated as a constant: only its mean has a gradient",
                kinds=("missing term",),
                named_words=(r"missing", r"constant", r"\bsqrt\b", r"\bmul\b", r"deviation"),
                located=(r"gradient of style",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "batch norm of images",
        of_images,
        lambda: {"x": torch.randn(3, 4, 2, 5), "gain": 0.5 + torch.rand(4), "bias": torch.randn(4)},
        of_images_backward,
        (
            Mistake(
                "batch norm of images, divided by the number of images",
                lambda g, x, gain, bias: of_images_backward(g, x, gain, bias, count=len(x)),
                named="the sums over images and pixels are divided by the 3 images instead of the 30 elements",
                kinds=("factor of one term", "wrong sum", "another operand"),
                named_words=(r"\b(10|30)(\.0+)?\b|\b0\.1\b|1/10", r"(sum|mean).*(too few|dim)"),
                located=(r"gradient of x",),
            ),
        ),
        options={"whole_numbers": False},
    ),
    Formulas(
        "likelihood of scaled channels",
        channel_likelihood,
        lambda: {"x": torch.randn(2, 4, 5), "scale": 0.5 + torch.rand(4), "bias": torch.randn(4)},
        channel_likelihood_backward,
        (
            Mistake(
                "likelihood of scaled channels, log-determinant of one step",
                lambda g, *inputs: channel_likelihood_backward(g, *inputs, steps=1),
                named="the term of the log-determinant lacks the factor 5, the number of steps",
                kinds=("factor of one term",),
                named_words=(r"\b0\.2\b", r"1/5", r"\b5\b.*(term|size|steps)", r"(term|size|dimension).*\b5\b"),
                located=(r"gradient of scale",),
            ),
        ),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
