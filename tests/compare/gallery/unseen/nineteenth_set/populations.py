"""Populations: prey of several kinds, diversity of a sample, age classes, generations that crowd each other."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def eaten(prey, attack, handling):
    return attack * prey / (1 + (attack * handling * prey).sum(-1, keepdim=True))


class EatenFunction(Function):
    @staticmethod
    def forward(ctx, prey, attack, handling):
        ctx.save_for_backward(prey, attack, handling)
        return eaten(prey, attack, handling)

    @staticmethod
    def backward(ctx, g):
        prey, attack, handling = ctx.saved_tensors
        busy = 1 + (attack * handling * prey).sum(-1, keepdim=True)
        to_busy = -(g * attack * prey).sum(-1, keepdim=True) / busy**2
        to_met = g / busy + to_busy * handling
        return to_met * attack, (to_met * prey).sum(0), (to_busy * attack * prey).sum(0)


class HollingTypeTwo(Function):
    """Functional response of a predator to several kinds of prey."""

    @staticmethod
    def forward(ctx, N, a, h):
        encounter = a * N
        time = 1 + (encounter * h).sum(dim=-1, keepdim=True)
        rate = encounter / time
        ctx.save_for_backward(N, a, h, time, rate)
        return rate

    @staticmethod
    def backward(ctx, grad_rate):
        N, a, h, time, rate = ctx.saved_tensors
        grad_encounter = grad_rate / time - grad_rate * rate * h / time
        grad_N = grad_encounter * a
        grad_a = (grad_encounter * N).sum(dim=0)
        grad_time = -(grad_rate * rate).sum(dim=-1, keepdim=True) / time
        grad_h = (grad_time * a * N).sum(dim=0)
        return grad_N, grad_a, grad_h


def diversity(counts, order):
    share = counts / counts.sum(-1, keepdim=True)
    return (share**order).sum(-1) ** (1 / (1 - order))


class DiversityFunction(Function):
    @staticmethod
    def forward(ctx, counts, order):
        ctx.save_for_backward(counts, order)
        return diversity(counts, order)

    @staticmethod
    def backward(ctx, g):
        counts, q = ctx.saved_tensors
        total = counts.sum(-1, keepdim=True)
        share = counts / total
        powers = share**q
        power_sum = powers.sum(-1, keepdim=True)
        result = power_sum ** (1 / (1 - q))
        to_sum = g[:, None] * result / (power_sum * (1 - q))
        to_share = to_sum * q * powers / share
        to_counts = (to_share - (to_share * share).sum(-1, keepdim=True)) / total
        to_order = to_sum * (powers * share.log()).sum(-1, keepdim=True)
        return to_counts, (to_order + g[:, None] * result * power_sum.log() / (1 - q) ** 2).sum()


class HillNumber(Function):
    @staticmethod
    def forward(ctx, n, q):
        p = n / n.sum(dim=1, keepdim=True)
        pq = p.pow(q)
        s = pq.sum(dim=1)
        D = s.pow(1 / (1 - q))
        ctx.save_for_backward(n, q, p, pq, s, D)
        return D

    @staticmethod
    def backward(ctx, grad_D):
        n, q, p, pq, s, D = ctx.saved_tensors
        grad_s = grad_D * D / (s * (1 - q))
        grad_p = grad_s.unsqueeze(1) * q * p.pow(q - 1)
        grad_n = grad_p / n.sum(dim=1, keepdim=True)
        dq = grad_s * (pq * p.log()).sum(dim=1)
        dq = dq + grad_D * D * s.log() / (1 - q) ** 2
        return grad_n, dq.sum()


def age_classes(start, survival, births):
    classes, total = start, []
    for _ in range(4):
        newborn = (births * classes).sum().reshape(1)
        classes = torch.cat([newborn, survival * classes[:-1]])
        total.append(classes.sum())
    return torch.stack(total)


class AgeClassesFunction(Function):
    @staticmethod
    def forward(ctx, start, survival, births):
        ctx.save_for_backward(start, survival, births)
        return age_classes(start, survival, births)

    @staticmethod
    def backward(ctx, g):
        start, survival, births = ctx.saved_tensors
        years = [start]
        for _ in range(3):
            newborn = (births * years[-1]).sum().reshape(1)
            years.append(torch.cat([newborn, survival * years[-1][:-1]]))
        later = torch.zeros_like(start)
        to_survival, to_births = torch.zeros_like(survival), torch.zeros_like(births)
        for year in reversed(range(4)):
            later = later + g[year]
            to_survival = to_survival + later[1:] * years[year][:-1]
            to_births = to_births + later[0] * years[year]
            aged = torch.cat([survival * later[1:], torch.zeros_like(start[:1])])
            later = births * later[0] + aged
        return later, to_survival, to_births


class LeslieProjection(Function):
    """Size of a population in the next four years, by a Leslie matrix."""

    @staticmethod
    def forward(ctx, n0, s, f):
        n = n0.clone()
        history, totals = [n0], []
        for _ in range(4):
            new = torch.empty_like(n)
            new[0] = torch.dot(f, n)
            new[1:] = s * n[:-1]
            n = new
            history.append(n)
            totals.append(n.sum())
        ctx.save_for_backward(s, f, *history)
        return torch.stack(totals)

    @staticmethod
    def backward(ctx, grad_totals):
        s, f, *history = ctx.saved_tensors
        grad_s, grad_f = torch.zeros_like(s), torch.zeros_like(f)
        grad_n = torch.zeros_like(f)
        for year in (3, 2, 1, 0):
            grad_n = grad_n + grad_totals[year]
            n = history[year]
            grad_s += grad_n[1:] * n[:-1]
            grad_f += grad_n[0] * n
            grad_n[:-1] = s * grad_n[1:]
            grad_n[-1] = 0
            grad_n = grad_n + f * grad_n[0]
        return grad_n, grad_s, grad_f


def crowded(size, growth, crowding):
    return size * torch.exp(growth - size @ crowding.T)


class CrowdedFunction(Function):
    @staticmethod
    def forward(ctx, size, growth, crowding):
        ctx.save_for_backward(size, growth, crowding)
        return crowded(size, growth, crowding)

    @staticmethod
    def backward(ctx, g):
        size, growth, crowding = ctx.saved_tensors
        factor = torch.exp(growth - size @ crowding.T)
        to_exponent = g * factor * size
        return g * factor - to_exponent @ crowding, to_exponent.sum(0), -to_exponent.T @ size


class RickerCompetition(Function):
    @staticmethod
    def forward(ctx, N, r, alpha):
        pressure = N @ alpha.t()
        growth = torch.exp(r - pressure)
        ctx.save_for_backward(N, alpha, growth)
        return N * growth

    @staticmethod
    def backward(ctx, grad_next):
        N, alpha, growth = ctx.saved_tensors
        grad_pressure = -grad_next * N * growth
        grad_N = grad_next * growth + grad_pressure @ alpha.t()
        grad_r = -grad_pressure.sum(dim=0)
        grad_alpha = grad_pressure.t() @ N
        return grad_N, grad_r, grad_alpha


OPERATIONS = [
    Operation(
        "prey of several kinds, time for the other kinds",
        EatenFunction,
        HollingTypeTwo,
        eaten,
        lambda: {"prey": 0.2 + torch.rand(4, 3), "attack": 0.5 + torch.rand(3), "handling": 0.5 + torch.rand(3)},
        named="prey and attack: in the part through the common time each kind counts itself only, without a sum",
        kinds=("another operand", "step left out", "missing term", "wrong sum"),
        named_words=(r"\bsum\b|grad_time", r"only.*(same|own|itself)", r"diagonal|across|between"),
        located=(r"gradient of (prey|N)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "diversity of a sample, counts for shares",
        DiversityFunction,
        HillNumber,
        diversity,
        lambda: {"counts": 0.5 + 4 * torch.rand(3, 5), "order": 1.5 + torch.rand(())},
        named="counts: the part through their sum, by which they are divided, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"\bsum\b", r"divisor|denominator|divi", r"centred", r"constant"),
        located=(r"gradient of (counts|n)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "age classes, first class written over",
        AgeClassesFunction,
        LeslieProjection,
        age_classes,
        lambda: {"start": 0.5 + torch.rand(4), "survival": 0.3 + 0.6 * torch.rand(3), "births": torch.rand(4)},
        named="the gradient of the newborn is read after the aged classes are written over it",
        kinds=("another operand", "wrong intermediate value"),
        named_words=(r"in.?place|overwrit|written over|before.*(chang|writ)|after.*(chang|writ)", r"grad_n\[0\]"),
        located=(r"gradient of (start|n0)\b",),
    ),
    Operation(
        "generations that crowd each other, matrix transposed",
        CrowdedFunction,
        RickerCompetition,
        crowded,
        lambda: {"size": 0.2 + torch.rand(4, 3), "growth": torch.rand(3), "crowding": torch.rand(3, 3)},
        named="size: the matrix of crowding is transposed in backward too, as in forward",
        kinds=("transposed", "not transposed"),
        named_words=(r"transpos|\.t\(\)",),
        located=(r"gradient of (size|N)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
