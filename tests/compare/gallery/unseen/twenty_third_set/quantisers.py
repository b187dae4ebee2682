"""Quantisers and relaxations: a clipped range with a learned bound, and soft samples of bits."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

LEVELS = 15
ORDER = torch.tensor([[7, 2, 10, 5], [0, 8, 3, 11], [1, 6, 9, 4]])
NOISE = torch.logit(torch.linspace(0.05, 0.95, 12))[ORDER]


def clipped_levels(x, bound):
    y = torch.where(x <= 0, torch.zeros_like(x), torch.where(x >= bound, bound.expand_as(x), x))
    levels = torch.round(y / bound * LEVELS) * bound / LEVELS
    return levels.detach() + (y - y.detach())


class ClippedLevelsFunction(Function):
    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x, bound)
        y = torch.minimum(x.clamp(min=0), bound)
        return torch.round(y / bound * LEVELS) * bound / LEVELS

    @staticmethod
    def backward(ctx, g):
        x, bound = ctx.saved_tensors
        above = x >= bound
        return g * ((x > 0) & ~above), (g * above).sum()


class PACT(Function):
    """PACT: clip to [0, alpha], 4 bits, straight-through gradient; alpha is learned."""

    @staticmethod
    def forward(ctx, x, alpha):
        ctx.save_for_backward(x, alpha)
        y = torch.min(torch.relu(x), alpha)
        return torch.round(y / alpha * LEVELS) * alpha / LEVELS

    @staticmethod
    def backward(ctx, grad_output):
        x, alpha = ctx.saved_tensors
        grad_input = grad_output
        grad_input[x <= 0] = 0
        grad_input[x >= alpha] = 0
        grad_alpha = grad_output[x >= alpha].sum()
        return grad_input, grad_alpha


def soft_bits(logits, tau):
    return torch.sigmoid((logits + NOISE.to(logits)) / tau)


class SoftBitsFunction(Function):
    @staticmethod
    def forward(ctx, logits, tau, noise):
        argument = (logits + noise) / tau
        y = torch.sigmoid(argument)
        ctx.save_for_backward(argument, tau, y)
        return y

    @staticmethod
    def backward(ctx, g):
        argument, tau, y = ctx.saved_tensors
        to_logits = g * y * (1 - y) / tau
        return to_logits, -(to_logits * argument).sum(), None


class BinaryConcrete(Function):
    """Relaxed Bernoulli sample: sigmoid((logits + logistic noise) / temperature)."""

    @staticmethod
    def forward(ctx, logits, temperature, noise):
        sample = torch.sigmoid((logits + noise) / temperature)
        ctx.save_for_backward(logits, temperature, sample)
        return sample

    @staticmethod
    def backward(ctx, grad_sample):
        logits, temperature, sample = ctx.saved_tensors
        grad_pre = grad_sample * sample * (1 - sample)
        grad_logits = grad_pre / temperature
        grad_temperature = (-grad_pre * logits / temperature**2).sum()
        return grad_logits, grad_temperature, None


OPERATIONS = [
    Operation(
        "clipped levels, incoming gradient set to zero",
        ClippedLevelsFunction,
        PACT,
        clipped_levels,
        lambda: {"x": 1.5 * torch.randn(4, 6), "bound": 1 + torch.rand(())},
        named="grad_input is grad_output, and is set to zero in place, so bound's sum adds zeros; a clone is missing",
        kinds=("changes the incoming gradient", "zero", "none", "missing term", "raises", "only in one layout"),
        named_words=(r"changes|in.?place|overwrit|written", r"clone", r"incoming gradient", r"\bzero"),
        located=(r"gradient of (bound|alpha)\b|incoming gradient",),
        options={"whole_numbers": False, "kinks": True},
    ),
    Operation(
        "soft bits, noise in the gradient of the temperature",
        SoftBitsFunction,
        BinaryConcrete,
        soft_bits,
        lambda: {"logits": torch.randn(3, 4), "tau": 0.5 + torch.rand(())},
        named="tau: its gradient has the logits as a factor, without the noise that is divided by tau too",
        kinds=("missing term", "another operand", "step left out"),
        named_words=(r"noise", r"\badd\b", r"\blogits \+"),
        located=(r"gradient of (tau|temperature)\b",),
        call=lambda apply, logits, tau: apply(logits, tau, NOISE.to(logits)),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
