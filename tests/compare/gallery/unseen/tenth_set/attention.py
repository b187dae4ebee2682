"""Attention: two blocks merged, slots, positions as rotations of neighbouring columns, weights that decay."""

from __future__ import annotations

import torch

from tests.compare.gallery.unseen.operation import Formulas, Mistake, wrong_and_right_formulas

DECAY = 0.8


def merge_weights(log_a, log_b):
    total = torch.logaddexp(log_a, log_b)
    return (log_a - total).exp()[:, None], (log_b - total).exp()[:, None]


def merged(a, log_a, b, log_b):
    weight_a, weight_b = merge_weights(log_a, log_b)
    return weight_a * a + weight_b * b


def merged_backward(g, a, log_a, b, log_b, *, normalized=True):
    weight_a, weight_b = merge_weights(log_a, log_b)
    y = weight_a * a + weight_b * b if normalized else 0
    return g * weight_a, (g * weight_a * (a - y)).sum(1), g * weight_b, (g * weight_b * (b - y)).sum(1)


def slots(q, k, v):
    p = (k @ q.mT).softmax(1)
    return (p / p.sum(0, keepdim=True)).mT @ v


def slots_backward(g, q, k, v, *, dim=1):
    p = (k @ q.mT).softmax(1)
    total = p.sum(0, keepdim=True)
    weights = p / total
    along = v @ g.mT
    grad_p = (along - (along * weights).sum(0, keepdim=True)) / total
    grad = p * (grad_p - (grad_p * p).sum(dim, keepdim=True))
    return grad.mT @ k, grad @ q, weights @ g


def angles(x, frequency):
    return torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequency


def rotate(first, second, angle):
    return first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()


def rotated(x, frequency):
    return torch.stack(rotate(x[..., 0::2], x[..., 1::2], angles(x, frequency)), -1).flatten(-2)


def rotated_backward(g, x, frequency, *, halves=False):
    angle = angles(x, frequency)
    first, second = rotate(x[..., 0::2], x[..., 1::2], angle)
    grad_angle = g[..., 1::2] * first - g[..., 0::2] * second
    grad_frequency = (grad_angle * torch.arange(x.shape[1], dtype=x.dtype)[:, None]).sum((0, 1))
    if halves:
        return torch.cat(rotate(*g.chunk(2, -1), -angle), -1), grad_frequency
    return torch.stack(rotate(g[..., 0::2], g[..., 1::2], -angle), -1).flatten(-2), grad_frequency


def decays(q):
    steps = torch.arange(len(q), dtype=q.dtype)
    return (DECAY ** (steps[:, None] - steps)).tril() / q.shape[1] ** 0.5


def retention(q, k, v):
    return (q @ k.mT * decays(q)) @ v


def retention_backward(g, q, k, v, *, later=False, key_scale=1.0):
    factors = decays(q)
    along = g @ v.mT * factors
    return along @ k, along.mT @ q * key_scale, (q @ k.mT).mT * (factors if later else factors.mT) @ g


OPERATIONS = [
    Formulas(
        "merge of two blocks",
        merged,
        lambda: {"a": torch.randn(5, 3), "log_a": torch.randn(5), "b": torch.randn(5, 3), "log_b": torch.randn(5)},
        merged_backward,
        (
            Mistake(
                "merge of two blocks, weights not normalized",
                lambda g, *inputs: merged_backward(g, *inputs, normalized=False),
                named="the sum of the two exponentials is treated as a constant in the gradients of the logarithms",
                kinds=("missing term", "step left out"),
                named_words=(r"missing", r"constant", r"logaddexp", r"detach|no effect"),
                located=(r"gradient of log_a|\blog_a and log_b\b", r"\blog_b\b"),
            ),
        ),
    ),
    Formulas(
        "slots",
        slots,
        lambda: {"q": torch.randn(3, 4), "k": torch.randn(6, 4), "v": torch.randn(6, 5)},
        slots_backward,
        (
            Mistake(
                "slots, sum over the keys",
                lambda g, *inputs: slots_backward(g, *inputs, dim=0),
                named="the sum in the derivative of the softmax runs over the keys instead of the slots",
                kinds=("wrong sum", "another operand", "summed over the batch"),
                named_words=(
                    r"\bsum(med|s)?\b.*(over|dim|across)",
                    r"dim(ension)? ?[01]\b",
                    r"softmax",
                    r"between (rows|examples)",
                ),
                located=(r"gradient of q|\bq and k\b", r"\bk\b"),
            ),
        ),
    ),
    Formulas(
        "rotation of neighbouring columns",
        rotated,
        lambda: {"x": torch.randn(2, 5, 6), "frequency": 0.3 + torch.rand(3)},
        rotated_backward,
        (
            Mistake(
                "rotation of neighbouring columns, halves in backward",
                lambda g, x, frequency: rotated_backward(g, x, frequency, halves=True),
                named="forward rotates columns 2 i and 2 i + 1, backward rotates columns i and i + 3",
                kinds=("permuted", "another operand", "not transposed", "missing term"),
                named_words=(r"place|position|indices|index", r"permut|order", r"interleav|halves|\bpairs?\b"),
                located=(r"gradient of x",),
            ),
        ),
    ),
    Formulas(
        "retention",
        retention,
        lambda: {"q": torch.randn(5, 3), "k": torch.randn(5, 3), "v": torch.randn(5, 4)},
        retention_backward,
        (
            Mistake(
                "retention, decay in the other direction",
                lambda g, *inputs: retention_backward(g, *inputs, later=True),
                named="the gradient of v multiplies by the matrix of decays instead of its transpose",
                kinds=("transposed", "not transposed", "another operand", "missing term"),
                named_words=(
                    r"transpos",
                    r"exchang",
                    r"decay|\btril\b",
                    r"other (steps|places)|(earlier|later) (steps|rows)",
                ),
                located=(r"gradient of v",),
            ),
            Mistake(
                "retention, scale of the keys",
                lambda g, *inputs: retention_backward(g, *inputs, key_scale=3**0.5),
                named="the factor 1/sqrt(3) is missing in the gradient of k",
                kinds=("constant factor",),
                named_words=(r"1\.73", r"0\.577", r"sqrt"),
                located=(r"gradient of k",),
            ),
        ),
    ),
]

WRONG, RIGHT = wrong_and_right_formulas(OPERATIONS)
