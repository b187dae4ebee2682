"""Steps over time: smoothing with a trend, advantages, a controller."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

GAMMA, LAMBDA = 0.9, 0.8
ENDS = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]])


def holt(x, alpha, beta):
    level, trend = x[0], torch.zeros_like(x[0])
    levels = [level]
    for value in x[1:]:
        before = level
        level = alpha * value + (1 - alpha) * (before + trend)
        trend = beta * (level - before) + (1 - beta) * trend
        levels.append(level)
    return torch.stack(levels)


class HoltFunction(Function):
    @staticmethod
    def forward(ctx, x, alpha, beta):
        ctx.save_for_backward(x, alpha, beta)
        return holt(x, alpha, beta)

    @staticmethod
    def backward(ctx, g):
        x, alpha, beta = ctx.saved_tensors
        levels, trends = [x[0]], [torch.zeros_like(x[0])]
        for value in x[1:]:
            levels.append(alpha * value + (1 - alpha) * (levels[-1] + trends[-1]))
            trends.append(beta * (levels[-1] - levels[-2]) + (1 - beta) * trends[-1])
        grad_x, grad_alpha, grad_beta = torch.zeros_like(x), torch.zeros_like(alpha), torch.zeros_like(beta)
        to_level, to_trend = g[-1], torch.zeros_like(g[-1])
        for t in range(len(x) - 1, 0, -1):
            whole = to_level + beta * to_trend
            grad_beta += (to_trend * (levels[t] - levels[t - 1] - trends[t - 1])).sum()
            grad_alpha += (whole * (x[t] - levels[t - 1] - trends[t - 1])).sum()
            grad_x[t] = alpha * whole
            to_level = g[t - 1] + (1 - alpha) * whole - beta * to_trend
            to_trend = (1 - alpha) * whole + (1 - beta) * to_trend
        grad_x[0] = to_level
        return grad_x, grad_alpha, grad_beta


class DoubleExponentialSmoothing(Function):
    @staticmethod
    def forward(ctx, x, alpha, beta):
        level = torch.empty_like(x)
        trend = torch.zeros_like(x)
        level[0] = x[0]
        for t in range(1, x.shape[0]):
            level[t] = alpha * x[t] + (1 - alpha) * (level[t - 1] + trend[t - 1])
            trend[t] = beta * (level[t] - level[t - 1]) + (1 - beta) * trend[t - 1]
        ctx.save_for_backward(x, alpha, beta, level, trend)
        return level

    @staticmethod
    def backward(ctx, grad_level):
        x, alpha, beta, level, trend = ctx.saved_tensors
        dx = torch.zeros_like(x)
        dalpha = torch.zeros_like(alpha)
        dbeta = torch.zeros_like(beta)
        dl = torch.zeros_like(x[0])
        db = torch.zeros_like(x[0])
        for t in reversed(range(1, x.shape[0])):
            dl = dl + grad_level[t] + beta * db
            dbeta = dbeta + (db * (level[t] - level[t - 1] - trend[t - 1])).sum()
            dalpha = dalpha + (dl * (x[t] - level[t - 1] - trend[t - 1])).sum()
            dx[t] = alpha * dl
            carried = (1 - alpha) * dl
            dl, db = carried, carried + (1 - beta) * db
        dx[0] = dl + grad_level[0]
        return dx, dalpha, dbeta


def advantages(rewards, values):
    goes_on = (1 - ENDS).to(rewards.dtype)
    errors = rewards + GAMMA * goes_on * values[1:] - values[:-1]
    result, after = [], torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        after = errors[t] + GAMMA * LAMBDA * goes_on[t] * after
        result.insert(0, after)
    return torch.stack(result)


class AdvantagesFunction(Function):
    @staticmethod
    def forward(ctx, rewards, values):
        return advantages(rewards, values)

    @staticmethod
    def backward(ctx, g):
        goes_on = (1 - ENDS).to(g.dtype)
        to_errors = [g[0]]
        for t in range(1, len(g)):
            to_errors.append(g[t] + GAMMA * LAMBDA * goes_on[t - 1] * to_errors[-1])
        grad = torch.stack(to_errors)
        nothing = torch.zeros_like(grad[:1])
        return grad, torch.cat([nothing, GAMMA * goes_on * grad]) - torch.cat([grad, nothing])


class GeneralizedAdvantage(Function):
    @staticmethod
    def forward(ctx, rewards, values):
        not_done = 1.0 - ENDS.to(rewards)
        adv = torch.zeros_like(rewards)
        last = torch.zeros_like(rewards[0])
        for t in range(rewards.size(0) - 1, -1, -1):
            delta = rewards[t] + GAMMA * values[t + 1] * not_done[t] - values[t]
            last = delta + GAMMA * LAMBDA * not_done[t] * last
            adv[t] = last
        ctx.save_for_backward(not_done)
        return adv

    @staticmethod
    def backward(ctx, grad_adv):
        (not_done,) = ctx.saved_tensors
        grad_rewards = torch.empty_like(grad_adv)
        running = torch.zeros_like(grad_adv[0])
        for t in range(grad_adv.size(0)):
            running = grad_adv[t] + GAMMA * LAMBDA * not_done[t] * running
            grad_rewards[t] = running
        grad_values = grad_adv.new_zeros(grad_adv.size(0) + 1, grad_adv.size(1))
        grad_values[:-1] -= grad_rewards
        grad_values[1:] += GAMMA * not_done * grad_rewards
        return grad_rewards, grad_values


def controlled(error, gains):
    before = torch.cat([torch.zeros_like(error[:1]), error[:-1]])
    return gains[0] * error + gains[1] * error.cumsum(0) + gains[2] * (error - before)


class PID(Function):
    @staticmethod
    def forward(ctx, e, k):
        integral = torch.cumsum(e, dim=0)
        derivative = torch.diff(e, dim=0, prepend=torch.zeros_like(e[:1]))
        ctx.save_for_backward(e, integral, derivative, k)
        kp, ki, kd = k.unbind()
        return kp * e + ki * integral + kd * derivative

    @staticmethod
    def backward(ctx, grad_u):
        e, integral, derivative, k = ctx.saved_tensors
        kp, ki, kd = k.unbind()
        grad_k = torch.stack([(grad_u * e).sum(), (grad_u * integral).sum(), (grad_u * derivative).sum()])
        grad_e = kp * grad_u + kd * (grad_u - grad_u.roll(-1, 0))
        grad_e = grad_e + ki * (grad_u.sum(0) - grad_u.cumsum(0) + grad_u)
        return grad_e, grad_k


def sequence(*more):
    return lambda: (torch.randn(6, 3), *(torch.tensor(number) for number in more))


OPERATIONS = [
    Operation(
        "smoothing with a trend, level before",
        HoltFunction,
        DoubleExponentialSmoothing,
        holt,
        sequence(0.6, 0.3),
        named="the gradient of the level before lacks its part through the trend, - beta times the trend's gradient",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "advantages, ends of the step itself",
        AdvantagesFunction,
        GeneralizedAdvantage,
        advantages,
        lambda: {"rewards": torch.randn(6, 3), "values": torch.randn(7, 3)},
        named="the running gradient is cut where this step ends the episode, instead of where the step before does",
        kinds=("another operand", "shifted", "step left out"),
        named_words=(r"goes_on|mask|where", r"shift|step before|t - 1|place"),
        located=(r"gradient of rewards",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "controller, last step",
            PID.apply,
            controlled,
            lambda: {"error": torch.randn(6, 3), "gains": torch.rand(3) + 0.2},
        ),
        named="the roll takes the first step's gradient into the last step, where nothing follows",
        kinds=("only at borders", "missing term", "only at some indices", "another operand"),
        named_words=(r"border", r"\blast\b|row 5|\[5\b|index 5", r"circular|roll", r"one too many|extra"),
        located=(r"gradient of error",),
    ),
]
