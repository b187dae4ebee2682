"""Policies and values: advantages about their mean, lambda returns, squashed actions, projected returns."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

GAMMA, LAMBDA = 0.9, 0.8
LOW, HIGH, ATOMS = -2.0, 2.0, 6


def action_values(value, advantage):
    return value + advantage - advantage.mean(1, keepdim=True)


class DuelingHead(Function):
    """Dueling network: Q = V + A - mean(A), with V of shape (B, 1)."""

    @staticmethod
    def forward(ctx, value, advantage):
        return value + (advantage - advantage.mean(dim=1, keepdim=True))

    @staticmethod
    def backward(ctx, grad_q):
        grad_value = grad_q.sum(dim=1, keepdim=True)
        grad_advantage = grad_q - grad_value
        return grad_value, grad_advantage


def lambda_returns(reward, value, done):
    going, result, results = GAMMA * (1 - done.to(value)), value[-1], []
    for t in reversed(range(len(reward))):
        result = reward[t] + going[t] * ((1 - LAMBDA) * value[t + 1] + LAMBDA * result)
        results.insert(0, result)
    return torch.stack(results)


class LambdaReturnsFunction(Function):
    @staticmethod
    def forward(ctx, reward, value, done):
        ctx.save_for_backward(done)
        return lambda_returns(reward, value, done)

    @staticmethod
    def backward(ctx, g):
        (done,) = ctx.saved_tensors
        going = GAMMA * (1 - done.to(g))
        grad_reward, grad_value = torch.zeros_like(g), torch.zeros_like(torch.cat([g, g[-1:]]))
        carried = torch.zeros_like(g[0])
        for t in range(len(g)):
            total = g[t] + carried
            grad_reward[t] = total
            grad_value[t + 1] = (1 - LAMBDA) * going[t] * total
            carried = LAMBDA * going[t] * total
        grad_value[-1] += carried
        return grad_reward, grad_value, None


class TDLambda(Function):
    """TD(lambda) targets, time first: rewards (T, B), values (T + 1, B), dones (T, B)."""

    @staticmethod
    def forward(ctx, rewards, values, dones):
        not_done = 1.0 - dones.type_as(values)
        ret = values[-1]
        returns = torch.empty_like(rewards)
        for t in range(rewards.shape[0] - 1, -1, -1):
            bootstrap = (1 - LAMBDA) * values[t + 1] + LAMBDA * ret
            ret = rewards[t] + GAMMA * not_done[t] * bootstrap
            returns[t] = ret
        ctx.save_for_backward(not_done)
        return returns

    @staticmethod
    def backward(ctx, grad_returns):
        (not_done,) = ctx.saved_tensors
        T, B = grad_returns.shape
        grad_values = grad_returns.new_zeros(T + 1, B)
        grad_rewards = grad_returns.clone()
        for t in range(T):
            if t > 0:
                grad_rewards[t] += GAMMA * LAMBDA * grad_rewards[t - 1]
            grad_values[t + 1] += GAMMA * (1 - LAMBDA) * not_done[t] * grad_rewards[t]
        grad_values[T] += GAMMA * LAMBDA * not_done[T - 1] * grad_rewards[T - 1]
        return grad_rewards, grad_values, None


def squashed_normal(mean, log_std, noise):
    action = torch.tanh(mean + log_std.exp() * noise)
    log_p = -0.5 * noise * noise - log_std - torch.log(1 - action * action + 1e-3)
    return action, log_p.sum(-1)


class SquashedNormalFunction(Function):
    @staticmethod
    def forward(ctx, mean, log_std, noise):
        ctx.save_for_backward(mean, log_std, noise)
        return squashed_normal(mean, log_std, noise)

    @staticmethod
    def backward(ctx, g, grad_log_p):
        mean, log_std, noise = ctx.saved_tensors
        std, grad_log_p = log_std.exp(), grad_log_p[..., None]
        action = torch.tanh(mean + std * noise)
        rest = 1 - action * action
        grad = rest * (g + grad_log_p * 2 * action / (rest + 1e-3))
        return grad, grad * std * noise - grad_log_p, grad * std - grad_log_p * noise


class TanhGaussianSample(Function):
    """SAC's reparameterized action and its log-probability, summed over the action's dimensions."""

    @staticmethod
    def forward(ctx, mu, log_sigma, eps):
        sigma = torch.exp(log_sigma)
        a = torch.tanh(mu + sigma * eps)
        one_minus = 1 - a.pow(2)
        logp = (-0.5 * eps.pow(2) - log_sigma - torch.log(one_minus + 1e-3)).sum(dim=-1)
        ctx.save_for_backward(sigma, eps, a, one_minus)
        return a, logp

    @staticmethod
    def backward(ctx, grad_a, grad_logp):
        sigma, eps, a, one_minus = ctx.saved_tensors
        glp = grad_logp.unsqueeze(-1)
        through_action = grad_a * one_minus
        correction = glp * 2 * a * one_minus / (one_minus + 1e-3)
        grad_mu = through_action + correction
        grad_log_sigma = through_action * sigma * eps - glp
        grad_eps = grad_mu * sigma - glp * eps
        return grad_mu, grad_log_sigma, grad_eps


def projected(probability, reward):
    width = (HIGH - LOW) / (ATOMS - 1)
    support = torch.linspace(LOW, HIGH, ATOMS, dtype=probability.dtype)
    place = ((reward[:, None] + GAMMA * support).clamp(LOW, HIGH) - LOW) / width
    lower = place.detach().floor().clamp(max=ATOMS - 2)
    part, lower = place - lower, lower.long()
    result = torch.zeros_like(probability).scatter_add(1, lower, probability * (1 - part))
    return result.scatter_add(1, lower + 1, probability * part)


class ProjectedFunction(Function):
    @staticmethod
    def forward(ctx, probability, reward):
        ctx.save_for_backward(probability, reward)
        return projected(probability, reward)

    @staticmethod
    def backward(ctx, g):
        probability, reward = ctx.saved_tensors
        width = (HIGH - LOW) / (ATOMS - 1)
        aim = reward[:, None] + GAMMA * torch.linspace(LOW, HIGH, ATOMS, dtype=probability.dtype)
        place = (aim.clamp(LOW, HIGH) - LOW) / width
        lower = place.floor().clamp(max=ATOMS - 2)
        part, lower = place - lower, lower.long()
        below, above = g.gather(1, lower), g.gather(1, lower + 1)
        inside = (aim >= LOW) & (aim <= HIGH)
        grad_reward = (probability * (above - below) * inside / width).sum(1)
        return below * (1 - part) + above * part, grad_reward


class CategoricalProjection(Function):
    """C51: the next state's distribution moved by the reward, and projected on the fixed support again."""

    @staticmethod
    def forward(ctx, probs, rewards):
        delta_z = (HIGH - LOW) / (ATOMS - 1)
        z = torch.linspace(LOW, HIGH, ATOMS, dtype=probs.dtype, device=probs.device)
        tz = torch.clamp(rewards.unsqueeze(1) + GAMMA * z, min=LOW, max=HIGH)
        b = (tz - LOW) / delta_z
        lo = b.long().clamp_max(ATOMS - 2)
        u_weight = b - lo
        m = torch.zeros_like(probs)
        m.scatter_add_(1, lo, probs * (1 - u_weight))
        m.scatter_add_(1, lo + 1, probs * u_weight)
        ctx.save_for_backward(probs, lo, u_weight)
        ctx.delta_z = delta_z
        return m

    @staticmethod
    def backward(ctx, grad_m):
        probs, lo, u_weight = ctx.saved_tensors
        g_l = torch.gather(grad_m, 1, lo)
        g_u = torch.gather(grad_m, 1, lo + 1)
        grad_probs = g_l + u_weight * (g_u - g_l)
        grad_rewards = ((g_u - g_l) * probs).sum(dim=1) / ctx.delta_z
        return grad_probs, grad_rewards


