"""Losses: Jensen-Shannon, negative binomial, logistic bins, Lovász's extension of the hinge."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

LABELS = torch.tensor([1, 0, 0, 1, 0, 1, 1, 0])
HALF_BIN = 0.75


def jensen_shannon(p, q):
    log_mean = ((p + q) / 2).log()
    return ((p * (p.log() - log_mean) + q * (q.log() - log_mean)) / 2).sum(1)


class JSD(Function):
    @staticmethod
    def forward(ctx, p, q):
        m = 0.5 * (p + q)
        kl_p = (p * (p / m).log()).sum(dim=1)
        kl_q = (q * (q / m).log()).sum(dim=1)
        ctx.save_for_backward(p, q, m)
        return 0.5 * (kl_p + kl_q)

    @staticmethod
    def backward(ctx, grad_output):
        p, q, m = ctx.saved_tensors
        grad_kl_p = (p / m).log() + 1
        grad_kl_q = (q / m).log() + 1
        scale = 0.5 * grad_output.unsqueeze(1)
        return scale * grad_kl_p, scale * grad_kl_q


def negative_binomial(log_mean, size, count):
    mean = log_mean.exp()
    ways = torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1)
    return -(ways + size * (size / (size + mean)).log() + count * (mean / (size + mean)).log())


def negative_binomial_inputs():
    return {
        "log_mean": torch.randn(6, 3) / 2,
        "size": 1 + torch.rand(3) * 2,
        "count": torch.randint(0, 6, (6, 3)),
    }


class NegativeBinomialFunction(Function):
    @staticmethod
    def forward(ctx, log_mean, size, count):
        ctx.save_for_backward(log_mean, size, count)
        return negative_binomial(log_mean, size, count)

    @staticmethod
    def backward(ctx, g):
        log_mean, size, count = ctx.saved_tensors
        mean = log_mean.exp()
        both = size + mean
        grad_mean = size * (mean - count) / both
        grad_size = torch.digamma(size) - torch.digamma(count + size) - (size / both).log() + (count - mean) / both
        return g * grad_mean, (g * grad_size).sum(0), None


class NegBinNLL(Function):
    @staticmethod
    def forward(ctx, log_mu, theta, y):
        mu = torch.exp(log_mu)
        log_prob = theta * torch.log(theta / (theta + mu)) + y * torch.log(mu / (theta + mu))
        log_prob = log_prob + torch.lgamma(y + theta) - torch.lgamma(theta) - torch.lgamma(y + 1)
        ctx.save_for_backward(mu, theta, y)
        return -log_prob

    @staticmethod
    def backward(ctx, grad_out):
        mu, theta, y = ctx.saved_tensors
        d_log_mu = theta * (mu - y) / (theta + mu)
        d_theta = torch.digamma(y + theta) - torch.digamma(theta) + torch.log(theta / (theta + mu)) + 1
        return grad_out * d_log_mu, -(grad_out * d_theta).sum(dim=0), None


def logistic_bin(x, mean, log_scale):
    upper = (x - mean + HALF_BIN) * (-log_scale).exp()
    lower = (x - mean - HALF_BIN) * (-log_scale).exp()
    return (upper.sigmoid() - lower.sigmoid()).log()


class LogisticBinFunction(Function):
    @staticmethod
    def forward(ctx, x, mean, log_scale):
        ctx.save_for_backward(x, mean, log_scale)
        return logistic_bin(x, mean, log_scale)

    @staticmethod
    def backward(ctx, g):
        x, mean, log_scale = ctx.saved_tensors
        inverse = (-log_scale).exp()
        upper, lower = (x - mean + HALF_BIN) * inverse, (x - mean - HALF_BIN) * inverse
        s, t = upper.sigmoid(), lower.sigmoid()
        grad_upper = g * s * (1 - s) / (s - t)
        grad_lower = -g * t * (1 - t) / (s - t)
        grad_x = (grad_upper + grad_lower) * inverse
        return grad_x, -grad_x, -(grad_upper * upper + grad_lower * lower)


class DiscretizedLogistic(Function):
    @staticmethod
    def forward(ctx, x, mu, log_s):
        centered = x - mu
        inv_s = torch.exp(-log_s)
        cdf_plus = torch.sigmoid(inv_s * (centered + HALF_BIN))
        cdf_min = torch.sigmoid(inv_s * (centered - HALF_BIN))
        ctx.save_for_backward(centered, inv_s, cdf_plus, cdf_min)
        return torch.log(cdf_plus - cdf_min)

    @staticmethod
    def backward(ctx, grad_output):
        centered, inv_s, cdf_plus, cdf_min = ctx.saved_tensors
        pdf_plus = cdf_plus * (1 - cdf_plus)
        pdf_min = cdf_min * (1 - cdf_min)
        common = grad_output * (pdf_plus - pdf_min) / (cdf_plus - cdf_min)
        return common * inv_s, -common * inv_s, -common * centered * inv_s


def lovasz_weights(truth):
    """Increments of the Jaccard loss when the elements are added in this order."""
    positives = truth.sum()
    jaccard = 1 - (positives - truth.cumsum(0)) / (positives + (1 - truth).cumsum(0))
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def lovasz_hinge(logits):
    truth = LABELS.to(logits.dtype)
    errors, order = (1 - logits * (2 * truth - 1)).sort(descending=True)
    return torch.dot(errors.clamp(min=0), lovasz_weights(truth[order]))


class LovaszHingeFunction(Function):
    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits)
        return lovasz_hinge(logits)

    @staticmethod
    def backward(ctx, g):
        (logits,) = ctx.saved_tensors
        truth = LABELS.to(logits.dtype)
        signs = 2 * truth - 1
        errors, order = (1 - logits * signs).sort(descending=True)
        weights = lovasz_weights(truth[order]) * (errors > 0)
        return -g * signs * torch.zeros_like(logits).scatter(0, order, weights)


class LovaszHinge(Function):
    @staticmethod
    def forward(ctx, logits):
        labels = LABELS.to(logits)
        errors = 1.0 - logits * (2.0 * labels - 1.0)
        sorted_errors, perm = torch.sort(errors, dim=0, descending=True)
        loss = torch.dot(torch.relu(sorted_errors), lovasz_weights(labels[perm]))
        ctx.save_for_backward(errors, perm, labels)
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        errors, perm, labels = ctx.saved_tensors
        grad_sorted = lovasz_weights(labels) * (errors[perm] > 0)
        grad_errors = torch.empty_like(errors)
        grad_errors[perm] = grad_sorted
        return grad_output * grad_errors * (1.0 - 2.0 * labels)


OPERATIONS = [
    Operation(
        "negative binomial likelihood, quotient of the size",
        NegativeBinomialFunction,
        NegBinNLL,
        negative_binomial,
        negative_binomial_inputs,
        named="size: the derivative of log(size + mean), (size + count) / (size + mean), is left out",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of (size|theta)",),
        options={"whole_numbers": False},
    ),
    Operation(
        "logistic bins, half of the bin in the scale's gradient",
        LogisticBinFunction,
        DiscretizedLogistic,
        logistic_bin,
        lambda: {
            "x": torch.randn(5, 4).clamp(-2, 2),
            "mean": torch.randn(5, 4) / 2,
            "log_scale": torch.randn(5, 4) / 4,
        },
        named="log_scale: both ends of the bin are taken at its centre; the half width has no part in the gradient",
        kinds=("missing term", "step left out", "another operand"),
        named_words=(r"missing", r"constant|no effect", r"\b0\.75\b|centre|center|half", r"x - mean"),
        located=(r"gradient of log_s",),
        options={"whole_numbers": False},
    ),
    Operation(
        "Lovász hinge, labels not sorted",
        LovaszHingeFunction,
        LovaszHinge,
        lovasz_hinge,
        lambda: (torch.randn(8) * 1.5,),
        named="backward computes the weights of the labels in their first order, not in that of the errors",
        kinds=("step left out", "another operand", "permuted"),
        named_words=(r"\border\b|sort|permut", r"LABELS|labels|truth", r"index|gather"),
        located=(r"gradient of (logits|input 0)",),
        options={"kinks": True, "whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "divergence from the mean of two, constant",
            JSD.apply,
            jensen_shannon,
            lambda: {
                "p": torch.rand(4, 5).add(0.2).log().softmax(1),
                "q": torch.rand(4, 5).add(0.2).log().softmax(1),
            },
            whole_numbers=False,
        ),
        named="the mean of the two distributions is treated as a constant: 1/2 is added to each derivative",
        kinds=("missing term",),
        named_words=(r"missing|one too many|extra", r"constant", r"detach", r"no effect"),
        located=(r"gradient of p",),
    ),
]
