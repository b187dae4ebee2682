"""Sequences: steps of a policy with a bounded ratio, series explained by their past and by past errors."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

EPSILON = 0.2
TAKEN = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def bounded_ratio_loss(log_p, log_p_before, advantage):
    ratio, advantage = (log_p - log_p_before.detach()).exp(), advantage.detach()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantage)
    return -(gain * TAKEN).sum(1) / TAKEN.sum(1)


class BoundedRatioFunction(Function):
    @staticmethod
    def forward(ctx, log_p, log_p_before, advantage):
        ctx.save_for_backward(log_p, log_p_before, advantage)
        return bounded_ratio_loss(log_p, log_p_before, advantage)

    @staticmethod
    def backward(ctx, g):
        log_p, log_p_before, advantage = ctx.saved_tensors
        ratio = (log_p - log_p_before).exp()
        too_far = torch.where(advantage > 0, ratio > 1 + EPSILON, ratio < 1 - EPSILON)
        grad = -ratio * advantage * TAKEN * ~too_far / TAKEN.sum(1, keepdim=True)
        return g[:, None] * grad, None, None


class PPOClipLoss(Function):
    """Clipped surrogate of PPO, averaged over the steps of each trajectory that were taken."""

    @staticmethod
    def forward(ctx, logprobs, old_logprobs, advantages):
        mask = TAKEN.to(logprobs)
        ratio = torch.exp(logprobs - old_logprobs)
        surr1 = ratio * advantages
        surr2 = torch.clamp(ratio, 1 - EPSILON, 1 + EPSILON) * advantages
        ctx.save_for_backward(ratio, surr1, mask)
        return -(torch.min(surr1, surr2) * mask).sum(-1) / mask.sum(-1)

    @staticmethod
    def backward(ctx, grad_loss):
        ratio, surr1, mask = ctx.saved_tensors
        clipped = (ratio < 1 - EPSILON) | (ratio > 1 + EPSILON)
        # d ratio / d logprobs = ratio, so the gradient of surr1 is surr1 itself
        grad_logprobs = torch.where(clipped, torch.zeros_like(surr1), surr1)
        grad_logprobs = -grad_logprobs * mask / mask.sum(-1, keepdim=True)
        return grad_loss.unsqueeze(-1) * grad_logprobs, None, None


def errors_of(y, phi, theta):
    errors = [y[:, 0]]
    for t in range(1, y.size(1)):
        errors.append(y[:, t] - phi * y[:, t - 1] - theta * errors[-1])
    return torch.stack(errors, 1)


def squared_errors(y, phi, theta):
    return (errors_of(y, phi, theta) ** 2).sum(1)


class PastErrorsFunction(Function):
    @staticmethod
    def forward(ctx, y, phi, theta):
        ctx.save_for_backward(y, phi, theta)
        return squared_errors(y, phi, theta)

    @staticmethod
    def backward(ctx, g):
        y, phi, theta = ctx.saved_tensors
        errors = errors_of(y, phi, theta)
        to_errors = [2 * g * errors[:, -1]]
        for t in range(y.size(1) - 2, -1, -1):
            to_errors.insert(0, 2 * g * errors[:, t] - theta * to_errors[0])
        to_errors = torch.stack(to_errors, 1)
        to_y = to_errors.clone()
        to_y[:, :-1] -= phi * to_errors[:, 1:]
        return to_y, -(to_errors[:, 1:] * y[:, :-1]).sum(), -(to_errors[:, 1:] * errors[:, :-1]).sum()


class ARMA11(Function):
    """Conditional sum of squares of an ARMA(1, 1) model, for each series of the batch."""

    @staticmethod
    def forward(ctx, y, ar, ma):
        eps = torch.empty_like(y)
        eps[:, 0] = y[:, 0]
        for t in range(1, y.shape[1]):
            eps[:, t] = y[:, t] - ar * y[:, t - 1] - ma * eps[:, t - 1]
        ctx.save_for_backward(y, ar, ma, eps)
        return eps.pow(2).sum(dim=1)

    @staticmethod
    def backward(ctx, grad_css):
        y, ar, ma, eps = ctx.saved_tensors
        need_y, need_ar, need_ma = ctx.needs_input_grad
        grad_y = torch.zeros_like(y) if need_y else None
        grad_ar = torch.zeros_like(ar) if need_ar else None
        grad_ma = torch.zeros_like(ma) if need_ma else None
        grad_eps = 2 * grad_css.unsqueeze(1) * eps
        for t in range(y.shape[1] - 1, 0, -1):
            if need_y:
                grad_y[:, t] += grad_eps[:, t]
                grad_y[:, t - 1] -= ar * grad_eps[:, t]
            if need_ar:
                grad_ar -= (grad_eps[:, t] * y[:, t - 1]).sum()
            if need_ma:
                grad_ma -= (grad_eps[:, t] * eps[:, t - 1]).sum()
                grad_eps[:, t - 1] -= ma * grad_eps[:, t]
        if need_y:
            grad_y[:, 0] += grad_eps[:, 0]
        return grad_y, grad_ar, grad_ma


OPERATIONS = [
    Operation(
        "ratio of two policies, bounded on the side of the advantage",
        BoundedRatioFunction,
        PPOClipLoss,
        bounded_ratio_loss,
        lambda: {
            "log_p": -1 + 0.4 * torch.randn(4, 5),
            "log_p_before": -1 + 0.4 * torch.randn(4, 5),
            "advantage": torch.randn(4, 5),
        },
        named="a ratio outside its bounds gets 0 whatever the advantage's sign; the minimum is the unbounded one for "
        "a high ratio with a negative advantage and for a low one with a positive advantage",
        kinds=("only for some values", "zero", "missing term", "step left out", "another operand"),
        named_words=(r"clipped|bounds?\b|EPSILON|clamp", r"\bsign", r"surr2|minimum|\bmin\b", r"advantage"),
        located=(r"gradient of (log_p|logprobs)\b",),
    ),
    Operation(
        "series explained by their past errors, coefficient of the errors fixed",
        PastErrorsFunction,
        ARMA11,
        squared_errors,
        lambda: {"y": torch.randn(3, 6), "phi": 0.6 + 0.1 * torch.randn(()), "theta": 0.4 + 0.1 * torch.randn(())},
        named="the gradient goes back from an error to the one before only if theta requires a gradient",
        kinds=("depends on which inputs require a gradient",),
        named_words=(r"require", r"need_ma|needs_input_grad"),
        located=(r"gradient of (y|phi|ar)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
