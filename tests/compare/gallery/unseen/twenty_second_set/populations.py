"""Populations: cases by renewal of an epidemic, shares of strategies in a game, a belief over hidden states."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

STEP = 0.25


def renewed_cases(seed, reproduction, weights):
    cases = [seed]
    for t in range(reproduction.size(1)):
        earlier = [weights[s] * cases[t - s] for s in range(weights.size(0)) if s <= t]
        cases.append(reproduction[:, t] * sum(earlier))
    return torch.stack(cases[1:], 1)


class RenewedCasesFunction(Function):
    @staticmethod
    def forward(ctx, seed, reproduction, weights):
        cases = torch.cat([seed[:, None], renewed_cases(seed, reproduction, weights)], 1)
        ctx.save_for_backward(reproduction, weights, cases)
        return cases[:, 1:].clone()

    @staticmethod
    def backward(ctx, g):
        reproduction, weights, cases = ctx.saved_tensors
        to_cases = torch.cat([torch.zeros_like(g[:, :1]), g], 1)
        to_reproduction, to_weights = torch.zeros_like(reproduction), torch.zeros_like(weights)
        for t in reversed(range(reproduction.size(1))):
            to_pressure = to_cases[:, t + 1] * reproduction[:, t]
            for s in range(min(t + 1, weights.size(0))):
                to_reproduction[:, t] += to_cases[:, t + 1] * weights[s] * cases[:, t - s]
                to_weights[s] += (to_pressure * cases[:, t - s]).sum()
                to_cases[:, t - s] += to_pressure * weights[s]
        return to_cases[:, 0], to_reproduction, to_weights


class RenewalEquation(Function):
    """I[t+1] = R[t] * sum_s w[s] I[t-s]; I0 (B,), R (B, T), w (S,) -> I[1:] (B, T)."""

    @staticmethod
    def forward(ctx, I0, R, w):
        B, T = R.shape
        S = len(w)
        inc = torch.zeros(B, T + 1, dtype=R.dtype, device=R.device)
        lam = torch.zeros_like(R)
        inc[:, 0] = I0
        for t in range(T):
            for s in range(min(S, t + 1)):
                lam[:, t] += w[s] * inc[:, t - s]
            inc[:, t + 1] = R[:, t] * lam[:, t]
        ctx.save_for_backward(R, w, inc, lam)
        return inc[:, 1:].clone()

    @staticmethod
    def backward(ctx, grad_out):
        R, w, inc, lam = ctx.saved_tensors
        T, S = R.shape[1], len(w)
        grad_inc = torch.zeros_like(inc)
        grad_inc[:, 1:] = grad_out
        grad_R = torch.zeros_like(R)
        grad_w = torch.zeros_like(w)
        for t in range(T):
            grad_R[:, t] = grad_inc[:, t + 1] * lam[:, t]
            grad_lam = grad_inc[:, t + 1] * R[:, t]
            for s in range(min(S, t + 1)):
                grad_w[s] += (grad_lam * inc[:, t - s]).sum()
                grad_inc[:, t - s] += w[s] * grad_lam
        return grad_inc[:, 0], grad_R, grad_w


def shares_of_strategies(x, payoff):
    fitness = x @ payoff.T
    return x + STEP * x * (fitness - (x * fitness).sum(1, keepdim=True))


class SharesFunction(Function):
    @staticmethod
    def forward(ctx, x, payoff):
        ctx.save_for_backward(x, payoff)
        return shares_of_strategies(x, payoff)

    @staticmethod
    def backward(ctx, g):
        x, payoff = ctx.saved_tensors
        fitness = x @ payoff.T
        mean = (x * fitness).sum(1, keepdim=True)
        to_mean = -STEP * (g * x).sum(1, keepdim=True)
        to_fitness = STEP * g * x + to_mean * x
        to_x = g * (1 + STEP * (fitness - mean)) + to_mean * fitness + to_fitness @ payoff
        return to_x, to_fitness.T @ x


class ReplicatorStep(Function):
    """Euler step of the replicator equation, populations x (B, K), payoff matrix A (K, K)."""

    @staticmethod
    def forward(ctx, x, A):
        f = x @ A.t()
        phi = (x * f).sum(-1, keepdim=True)
        ctx.save_for_backward(x, A, f, phi)
        return x + STEP * x * (f - phi)

    @staticmethod
    def backward(ctx, grad_out):
        x, A, f, phi = ctx.saved_tensors
        gx = STEP * grad_out * x
        grad_phi = -gx.sum(-1, keepdim=True)
        grad_f = gx + grad_phi * x
        grad_x = grad_out + STEP * grad_out * (f - phi) + grad_f @ A
        grad_A = grad_f.t() @ x
        return grad_x, grad_A


def belief(before, transition, likelihood):
    joint = (before @ transition) * likelihood
    return joint / joint.sum(1, keepdim=True)


class BeliefFunction(Function):
    @staticmethod
    def forward(ctx, before, transition, likelihood):
        ctx.save_for_backward(before, transition, likelihood)
        return belief(before, transition, likelihood)

    @staticmethod
    def backward(ctx, g):
        before, transition, likelihood = ctx.saved_tensors
        predicted = before @ transition
        total = (predicted * likelihood).sum(1, keepdim=True)
        to_joint = (g - (g * predicted * likelihood).sum(1, keepdim=True) / total) / total
        to_predicted = to_joint * likelihood
        return to_predicted @ transition.T, before.T @ to_predicted, to_joint * predicted


class BayesFilterStep(Function):
    """Discrete Bayes filter: predict with P (S, S), then correct with the likelihood of the measurement."""

    @staticmethod
    def forward(ctx, bel, P, lik):
        pred = bel @ P
        post = pred * lik
        Z = post.sum(dim=1, keepdim=True)
        post = post / Z
        ctx.save_for_backward(bel, P, lik, pred, post, Z)
        return post

    @staticmethod
    def backward(ctx, grad_post):
        bel, P, lik, pred, post, Z = ctx.saved_tensors
        g = (grad_post - (grad_post * post).sum(dim=1, keepdim=True)) / Z
        grad_pred = g * lik
        grad_lik = g * pred
        grad_bel = grad_pred @ P
        grad_P = bel.T @ grad_pred
        return grad_bel, grad_P, grad_lik


OPERATIONS = [
    Operation(
        "shares of strategies, share in the mean fitness",
        SharesFunction,
        ReplicatorStep,
        shares_of_strategies,
        lambda: {"x": torch.randn(4, 3).softmax(1), "payoff": torch.randn(3, 3)},
        named="x: the mean fitness is the sum of x times f; its derivative by the first x is left out",
        kinds=("missing term", "step left out"),
        named_words=(r"missing.*\bf\b", r"grad_phi( \* |.*)f\b", r"fitness|\bphi\b", r"missing|left out|leaves out"),
        located=(r"gradient of x\b",),
    ),
    Operation(
        "belief over hidden states, transition",
        BeliefFunction,
        BayesFilterStep,
        belief,
        lambda: {
            "before": torch.randn(4, 3).softmax(1),
            "transition": torch.randn(3, 3).softmax(1),
            "likelihood": torch.rand(4, 3) + 1,
        },
        named="belief before: the gradient is multiplied by the transition where its transpose belongs",
        kinds=("not transposed", "transposed"),
        named_words=(r"transpos", r"\bP\.(T|t\(\)|mT)"),
        located=(r"gradient of (before|bel)\b",),
        options={"whole_numbers": False},  # rounded beliefs may all be zero, and 0 / 0 has no gradient
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "cases by renewal, order of the steps",
            RenewalEquation.apply,
            renewed_cases,
            lambda: {"seed": torch.rand(2) + 1, "reproduction": torch.rand(2, 5) + 0.5, "weights": torch.rand(3)},
        ),
        named="backward runs from the first step to the last, so a step's gradient lacks what later steps send to it",
        kinds=("missing term", "another operand", "wrong sum", "step left out", "wrong intermediate value"),
        named_words=(r"revers", r"order of", r"later|last|recur", r"range\(T\)|range\("),
        located=(r"gradient of (reproduction|R|seed|I0|weights|w)\b",),
    ),
]
RIGHT += [
    Case(
        "cases by renewal",
        RenewedCasesFunction.apply,
        renewed_cases,
        lambda: {"seed": torch.rand(2) + 1, "reproduction": torch.rand(2, 5) + 0.5, "weights": torch.rand(3)},
    ),
]
