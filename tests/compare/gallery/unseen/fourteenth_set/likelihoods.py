"""Likelihoods: times until an event, order of events, evidence for classes, chains of labels."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

TIMES = torch.tensor([[0.4], [1.3], [0.8], [2.1], [1.6]])
EVENTS = torch.tensor([[1], [0], [1], [1], [0]])
OCCURRED = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0], [1, 1], [0, 1]])
CLASSES = torch.tensor([2, 0, 1, 2])
LABELS = torch.tensor([[0, 2, 1, 1, 0], [2, 2, 0, 1, 2]])


def weibull(log_shape, log_scale):
    shape, ratio = torch.exp(log_shape), torch.log(TIMES).to(log_scale) - log_scale
    density = log_shape + shape * ratio - torch.log(TIMES).to(log_scale)
    return torch.exp(shape * ratio) - EVENTS * density


class WeibullFunction(Function):
    @staticmethod
    def forward(ctx, log_shape, log_scale):
        ctx.save_for_backward(log_shape, log_scale)
        return weibull(log_shape, log_scale)

    @staticmethod
    def backward(ctx, g):
        log_shape, log_scale = ctx.saved_tensors
        exponent = torch.exp(log_shape) * (torch.log(TIMES).to(g) - log_scale)
        to_exponent = g * (torch.exp(exponent) - EVENTS)
        return (to_exponent * exponent - g * EVENTS).sum(0), -to_exponent * torch.exp(log_shape)


class WeibullNLL(Function):
    @staticmethod
    def forward(ctx, log_k, log_lam):
        log_t = TIMES.log().to(log_lam)
        k = log_k.exp()
        r = log_t - log_lam
        hazard = (k * r).exp()
        ctx.save_for_backward(k, r, hazard)
        return hazard - EVENTS * (log_k + k * r - log_t)

    @staticmethod
    def backward(ctx, grad):
        k, r, hazard = ctx.saved_tensors
        observed = grad * EVENTS
        grad_log_k = observed * (k * r * (hazard - 1) - 1)
        grad_log_lam = -observed * k * (hazard - 1)
        return grad_log_k.sum(dim=0), grad_log_lam


def cox(scores):
    occurred = OCCURRED.to(scores)
    at_risk = torch.stack([torch.logsumexp(scores[: n + 1], 0) for n in range(len(scores))])
    return (occurred * (at_risk - scores)).sum(0) / occurred.sum(0)


class CoxFunction(Function):
    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return cox(scores)

    @staticmethod
    def backward(ctx, g):
        (scores,) = ctx.saved_tensors
        occurred = OCCURRED.to(g)
        share = g / occurred.sum(0)
        grad = -occurred * share
        for n in range(len(scores)):
            grad[: n + 1] += occurred[n] * share * torch.softmax(scores[: n + 1], 0)
        return grad


class CoxPartialLikelihood(Function):
    @staticmethod
    def forward(ctx, risk):
        event = OCCURRED.to(risk.dtype)
        top = risk.max(dim=0).values
        weight = (risk - top).exp()
        total = weight.cumsum(dim=0)
        ctx.save_for_backward(event, weight, total)
        log_lik = event * (risk - top - total.log())
        return -log_lik.sum(dim=0) / event.sum(dim=0)

    @staticmethod
    def backward(ctx, grad_out):
        event, weight, total = ctx.saved_tensors
        inverse = total.reciprocal()
        later = inverse.flip(0).cumsum(0).flip(0)
        return grad_out / event.sum(dim=0) * (weight * later - event)


def evidence_loss(logits):
    alpha = torch.nn.functional.softplus(logits) + 1
    chosen = alpha.gather(1, CLASSES[:, None]).squeeze(1)
    return torch.digamma(alpha.sum(1)) - torch.digamma(chosen)


def digamma_grad(x):
    return torch.polygamma(2, x)


class EvidentialLoss(Function):
    @staticmethod
    def forward(ctx, logits):
        alpha = torch.nn.functional.softplus(logits) + 1
        strength = alpha.sum(dim=1)
        ctx.save_for_backward(logits, alpha, strength)
        return torch.digamma(strength) - torch.digamma(alpha[torch.arange(len(alpha)), CLASSES])

    @staticmethod
    def backward(ctx, grad_loss):
        logits, alpha, strength = ctx.saved_tensors
        rows = torch.arange(len(alpha))
        grad_alpha = (grad_loss * digamma_grad(strength)).unsqueeze(1).repeat(1, alpha.size(1))
        grad_alpha[rows, CLASSES] -= grad_loss * digamma_grad(alpha[rows, CLASSES])
        return grad_alpha * torch.sigmoid(logits)


def chain(emissions, transitions):
    """Negative logarithm of the likelihood of LABELS: emissions (N, T, K), transitions (K, K) from row to column."""
    rows = torch.arange(len(LABELS))
    total, path = emissions[:, 0], emissions[rows, 0, LABELS[:, 0]]
    for t in range(1, LABELS.shape[1]):
        total = torch.logsumexp(total[:, :, None] + transitions, 1) + emissions[:, t]
        path = path + transitions[LABELS[:, t - 1], LABELS[:, t]] + emissions[rows, t, LABELS[:, t]]
    return torch.logsumexp(total, 1) - path


class ChainFunction(Function):
    @staticmethod
    def forward(ctx, emissions, transitions):
        ctx.save_for_backward(emissions, transitions)
        return chain(emissions, transitions)

    @staticmethod
    def backward(ctx, g):
        emissions, transitions = ctx.saved_tensors
        totals = [emissions[:, 0]]
        for t in range(1, LABELS.shape[1]):
            totals.append(torch.logsumexp(totals[-1][:, :, None] + transitions, 1) + emissions[:, t])
        to_total, rows = g[:, None] * torch.softmax(totals[-1], 1), torch.arange(len(g))
        grad_emissions, grad_transitions = torch.zeros_like(emissions), torch.zeros_like(transitions)
        for t in reversed(range(LABELS.shape[1])):
            grad_emissions[:, t] = to_total
            grad_emissions[rows, t, LABELS[:, t]] -= g
            if t:
                from_before = torch.softmax(totals[t - 1][:, :, None] + transitions, 1) * to_total[:, None]
                grad_transitions += from_before.sum(0)
                grad_transitions.index_put_((LABELS[:, t - 1], LABELS[:, t]), -g, accumulate=True)
                to_total = from_before.sum(2)
        return grad_emissions, grad_transitions


def forward_backward(e, trans):
    alpha, beta = [e[:, 0]], [torch.zeros_like(e[:, 0])]
    for t in range(1, e.size(1)):
        alpha.append(torch.logsumexp(alpha[-1].unsqueeze(2) + trans, dim=1) + e[:, t])
    for t in range(e.size(1) - 1, 0, -1):
        beta.insert(0, torch.logsumexp(trans + (e[:, t] + beta[0]).unsqueeze(1), dim=2))
    return torch.stack(alpha, 1), torch.stack(beta, 1)


class LinearChainCRF(Function):
    @staticmethod
    def forward(ctx, e, trans):
        alpha, beta = forward_backward(e, trans)
        log_z = torch.logsumexp(alpha[:, -1], dim=1)
        score = e.gather(2, LABELS.unsqueeze(2)).sum((1, 2)) + trans[LABELS[:, :-1], LABELS[:, 1:]].sum(1)
        ctx.save_for_backward(e, trans, alpha, beta, log_z)
        return log_z - score

    @staticmethod
    def backward(ctx, grad_nll):
        e, trans, alpha, beta, log_z = ctx.saved_tensors
        node = (alpha + beta - log_z.view(-1, 1, 1)).exp()
        grad_e = node.scatter_add(2, LABELS.unsqueeze(2), -torch.ones_like(node[:, :, :1]))
        after = (e + beta)[:, 1:]
        edge = alpha[:, :-1].unsqueeze(3) + trans + after.unsqueeze(2) - log_z.view(-1, 1, 1, 1)
        weight = grad_nll.view(-1, 1, 1)
        grad_trans = (edge.exp().sum(1) * weight).sum(0)
        counted = grad_nll.unsqueeze(1).expand(-1, LABELS.size(1) - 1)
        grad_trans.index_put_((LABELS[:, 1:], LABELS[:, :-1]), -counted, accumulate=True)
        return grad_e * weight, grad_trans


OPERATIONS = [
    Operation(
        "Weibull likelihood, censored times",
        WeibullFunction,
        WeibullNLL,
        weibull,
        lambda: {"log_shape": torch.randn(3) / 3, "log_scale": torch.randn(5, 3) / 2},
        named="a censored time has no gradient: the mask of events multiplies the hazard's part too",
        kinds=("only at some indices", "missing term", "zero", "another operand"),
        named_words=(r"mask|EVENTS|censor", r"zero|no gradient", r"missing"),
        located=(r"gradient of log_scale", r"gradient of log_shape"),
    ),
    Operation(
        "order of events, censored ones in the sum",
        CoxFunction,
        CoxPartialLikelihood,
        cox,
        lambda: (torch.randn(6, 2),),
        named="the sum over later events takes the censored ones too: the mask of events is left out",
        kinds=("step left out", "another operand", "wrong sum", "missing term"),
        named_words=(r"mask|event|OCCURRED|censor", r"left out|missing"),
        located=(r"gradient of (scores|input 0)",),
    ),
    Operation(
        "chain of labels, counted transitions",
        ChainFunction,
        LinearChainCRF,
        chain,
        lambda: {"emissions": torch.randn(2, 5, 3), "transitions": torch.randn(3, 3)},
        named="transitions: the labels' pairs are subtracted at (to, from), where (from, to) belongs",
        kinds=("transposed", "not transposed", "swapped", "permuted", "another operand"),
        named_words=(r"transpos", r"swap|exchang", r"row.*column|column.*row", r"order of"),
        located=(r"gradient of transitions",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "evidence for classes, derivative of digamma",
            EvidentialLoss.apply,
            evidence_loss,
            lambda: (torch.randn(4, 3),),
        ),
        named="the derivative of digamma is polygamma of order 1: order 2, the second derivative, is taken",
        kinds=("another operand", "factor by element"),
        named_words=(r"polygamma|trigamma|digamma", r"second derivative"),
        located=(r"gradient of (logits|input 0)",),
    ),
]
