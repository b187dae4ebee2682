"""Tables and beliefs: a table of a wave, a belief over states, a series with seasons, phases."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def wave(table, phase):
    place = phase * len(table)
    below = place.detach().floor().long()
    part = place - below
    return table[below % len(table)] * (1 - part) + table[(below + 1) % len(table)] * part


class WaveFunction(Function):
    @staticmethod
    def forward(ctx, table, phase):
        ctx.save_for_backward(table, phase)
        return wave(table, phase)

    @staticmethod
    def backward(ctx, g):
        table, phase = ctx.saved_tensors
        n = len(table)
        below = (phase * n).floor().long()
        part = phase * n - below
        to_table = torch.zeros_like(table).index_add(0, below % n, g * (1 - part))
        to_table = to_table.index_add(0, (below + 1) % n, g * part)
        return to_table, g * n * (table[(below + 1) % n] - table[below % n])


class Wavetable(Function):
    """Linear lookup in a periodic table (N,) at phases (T,) in cycles."""

    @staticmethod
    def forward(ctx, table, phase):
        n = table.shape[0]
        pos = phase * n
        i0 = torch.floor(pos).long()
        frac = pos - i0
        i0 = i0 % n
        i1 = (i0 + 1) % n
        ctx.save_for_backward(table, i0, i1, frac)
        return (1 - frac) * table[i0] + frac * table[i1]

    @staticmethod
    def backward(ctx, grad_out):
        table, i0, i1, frac = ctx.saved_tensors
        grad_table = torch.zeros_like(table)
        grad_table.scatter_add_(0, i0, grad_out * (1 - frac))
        grad_table.scatter_add_(0, i1, grad_out * frac)
        grad_phase = grad_out * (table[i1] - table[i0])
        return grad_table, grad_phase


def belief(prior, transition, likelihood):
    joint = prior @ transition * likelihood
    return joint / joint.sum(1, keepdim=True)


class BeliefFunction(Function):
    @staticmethod
    def forward(ctx, prior, transition, likelihood):
        ctx.save_for_backward(prior, transition, likelihood)
        return belief(prior, transition, likelihood)

    @staticmethod
    def backward(ctx, g):
        prior, transition, likelihood = ctx.saved_tensors
        predicted = prior @ transition
        total = (predicted * likelihood).sum(1, keepdim=True)
        to_joint = (g - (g * predicted * likelihood).sum(1, keepdim=True) / total) / total
        to_predicted = to_joint * likelihood
        return to_predicted @ transition.T, prior.T @ to_predicted, to_joint * predicted


class BayesFilterStep(Function):
    """Predict with transition (S, S), weigh by likelihood (B, S), normalize; prior (B, S)."""

    @staticmethod
    def forward(ctx, prior, transition, likelihood):
        predicted = prior @ transition
        joint = predicted * likelihood
        norm = joint.sum(dim=-1, keepdim=True)
        ctx.save_for_backward(prior, transition, likelihood, predicted, norm)
        return joint / norm

    @staticmethod
    def backward(ctx, grad):
        prior, transition, likelihood, predicted, norm = ctx.saved_tensors
        grad_joint = grad / norm
        grad_likelihood = grad_joint * predicted
        grad_predicted = grad_joint * likelihood
        return grad_predicted @ transition.t(), prior.t() @ grad_predicted, grad_likelihood


def seasonal(level, slope, season):
    T = 7
    trend = level[:, None] + slope[:, None] * torch.arange(T).to(level)
    return trend * (1 + season[:, torch.arange(T) % season.size(1)])


class SeasonalFunction(Function):
    @staticmethod
    def forward(ctx, level, slope, season):
        ctx.save_for_backward(level, slope, season)
        return seasonal(level, slope, season)

    @staticmethod
    def backward(ctx, g):
        level, slope, season = ctx.saved_tensors
        t, place = torch.arange(7).to(level), torch.arange(7) % season.size(1)
        to_trend = g * (1 + season[:, place])
        to_season = torch.zeros_like(season).index_add(1, place, g * (level[:, None] + slope[:, None] * t))
        return to_trend.sum(1), to_trend @ t, to_season


class SeasonalTrend(Function):
    """Seven steps of (level + slope t) (1 + season[t mod P]), level and slope (B,), season (B, P)."""

    @staticmethod
    def forward(ctx, level, slope, season):
        t = torch.arange(7, dtype=level.dtype, device=level.device)
        idx = torch.arange(7, device=level.device) % season.shape[1]
        trend = level.unsqueeze(1) + slope.unsqueeze(1) * t
        factor = 1 + season[:, idx]
        ctx.save_for_backward(t, idx, trend, factor, season)
        return trend * factor

    @staticmethod
    def backward(ctx, grad_y):
        t, idx, trend, factor, season = ctx.saved_tensors
        grad_level = grad_slope = grad_season = None
        if ctx.needs_input_grad[0]:
            grad_level = (grad_y * factor).sum(1)
        if ctx.needs_input_grad[1]:
            grad_slope = (grad_y * t).sum(1)
        if ctx.needs_input_grad[2]:
            grad_season = torch.zeros_like(season)
            grad_season.index_add_(1, idx, grad_y * trend)
        return grad_level, grad_slope, grad_season


def phasor(z):
    return z / z.abs()


class PhasorFunction(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return phasor(z)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        size = z.abs()
        unit = z / size
        return (g - unit * (g * unit.conj()).real) / size


class PhaseOnly(Function):
    """Keeps the phase of a spectrum z: z / |z|."""

    @staticmethod
    def forward(ctx, z):
        magnitude = z.abs()
        unit = z / magnitude
        ctx.save_for_backward(unit, magnitude)
        return unit

    @staticmethod
    def backward(ctx, grad):
        unit, magnitude = ctx.saved_tensors
        radial = (grad * unit).real
        return (grad - radial * unit) / magnitude


OPERATIONS = [
    Operation(
        "table of a wave, phase in cycles",
        WaveFunction,
        Wavetable,
        wave,
        lambda: {"table": torch.randn(5), "phase": 2 * torch.rand(8)},
        named="phase: the length n of the table is missing as a factor (position = phase * n)",
        kinds=("constant factor", "step left out"),
        named_words=(r"factor.*\b5\b|\b5\b.*(factor|times)|1/5|0\.2\b", r"\bn\b|length|shape|size"),
        located=(r"gradient of phase\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "belief over states, total as a constant",
        BeliefFunction,
        BayesFilterStep,
        belief,
        lambda: {
            "prior": torch.rand(4, 3) + 0.1,
            "transition": torch.rand(3, 3) + 0.1,
            "likelihood": torch.rand(4, 3) + 0.1,
        },
        named="the total that normalizes is taken as a constant: the term of its gradient is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing|left out|lacks|not (added|subtracted)", r"norm|total|quotient"),
        located=(r"gradient of (prior|transition|likelihood)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "trend times seasons, slope without the seasons",
        SeasonalFunction,
        SeasonalTrend,
        seasonal,
        lambda: {"level": torch.randn(3), "slope": torch.randn(3), "season": torch.randn(3, 3) / 2},
        named="slope: the factor 1 + season is missing",
        kinds=("step left out", "factor by element", "factor of one term"),
        named_words=(r"\bfactor\b", r"season"),
        located=(r"gradient of slope\b",),
    ),
    Operation(
        "phase of a spectrum, radial part not conjugated",
        PhasorFunction,
        PhaseOnly,
        phasor,
        lambda: {"z": torch.randn(3, 4, dtype=torch.complex64)},
        named="unit is not conjugated in the radial part, (grad * unit).real",
        kinds=("conjugated",),
        named_words=(r"conj",),
        located=(r"gradient of z\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
