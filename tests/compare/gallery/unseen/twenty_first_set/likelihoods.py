"""Likelihoods: log-logistic lifetimes, counts of successes whose rate varies, directions around a mean."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function
from torch.nn.functional import softplus

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def lifetimes_loss(log_time, location, log_scale, died):
    z = (log_time - location) / log_scale.exp()
    return (softplus(z) * (1 + died) - died * (z - log_scale)).mean()


class LifetimesLossFunction(Function):
    @staticmethod
    def forward(ctx, log_time, location, log_scale, died):
        ctx.save_for_backward(log_time, location, log_scale, died)
        return lifetimes_loss(log_time, location, log_scale, died)

    @staticmethod
    def backward(ctx, g):
        log_time, location, log_scale, died = ctx.saved_tensors
        scale = log_scale.exp()
        z = (log_time - location) / scale
        to_z = g / z.numel() * ((1 + died) * z.sigmoid() - died)
        grad_log_scale = g * died.sum() / z.numel() - (to_z * z).sum()
        return to_z / scale, -to_z / scale, grad_log_scale, None


class LogLogisticAFT(Function):
    """Negative log-likelihood of right-censored survival times, event = 1 where death was observed."""

    @staticmethod
    def forward(ctx, log_t, mu, log_sigma, event):
        sigma = torch.exp(log_sigma)
        z = (log_t - mu) / sigma
        log_survival = -softplus(z)
        log_density = z - log_sigma + 2 * log_survival
        loglik = torch.where(event > 0, log_density, log_survival)
        ctx.save_for_backward(z, sigma, event)
        return -loglik.mean()

    @staticmethod
    def backward(ctx, grad_loss):
        z, sigma, event = ctx.saved_tensors
        p = torch.sigmoid(z)
        dlogf_dz = 1 - 2 * p
        dlogS_dz = -p
        d_z = torch.where(event > 0, dlogf_dz, dlogS_dz)
        d_log_sigma = -d_z * z - 1
        scale = -grad_loss / z.numel()
        return scale * d_z / sigma, -scale * d_z / sigma, scale * d_log_sigma.sum(), None


def log_beta(p, q):
    return p.lgamma() + q.lgamma() - (p + q).lgamma()


def successes_likelihood(p, q, successes, trials):
    return log_beta(p + successes, q + trials - successes) - log_beta(p, q)


class SuccessesLikelihoodFunction(Function):
    @staticmethod
    def forward(ctx, p, q, successes, trials):
        ctx.save_for_backward(p, q, successes, trials)
        return successes_likelihood(p, q, successes, trials)

    @staticmethod
    def backward(ctx, g):
        p, q, successes, trials = ctx.saved_tensors
        both = (p + q).digamma() - (p + q + trials).digamma()
        grad_p = g * ((p + successes).digamma() - p.digamma() + both)
        grad_q = g * ((q + trials - successes).digamma() - q.digamma() + both)
        return grad_p.sum(0), grad_q.sum(0), None, None


def d_log_beta(a, b):
    """Derivative of log B(a, b) with respect to its first argument."""
    return torch.digamma(a) - torch.digamma(a + b)


class BetaBinomialLogLik(Function):
    @staticmethod
    def forward(ctx, alpha, beta, k, n):
        ctx.save_for_backward(alpha, beta, k, n)
        a_post, b_post = alpha + k, beta + n - k
        log_marginal = torch.lgamma(a_post) + torch.lgamma(b_post) - torch.lgamma(a_post + b_post)
        return log_marginal - (torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta))

    @staticmethod
    def backward(ctx, grad_out):
        alpha, beta, k, n = ctx.saved_tensors
        a_post, b_post = alpha + k, beta + n - k
        grad_alpha = d_log_beta(a_post, b_post) - d_log_beta(alpha, beta)
        grad_beta = d_log_beta(b_post, a_post) - d_log_beta(alpha, beta)
        return (grad_out * grad_alpha).sum(0), (grad_out * grad_beta).sum(0), None, None


def direction_likelihood(angle, mean, concentration):
    around = concentration * ((angle - mean).cos() - 1)
    return around - torch.special.i0e(concentration).log() - math.log(2 * math.pi)


class VonMisesLogProb(Function):
    """Uses the exponentially scaled Bessel function, so that large kappa does not overflow."""

    @staticmethod
    def forward(ctx, theta, mu, kappa):
        diff = theta - mu
        i0e = torch.special.i0e(kappa)
        ctx.save_for_backward(diff, kappa, i0e)
        return kappa * (torch.cos(diff) - 1) - torch.log(2 * math.pi * i0e)

    @staticmethod
    def backward(ctx, grad):
        diff, kappa, i0e = ctx.saved_tensors
        grad_theta = -grad * kappa * torch.sin(diff)
        ratio = torch.special.i1e(kappa) / i0e
        grad_kappa = grad * (torch.cos(diff) - 1 - ratio)
        return grad_theta, -grad_theta.sum(dim=0), grad_kappa.sum(dim=0)


def lifetimes():
    died = torch.tensor([1, 0, 1, 1, 0, 1, 0, 1])
    return {"log_time": torch.randn(8), "location": torch.randn(8), "log_scale": 0.3 * torch.randn(()), "died": died}


def successes():
    trials = torch.randint(3, 9, (6, 3))
    return {"p": 0.5 + torch.rand(3), "q": 1 + torch.rand(3), "successes": trials // 2, "trials": trials}


OPERATIONS = [
    Operation(
        "log-logistic lifetimes, scale of those who live on",
        LifetimesLossFunction,
        LogLogisticAFT,
        lifetimes_loss,
        lifetimes,
        named="log_scale: the term -log_sigma belongs to the observed deaths alone, and is counted for every row",
        kinds=("step left out", "another operand", "missing term", "factor of one term"),
        named_words=(r"event|died", r"masked?\b|torch\.where"),
        located=(r"gradient of (log_scale|log_sigma)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "successes whose rate varies, arguments of log beta swapped",
        SuccessesLikelihoodFunction,
        BetaBinomialLogLik,
        successes_likelihood,
        successes,
        named="q: the derivative of log B(p, q) is that by p, as the arguments of the function are not swapped",
        kinds=("another operand", "swapped", "factor of one term"),
        named_words=(r"swapped", r"d_log_beta\(beta, alpha\)", r"digamma"),
        located=(r"gradient of (q|beta)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "directions around a mean, derivative of the unscaled Bessel function",
            VonMisesLogProb.apply,
            direction_likelihood,
            lambda: {
                "angle": 3 * torch.randn(7, 2),
                "mean": torch.randn(2),
                "concentration": 0.5 + 2 * torch.rand(2),
            },
        ),
        named="concentration: i1e is taken as the derivative of i0e, which is i1e - i0e: it lacks 1 in log i0e's",
        kinds=("missing term", "another operand", "step left out", "factor of one term"),
        named_words=(r"i0e", r"\bratio - 1|1 - ratio|- ratio \+ 1", r"cos\(diff\) - ratio", r"missing"),
        located=(r"gradient of (concentration|kappa)\b",),
    ),
]
