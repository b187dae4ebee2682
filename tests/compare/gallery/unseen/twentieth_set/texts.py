"""Texts and weights: copied words, levels of weights, complements of exponentials."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

LOWEST, HIGHEST, ZERO_POINT = 0, 15, 6


def copied_words(vocabulary, attention, gate, words):
    copied = torch.zeros_like(vocabulary).scatter_add(1, words, attention)
    return gate * vocabulary + (1 - gate) * copied


class CopiedWordsFunction(Function):
    @staticmethod
    def forward(ctx, vocabulary, attention, gate, words):
        ctx.save_for_backward(vocabulary, attention, gate, words)
        return copied_words(vocabulary, attention, gate, words)

    @staticmethod
    def backward(ctx, g):
        vocabulary, attention, gate, words = ctx.saved_tensors
        copied = torch.zeros_like(vocabulary).scatter_add(1, words, attention)
        grad_gate = (g * (vocabulary - copied)).sum(1, keepdim=True)
        return g * gate, (1 - gate) * g.gather(1, words), grad_gate, None


class PointerGenerator(Function):
    """Final distribution of a pointer-generator (See et al. 2017): p_gen P_vocab + (1 - p_gen) copies."""

    @staticmethod
    def forward(ctx, p_vocab, attn, p_gen, src_ids):
        ctx.save_for_backward(p_vocab, p_gen, src_ids)
        final = p_gen * p_vocab
        return final.scatter_add(1, src_ids, attn * (1 - p_gen))

    @staticmethod
    def backward(ctx, grad_final):
        p_vocab, p_gen, src_ids = ctx.saved_tensors
        at_source = grad_final.gather(1, src_ids)
        grad_vocab = grad_final * p_gen
        grad_attn = at_source * (1 - p_gen)
        grad_gen = torch.sum(grad_final * p_vocab, dim=1, keepdim=True)
        return grad_vocab, grad_attn, grad_gen, None


def levels_of_weights(x, scale):
    """Straight-through: rounding has slope 1, and the bounds stop gradients."""
    level = x / scale[:, None]
    rounded = level.round() + ZERO_POINT
    inside = (rounded >= LOWEST) & (rounded <= HIGHEST)
    bounded = rounded.clamp(LOWEST, HIGHEST).detach() - ZERO_POINT
    return torch.where(inside, level + (bounded - level).detach(), bounded) * scale[:, None]


class LevelsOfWeightsFunction(Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return levels_of_weights(x, scale)

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        level = x / scale[:, None]
        rounded = level.round() + ZERO_POINT
        inside = (rounded >= LOWEST) & (rounded <= HIGHEST)
        to_scale = rounded.clamp(LOWEST, HIGHEST) - ZERO_POINT - level * inside
        return g * inside, (g * to_scale).sum(1)


class FakeQuantPerChannel(Function):
    """Affine 4-bit fake quantization with a learned scale for each row."""

    @staticmethod
    def forward(ctx, w, scale):
        s = scale.unsqueeze(1)
        q = torch.clamp(torch.round(w / s) + ZERO_POINT, LOWEST, HIGHEST)
        ctx.save_for_backward(w, s, q)
        return (q - ZERO_POINT) * s

    @staticmethod
    def backward(ctx, grad_output):
        w, s, q = ctx.saved_tensors
        in_range = ((q >= LOWEST) & (q <= HIGHEST)).type_as(w)
        grad_w = grad_output * in_range
        grad_s = grad_output * (q - ZERO_POINT - in_range * w / s)
        return grad_w, grad_s.sum(dim=1)


class Log1mExp(Function):
    """log(1 - exp(-x)) for x > 0, in the two branches of Maechler (2012)."""

    @staticmethod
    def forward(ctx, x):
        small = torch.log(-torch.expm1(-x))
        large = torch.log1p(-torch.exp(-x))
        y = torch.where(x < 0.6931, small, large)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * torch.exp(-y)


def log_of_complement(x):
    return torch.log(-torch.expm1(-x))


def words_to_copy():
    return {
        "vocabulary": torch.softmax(torch.randn(3, 7), 1),
        "attention": torch.softmax(torch.randn(3, 4), 1),
        "gate": torch.rand(3, 1),
        "words": torch.randint(0, 7, (3, 4)),
    }


def weights_between_ties():
    scale = 0.2 + 0.1 * torch.rand(3)
    level = torch.randint(-10, 14, (3, 6)) + 0.5 * (torch.rand(3, 6) - 0.5)
    return {"x": level * scale[:, None], "scale": scale}


OPERATIONS = [
    Operation(
        "copied words, gate of the copies",
        CopiedWordsFunction,
        PointerGenerator,
        copied_words,
        words_to_copy,
        named="the gate's gradient lacks the term of the copied words",
        kinds=("missing term",),
        named_words=(r"missing term|term .*missing|part .*missing", r"\battn\b|attention", r"1 - p_gen"),
        located=(r"gradient of (gate|p_gen)\b",),
    ),
    Operation(
        "levels of weights, bounds of clamped levels",
        LevelsOfWeightsFunction,
        FakeQuantPerChannel,
        levels_of_weights,
        weights_between_ties,
        named="the mask is made of levels that are clamped already, so nothing is ever outside the bounds",
        kinds=("step left out", "only for some values", "only at bounds"),
        named_words=(r"clamp", r"in_range|\bmask", r"bound|outside"),
        located=(r"gradient of (x|w)\b", r"gradient of (scale|s)\b"),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "logarithm of a complement, exponential in the numerator",
            Log1mExp.apply,
            log_of_complement,
            lambda: {"x": 0.1 + 2 * torch.rand(3, 5)},
            whole_numbers=False,
        ),
        named="the factor exp(-x) of the inner derivative is missing",
        kinds=("factor by element", "step left out", "missing term"),
        named_words=(r"exp\(-x\)", r"\bexpm?1?\b"),
        located=(r"gradient of x\b",),
    ),
]
