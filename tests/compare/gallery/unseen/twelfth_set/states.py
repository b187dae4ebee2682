"""States: a Kalman filter, the best path."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


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
