"""Sequences: gaps of time, a stack, a Kalman filter, the best path through states."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def decaying_over_gaps(x, gaps, tau):
    state, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        state = state * (-gaps[:, t, None] / tau).exp() + x[:, t]
        states.append(state)
    return torch.stack(states, 1)


class GapDecayFunction(Function):
    @staticmethod
    def forward(ctx, x, gaps, tau):
        states = decaying_over_gaps(x, gaps, tau)
        ctx.save_for_backward(gaps, tau, states)
        return states

    @staticmethod
    def backward(ctx, g):
        gaps, tau, states = ctx.saved_tensors
        grad_x, grad_gaps, grad_tau = torch.zeros_like(g), torch.zeros_like(gaps), torch.zeros_like(tau)
        carry = torch.zeros_like(g[:, 0])
        for t in reversed(range(g.shape[1])):
            carry = carry + g[:, t]
            grad_x[:, t] = carry
            decay = (-gaps[:, t, None] / tau).exp()
            if t > 0:
                grad_rate = carry * states[:, t - 1] * decay
                grad_gaps[:, t] = -(grad_rate / tau).sum(1)
                grad_tau += (grad_rate * gaps[:, t, None] / tau**2).sum(0)
            carry = carry * decay
        return grad_x, grad_gaps, grad_tau


class TimeDecay(Function):
    @staticmethod
    def forward(ctx, x, dt, tau):
        decay = torch.exp(-dt.unsqueeze(-1) / tau)
        h = x.clone()
        for t in range(1, x.size(1)):
            h[:, t] += decay[:, t] * h[:, t - 1]
        ctx.save_for_backward(dt, tau, decay, h)
        return h

    @staticmethod
    def backward(ctx, grad_h):
        dt, tau, decay, h = ctx.saved_tensors
        dh = grad_h.clone()
        d_decay = torch.zeros_like(decay)
        for t in range(dh.size(1) - 1, 0, -1):
            d_decay[:, t] = dh[:, t] * h[:, t - 1]
            dh[:, t - 1] += decay[:, t] * dh[:, t]
        d_exponent = d_decay * decay
        d_dt = -(d_exponent / tau).sum(-1)
        d_tau = (d_exponent * dt.unsqueeze(-1)).sum((0, 1))
        return dh, d_dt, d_tau


def stack_update(stack, top, push, pop):
    keep = 1 - push - pop
    pushed = torch.cat([top[:, None], stack[:, :-1]], 1)
    popped = torch.cat([stack[:, 1:], torch.zeros_like(top)[:, None]], 1)
    return push[:, None, None] * pushed + pop[:, None, None] * popped + keep[:, None, None] * stack


def stack_inputs():
    gates = torch.rand(3, 3).softmax(1)
    return {"stack": torch.randn(3, 4, 2), "top": torch.randn(3, 2), "push": gates[:, 0], "pop": gates[:, 1]}


class StackUpdateFunction(Function):
    @staticmethod
    def forward(ctx, stack, top, push, pop):
        ctx.save_for_backward(stack, top, push, pop)
        return stack_update(stack, top, push, pop)

    @staticmethod
    def backward(ctx, g):
        stack, top, push, pop = ctx.saved_tensors
        keep = 1 - push - pop
        grad_stack = keep[:, None, None] * g
        grad_stack[:, :-1] += push[:, None, None] * g[:, 1:]
        grad_stack[:, 1:] += pop[:, None, None] * g[:, :-1]
        kept = (g * stack).sum((1, 2))
        pushed = (g[:, 0] * top).sum(1) + (g[:, 1:] * stack[:, :-1]).sum((1, 2))
        popped = (g[:, :-1] * stack[:, 1:]).sum((1, 2))
        return grad_stack, push[:, None] * g[:, 0], pushed - kept, popped - kept


class ContinuousStack(Function):
    @staticmethod
    def forward(ctx, stack, value, push, pop):
        a, b = push.view(-1, 1, 1), pop.view(-1, 1, 1)
        down = stack.roll(1, dims=1)
        down[:, 0] = value
        up = stack.roll(-1, dims=1)
        up[:, -1] = 0
        ctx.save_for_backward(stack, down, up, a, b)
        return a * down + b * up + (1 - a - b) * stack

    @staticmethod
    def backward(ctx, grad):
        stack, down, up, a, b = ctx.saved_tensors
        grad_push = (grad * (down - stack)).sum((1, 2))
        grad_pop = (grad * (up - stack)).sum((1, 2))
        grad_value = (a * grad)[:, 0]
        grad_stack = (1 - a - b) * grad + (a * grad).roll(-1, dims=1) + (b * grad).roll(1, dims=1)
        return grad_stack, grad_value, grad_push, grad_pop


def kalman(y, process, noise):
    mean, variance, means = torch.zeros_like(y[:, 0]), torch.ones_like(process), []
    for t in range(y.shape[1]):
        predicted = variance + process
        gain = predicted / (predicted + noise)
        mean = mean + gain * (y[:, t] - mean)
        variance = (1 - gain) * predicted
        means.append(mean)
    return torch.stack(means, 1)


class KalmanFunction(Function):
    @staticmethod
    def forward(ctx, y, process, noise):
        ctx.save_for_backward(y, process, noise)
        return kalman(y, process, noise)

    @staticmethod
    def backward(ctx, g):
        y, process, noise = ctx.saved_tensors
        predictions, gains, before = [], [], []
        mean, variance = torch.zeros_like(y[:, 0]), torch.ones_like(process)
        for t in range(y.shape[1]):
            predictions.append(variance + process)
            gains.append(predictions[t] / (predictions[t] + noise))
            before.append(mean)
            mean = mean + gains[t] * (y[:, t] - mean)
            variance = (1 - gains[t]) * predictions[t]
        grad_y, grad_process, grad_noise = torch.zeros_like(y), torch.zeros_like(process), torch.zeros_like(noise)
        grad_mean, grad_variance = torch.zeros_like(mean), torch.zeros_like(variance)
        for t in reversed(range(y.shape[1])):
            predicted, gain = predictions[t], gains[t]
            grad_mean = grad_mean + g[:, t]
            grad_y[:, t] = gain * grad_mean
            grad_gain = (grad_mean * (y[:, t] - before[t])).sum() - grad_variance * predicted
            grad_mean = grad_mean * (1 - gain)
            total = predicted + noise
            grad_predicted = grad_variance * (1 - gain) + grad_gain * noise / total**2
            grad_noise = grad_noise - grad_gain * predicted / total**2
            grad_process = grad_process + grad_predicted
            grad_variance = grad_predicted
        return grad_y, grad_process, grad_noise


class ScalarKalman(Function):
    @staticmethod
    def forward(ctx, y, q, r):
        m, p = torch.zeros_like(y[:, 0]), torch.ones_like(q)
        ctx.steps = []
        out = torch.empty_like(y)
        for t in range(y.size(1)):
            p_pred = p + q
            s = p_pred + r
            k = p_pred / s
            innovation = y[:, t] - m
            m = m + k * innovation
            p = (1 - k) * p_pred
            out[:, t] = m
            ctx.steps.append((p_pred, s, k, innovation))
        return out

    @staticmethod
    def backward(ctx, grad_out):
        dm = torch.zeros_like(grad_out[:, 0])
        dp = dq = dr = torch.zeros_like(ctx.steps[0][0])
        dy = torch.empty_like(grad_out)
        for t in range(grad_out.size(1) - 1, -1, -1):
            p_pred, s, k, innovation = ctx.steps[t]
            dm = dm + grad_out[:, t]
            dy[:, t] = k * dm
            dk = (dm * innovation).sum() - dp * p_pred
            dm = (1 - k) * dm
            dp = (1 - k) * dp + dk / s
            dr = dr - dk * p_pred / s**2
            dq = dq + dp
        return dy, dq, dr


def best_path_score(scores, transitions):
    best = scores[:, 0]
    for t in range(1, scores.shape[1]):
        best = (best[:, :, None] + transitions).max(1).values + scores[:, t]
    return best.max(1).values


class BestPathFunction(Function):
    @staticmethod
    def forward(ctx, scores, transitions):
        best, pointers = scores[:, 0], []
        for t in range(1, scores.shape[1]):
            best, pointer = (best[:, :, None] + transitions).max(1)
            best = best + scores[:, t]
            pointers.append(pointer)
        value, state = best.max(1)
        path = [state]
        for pointer in reversed(pointers):
            path.append(pointer.gather(1, path[-1][:, None])[:, 0])
        ctx.save_for_backward(torch.stack(path[::-1], 1), scores, transitions)
        return value

    @staticmethod
    def backward(ctx, g):
        path, scores, transitions = ctx.saved_tensors
        grad_scores = torch.zeros_like(scores).scatter(2, path[:, :, None], g[:, None, None].expand(*path.shape, 1))
        grad_transitions = torch.zeros_like(transitions)
        steps = g[:, None].expand(-1, path.shape[1] - 1)
        grad_transitions.index_put_((path[:, :-1], path[:, 1:]), steps, accumulate=True)
        return grad_scores, grad_transitions


class Viterbi(Function):
    @staticmethod
    def forward(ctx, emissions, transitions):
        batch, length, states = emissions.shape
        delta = emissions[:, 0]
        psi = torch.zeros(batch, length, states, dtype=torch.long)
        for t in range(1, length):
            delta, psi[:, t] = (delta.unsqueeze(2) + transitions).max(dim=1)
            delta = delta + emissions[:, t]
        score, last = delta.max(dim=1)
        ctx.save_for_backward(psi, last, transitions)
        return score

    @staticmethod
    def backward(ctx, grad_score):
        psi, last, transitions = ctx.saved_tensors
        batch, length, states = psi.shape
        grad_e = grad_score.new_zeros(batch, length, states)
        grad_t = torch.zeros_like(transitions)
        for b in range(batch):
            state = last[b].item()
            grad_e[b, length - 1, state] = grad_score[b]
            for t in range(length - 2, -1, -1):
                previous = psi[b, t, state].item()
                grad_e[b, t, previous] = grad_score[b]
                grad_t[previous, state] += grad_score[b]
                state = previous
        return grad_e, grad_t


OPERATIONS = [
    Operation(
        "decay over gaps of time, inner derivative of tau",
        GapDecayFunction,
        TimeDecay,
        decaying_over_gaps,
        lambda: {"x": torch.randn(3, 5, 2), "gaps": torch.rand(3, 5) + 0.3, "tau": torch.rand(2) * 2 + 1.5},
        named="tau: the exponent is -gap / tau, and the square of tau that divides its derivative is left out",
        kinds=("step left out", "factor by element", "another operand"),
        named_words=(r"divi[ds]|\bdiv\b|reciprocal|1 ?/", r"\btau\b.*(square|left out|\*\*|²)", r"factor of its own"),
        located=(r"gradient of tau",),
        options={"whole_numbers": False},
    ),
    Operation(
        "update of a stack, rolled",
        StackUpdateFunction,
        ContinuousStack,
        stack_update,
        stack_inputs,
        named="backward rolls the gradient around: the top's goes to the last place, the last one's to the top",
        kinds=("missing term", "only at borders", "only at some indices", "another operand", "step left out"),
        named_words=(
            r"roll|wrap|circular|around",
            r"\bfirst\b.*\blast\b|\blast\b.*\bfirst\b",
            r"\bends?\b|border|\b0 (and|or) 3\b",
            r"one too many|extra",
        ),
        located=(r"gradient of stack",),
    ),
    Operation(
        "Kalman filter, quotient of the gain",
        KalmanFunction,
        ScalarKalman,
        kalman,
        lambda: {"y": torch.randn(3, 5), "process": torch.rand(()) / 2 + 0.2, "noise": torch.rand(()) + 0.5},
        named="the gain is p / (p + noise): its derivative by p has only the first term of the quotient rule",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"detach", r"no effect"),
        located=(r"gradient of (process|q)",),
        options={"whole_numbers": False},
    ),
    Operation(
        "best path, pointers of the step before",
        BestPathFunction,
        Viterbi,
        best_path_score,
        lambda: {"scores": torch.randn(3, 5, 4) * 2, "transitions": torch.randn(4, 4)},
        named="the path is traced back with the pointers of step t, where those of step t + 1 belong",
        kinds=("another operand", "shifted", "permuted", "missing term"),
        named_words=(r"shift|off by one|one step", r"path|pointer|arg ?max|\bind(ex|ices)\b", r"step t"),
        located=(r"gradient of (scores|emissions)",),
        options={"kinks": True, "whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
