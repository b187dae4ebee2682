"""Diffusion: a weighted loss of the velocity, the mean of the posterior with a clipped estimate."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

BETAS = torch.linspace(0.1, 0.5, 6)
KEPT = torch.cumprod(1 - BETAS, 0)
MAX_SNR = 1.5


def velocity_loss(predicted, clean, noise, steps):
    kept = KEPT.to(predicted)[steps].unsqueeze(1)
    ratio = kept / (1 - kept)
    weights = ratio.clamp(max=MAX_SNR) / (ratio + 1)
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
    return (weights * (predicted - velocity).square()).mean()


class VelocityLossFunction(Function):
    @staticmethod
    def forward(ctx, predicted, clean, noise, steps):
        kept = KEPT.to(predicted)[steps].unsqueeze(1)
        ratio = kept / (1 - kept)
        weights = ratio.clamp(max=MAX_SNR) / (ratio + 1)
        signal, noisy = kept.sqrt(), (1 - kept).sqrt()
        error = predicted - signal * noise + noisy * clean
        ctx.save_for_backward(weights * error, signal, noisy)
        return (weights * error.square()).mean()

    @staticmethod
    def backward(ctx, g):
        weighted, signal, noisy = ctx.saved_tensors
        to_predicted = g * 2 / weighted.numel() * weighted
        return to_predicted, noisy * to_predicted, -signal * to_predicted, None


def extract(table, t, like):
    return table.to(like)[t][:, None]


class MinSNRVLoss(Function):
    """v-prediction loss with min-SNR weights (Hang et al. 2023)."""

    @staticmethod
    def forward(ctx, v_pred, x0, eps, t):
        alpha = extract(KEPT, t, v_pred).sqrt()
        sigma = (1 - extract(KEPT, t, v_pred)).sqrt()
        snr = (alpha / sigma) ** 2
        w = torch.minimum(snr, torch.full_like(snr, MAX_SNR)) / (snr + 1)
        v = alpha * eps - sigma * x0
        diff = v_pred - v
        ctx.save_for_backward(diff, w, alpha, sigma)
        return torch.mean(w * diff**2)

    @staticmethod
    def backward(ctx, grad_output):
        diff, w, alpha, sigma = ctx.saved_tensors
        batch_size = diff.shape[0]
        grad_diff = grad_output * 2 * w * diff / batch_size
        grad_v = -grad_diff
        return grad_diff, -sigma * grad_v, alpha * grad_v, None


def coefficients(steps, like):
    """Return the factors of the clipped estimate and of the sample in the posterior mean, and the signal share."""
    before = torch.cat([torch.ones(1), KEPT[:-1]])
    estimate = before.sqrt() * BETAS / (1 - KEPT)
    sample = (1 - BETAS).sqrt() * (1 - before) / (1 - KEPT)
    return [table.to(like)[steps].unsqueeze(1) for table in (estimate, sample, KEPT)]


def posterior_mean(sample, noise, steps):
    of_estimate, of_sample, kept = coefficients(steps, sample)
    estimate = (sample - (1 - kept).sqrt() * noise) / kept.sqrt()
    return of_estimate * estimate.clamp(-1, 1) + of_sample * sample


class PosteriorMeanFunction(Function):
    @staticmethod
    def forward(ctx, sample, noise, steps):
        of_estimate, of_sample, kept = coefficients(steps, sample)
        estimate = (sample - (1 - kept).sqrt() * noise) / kept.sqrt()
        ctx.save_for_backward(estimate, of_estimate, of_sample, kept)
        return of_estimate * estimate.clamp(-1, 1) + of_sample * sample

    @staticmethod
    def backward(ctx, g):
        estimate, of_estimate, of_sample, kept = ctx.saved_tensors
        to_estimate = torch.where(estimate.abs() <= 1, g * of_estimate, 0)
        to_sample = to_estimate / kept.sqrt() + g * of_sample
        return to_sample, -to_estimate * (1 / kept - 1).sqrt(), None


class DDPMPosteriorMean(Function):
    """mu(x_t, eps) = c1 * clip(x0_hat) + c2 * x_t"""

    @staticmethod
    def forward(ctx, x_t, eps, t):
        c1, c2, abar = coefficients(t, x_t)
        x0 = (x_t - torch.sqrt(1 - abar) * eps) / torch.sqrt(abar)
        mask = (x0 >= -1) & (x0 <= 1)
        ctx.save_for_backward(mask, c1, c2, abar)
        return c1 * torch.clamp(x0, -1, 1) + c2 * x_t

    @staticmethod
    def backward(ctx, grad_mu):
        mask, c1, c2, abar = ctx.saved_tensors
        grad_mu = grad_mu * mask
        grad_x_t = grad_mu * (c1 / torch.sqrt(abar) + c2)
        grad_eps = -grad_mu * c1 * torch.sqrt(1 - abar) / torch.sqrt(abar)
        return grad_x_t, grad_eps, None


OPERATIONS = [
    Operation(
        "weighted loss of the velocity, mean over the batch alone",
        VelocityLossFunction,
        MinSNRVLoss,
        velocity_loss,
        lambda: {
            "predicted": torch.randn(4, 3),
            "clean": torch.randn(4, 3),
            "noise": torch.randn(4, 3),
            "steps": torch.randint(6, (4,)),
        },
        named="the mean is over all elements, and backward divides by the number of rows: 3 times the gradient",
        kinds=("constant factor",),
        named_words=(r"\b3(\.0*)? times", r"mean|numel|columns|size|shape"),
        located=(r"gradient of (predicted|v_pred)\b",),
    ),
    Operation(
        "posterior mean of a clipped estimate, sample masked too",
        PosteriorMeanFunction,
        DDPMPosteriorMean,
        posterior_mean,
        lambda: {
            "sample": torch.randn(4, 5),
            "noise": torch.randn(4, 5),
            "steps": torch.randint(6, (4,)),
        },
        named="where the estimate is clipped, the gradient of the sample is 0, and its own term is missing",
        kinds=("only for some values", "missing term", "only at some indices"),
        named_words=(r"clamp|clip|mask", r"missing|one too many", r"x0|estimate"),
        located=(r"gradient of (sample|x_t)\b",),
        options={"kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