def actions():
    return {"mean": 0.7 * torch.randn(4, 2), "log_std": 0.4 * torch.randn(4, 2), "noise": 0.7 * torch.randn(4, 2)}


OPERATIONS = [
    Operation(
        "lambda returns, ends of episodes",
        LambdaReturnsFunction,
        TDLambda,
        lambda_returns,
        lambda: {"reward": torch.randn(6, 3), "value": torch.randn(7, 3), "done": (torch.rand(6, 3) < 0.3).long()},
        named="the carried gradient is not stopped at the end of an episode",
        kinds=("step left out", "only for some values", "missing term", "factor of one term", "another operand"),
        named_words=(r"not_done|\bdone", r"\bmask"),
        located=(r"gradient of (reward|rewards)\b",),
    ),
    Operation(
        "actions of a squashed normal, correction by its width",
        SquashedNormalFunction,
        TanhGaussianSample,
        squashed_normal,
        actions,
        named="the tanh's correction of the log-probability sends no gradient to the width",
        kinds=("missing term",),
        named_words=(r"correction", r"missing term|term .*missing|part .*missing"),
        located=(r"gradient of (log_std|log_sigma)",),
    ),
    Operation(
        "projected returns, beyond the support",
        ProjectedFunction,
        CategoricalProjection,
        projected,
        lambda: {"probability": torch.softmax(torch.randn(4, ATOMS), 1), "reward": 1.5 * torch.randn(4)},
        named="atoms that the clamp moved to the ends of the support send a gradient to the reward",
        kinds=("step left out", "only for some values", "only at bounds"),
        named_words=(r"clamp", r"\btz\b", r"inside|bound|outside|support"),
        located=(r"gradient of (reward|rewards)\b",),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "action values, sum for the mean",
            DuelingHead.apply,
            action_values,
            lambda: {"value": torch.randn(4, 1), "advantage": torch.randn(4, 5)},
        ),
        named="the sum over the actions is subtracted, where the mean belongs",
        kinds=("factor of one term", "another operand"),
        named_words=(r"\bmean\b", r"1/5|0\.2\b|number of|times 5|5 times|\b5\b"),
        located=(r"gradient of advantage",),
    ),
]
