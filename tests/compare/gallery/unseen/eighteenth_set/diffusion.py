"""Diffusion: guidance with a size to keep, a step of a sampler."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

GUIDANCE, SHARE = 3.0, 0.7
NOW, NEXT = 0.6, 0.8


def guided(free, conditioned):
    total = free + GUIDANCE * (conditioned - free)
    scaled = total * conditioned.std(1, keepdim=True) / total.std(1, keepdim=True)
    return SHARE * scaled + (1 - SHARE) * total


class GuidedFunction(Function):
    @staticmethod
    def forward(ctx, free, conditioned):
        ctx.save_for_backward(free, conditioned)
        return guided(free, conditioned)

    @staticmethod
    def backward(ctx, g):
        free, conditioned = ctx.saved_tensors
        total = free + GUIDANCE * (conditioned - free)
        old, new = total.std(1, keepdim=True), conditioned.std(1, keepdim=True)
        n = total.size(1) - 1
        product = SHARE * (g * total).sum(1, keepdim=True)
        to_total = g * (SHARE * new / old + 1 - SHARE)
        to_total = to_total - product * new / old**3 * (total - total.mean(1, keepdim=True)) / n
        to_new = product / old * (conditioned - conditioned.mean(1, keepdim=True)) / (n * new)
        return (1 - GUIDANCE) * to_total, GUIDANCE * to_total + to_new


class RescaledCFG(Function):
    """Classifier-free guidance whose result gets (a share of) the standard deviation of the conditional output."""

    @staticmethod
    def forward(ctx, uncond, cond):
        cfg = uncond + GUIDANCE * (cond - uncond)
        std_text = cond.std(dim=1, keepdim=True)
        std_cfg = cfg.std(dim=1, keepdim=True)
        ctx.save_for_backward(cfg, std_text, std_cfg)
        rescaled = cfg * (std_text / std_cfg)
        return SHARE * rescaled + (1 - SHARE) * cfg

    @staticmethod
    def backward(ctx, grad):
        cfg, std_text, std_cfg = ctx.saved_tensors
        n = cfg.shape[1]
        ratio = std_text / std_cfg
        grad_ratio = SHARE * (grad * cfg).sum(dim=1, keepdim=True)
        grad_cfg = grad * (SHARE * ratio + (1 - SHARE))
        z_cfg = (cfg - cfg.mean(dim=1, keepdim=True)) / std_cfg
        grad_cfg = grad_cfg - grad_ratio * std_text / std_cfg**2 * z_cfg / (n - 1)
        grad_uncond = grad_cfg * (1 - GUIDANCE)
        grad_cond = grad_cfg * GUIDANCE
        return grad_uncond, grad_cond


def sampler_step(x, noise):
    clean = ((x - (1 - NOW) ** 0.5 * noise) / NOW**0.5).clamp(-1, 1)
    noise = (x - NOW**0.5 * clean) / (1 - NOW) ** 0.5
    return NEXT**0.5 * clean + (1 - NEXT) ** 0.5 * noise


class SamplerStepFunction(Function):
    @staticmethod
    def forward(ctx, x, noise):
        clean = (x - (1 - NOW) ** 0.5 * noise) / NOW**0.5
        ctx.save_for_backward(clean)
        return sampler_step(x, noise)

    @staticmethod
    def backward(ctx, g):
        (clean,) = ctx.saved_tensors
        ratio = ((1 - NEXT) / (1 - NOW)) ** 0.5
        to_clean = g * (NEXT**0.5 - ratio * NOW**0.5) * (clean.abs() <= 1)
        return to_clean / NOW**0.5 + g * ratio, -to_clean * ((1 - NOW) / NOW) ** 0.5


class DDIMStep(Function):
    """One step with a clipped prediction of x_0; the noise is computed again from the clipped one."""

    @staticmethod
    def forward(ctx, x_t, eps):
        sqrt_a, sqrt_1ma = NOW**0.5, (1 - NOW) ** 0.5
        x0 = (x_t - sqrt_1ma * eps) / sqrt_a
        mask = (x0 >= -1) & (x0 <= 1)
        x0 = x0.clamp(-1, 1)
        eps = (x_t - sqrt_a * x0) / sqrt_1ma
        ctx.save_for_backward(mask)
        return NEXT**0.5 * x0 + (1 - NEXT) ** 0.5 * eps

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        sqrt_a, sqrt_1ma = NOW**0.5, (1 - NOW) ** 0.5
        grad_eps = grad * (1 - NEXT) ** 0.5
        grad_x0 = grad * NEXT**0.5 * mask
        grad_x0 = grad_x0 - grad_eps * sqrt_a / sqrt_1ma
        grad_xt = grad_eps / sqrt_1ma + grad_x0 / sqrt_a
        return grad_xt, -grad_x0 * sqrt_1ma / sqrt_a


OPERATIONS = [
    Operation(
        "guidance that keeps a size, size of the conditioned one",
        GuidedFunction,
        RescaledCFG,
        guided,
        lambda: {"free": torch.randn(3, 5), "conditioned": torch.randn(3, 5)},
        named="the conditioned output's own standard deviation is in the ratio, and its derivative is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"constant", r"std_text|std"),
        located=(r"gradient of (conditioned|cond)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "step of a sampler with bounds, noise through the bounds",
        SamplerStepFunction,
        DDIMStep,
        sampler_step,
        lambda: {"x": torch.randn(4, 5), "noise": torch.randn(4, 5)},
        named="the bounds' mask is applied before the second part is added, which passes through the same clamp",
        kinds=("step left out", "missing term", "only for some values", "wrong intermediate value"),
        named_words=(r"\bmask\b", r"\bclamp\b"),
        located=(r"gradients? of .*\b(x|noise|x_t|eps)\b",),
        options={"kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
