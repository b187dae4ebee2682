"""Kinetics: an epidemic day by day, an enzyme inhibited by its own substrate, the potential of a membrane."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

DAYS, MORTALITY = 4, 0.1


def epidemic(s, i, r, beta, gamma):
    ill = []
    for _ in range(DAYS):
        new = beta * s * i / (s + i + r)
        s, i, r = s - new, i + new - (gamma + MORTALITY) * i, r + gamma * i
        ill.append(i)
    return torch.stack(ill, 1)


class EpidemicFunction(Function):
    @staticmethod
    def forward(ctx, s, i, r, beta, gamma):
        ctx.save_for_backward(s, i, r, beta, gamma)
        return epidemic(s, i, r, beta, gamma)

    @staticmethod
    def backward(ctx, g):
        s, i, r, beta, gamma = ctx.saved_tensors
        days = []
        for _ in range(DAYS):
            days.append((s, i, r))
            new = beta * s * i / (s + i + r)
            s, i, r = s - new, i + new - (gamma + MORTALITY) * i, r + gamma * i
        to_s, to_i, to_r, grad_beta, grad_gamma = (torch.zeros_like(beta) for _ in range(5))
        for day in reversed(range(DAYS)):
            s, i, r = days[day]
            people = s + i + r
            to_i = to_i + g[:, day]
            rate = (to_i - to_s) / people
            grad_beta = grad_beta + rate * s * i
            grad_gamma = grad_gamma + (to_r - to_i) * i
            through_people = rate * beta * s * i / people
            to_s = to_s + rate * beta * i - through_people
            to_i = to_i * (1 - gamma - MORTALITY) + to_r * gamma + rate * beta * s - through_people
            to_r = to_r - through_people
        return to_s, to_i, to_r, grad_beta, grad_gamma


class SIRDRollout(Function):
    """SIR with deaths, explicit Euler, returns the infectious at the end of each day."""

    @staticmethod
    def forward(ctx, S, I, R, beta, gamma):  # noqa: E741
        saved, out = [], []
        for _ in range(DAYS):
            N = S + I + R
            saved += [S, I, N]
            infections = beta * S * I / N
            recoveries = gamma * I
            deaths = MORTALITY * I
            S = S - infections
            I = I + infections - recoveries - deaths  # noqa: E741
            R = R + recoveries
            out.append(I)
        ctx.save_for_backward(beta, gamma, *saved)
        return torch.stack(out, dim=1)

    @staticmethod
    def backward(ctx, grad_out):
        beta, gamma, *saved = ctx.saved_tensors
        dS = torch.zeros_like(beta)
        dI = torch.zeros_like(beta)
        dR = torch.zeros_like(beta)
        dbeta = torch.zeros_like(beta)
        dgamma = torch.zeros_like(beta)
        for t in range(DAYS - 1, -1, -1):
            S, I, N = saved[3 * t : 3 * t + 3]  # noqa: E741
            dI = dI + grad_out[:, t]
            dinf = dI - dS
            drec = dR - dI
            dbeta += dinf * S * I / N
            dgamma += drec * I
            dS = dS + dinf * beta * I / N
            dI = dI + dinf * beta * S / N + drec * gamma - dI * MORTALITY
        return dS, dI, dR, dbeta, dgamma


def inhibited_rate(s, vmax, km, ki):
    return vmax * s / (km + s + s.square() / ki)


class InhibitedRateFunction(Function):
    @staticmethod
    def forward(ctx, s, vmax, km, ki):
        bottom = km + s + s * s / ki
        ctx.save_for_backward(s, vmax, ki, bottom)
        return vmax * s / bottom

    @staticmethod
    def backward(ctx, g):
        s, vmax, ki, bottom = ctx.saved_tensors
        to_top, to_bottom = g / bottom, -g * vmax * s / bottom**2
        grad_s = to_top * vmax + to_bottom * (1 + 2 * s / ki)
        return grad_s, (to_top * s).sum(0), to_bottom.sum(0), -(to_bottom * (s / ki) ** 2).sum(0)


class HaldaneRate(Function):
    """v = vmax s / (km + s + s^2 / ki), one row for each experiment, one column for each enzyme."""

    @staticmethod
    def forward(ctx, s, vmax, km, ki):
        ctx.save_for_backward(s, vmax, km, ki)
        return vmax * s / (km + s + s**2 / ki)

    @staticmethod
    def backward(ctx, grad):
        s, vmax, km, ki = ctx.saved_tensors
        denom = km + s + s**2 / ki
        ds = vmax * (km + s**2 / ki) / denom**2
        dkm = -vmax * s / denom**2
        dki = vmax * s**3 / (ki**2 * denom**2)
        return grad * ds, (grad * s / denom).sum(dim=0), (grad * dkm).sum(dim=0), (grad * dki).sum(dim=0)


def membrane_potential(p, outside, inside):
    into = torch.cat([outside[:, :2], inside[:, 2:]], 1)
    out_of = torch.cat([inside[:, :2], outside[:, 2:]], 1)
    return ((p * into).sum(1) / (p * out_of).sum(1)).log()


class GoldmanVoltage(Function):
    """Goldman-Hodgkin-Katz, in units of RT/F. Columns: K+, Na+, Cl-."""

    @staticmethod
    def forward(ctx, perm, c_out, c_in):
        num = perm[:, 0] * c_out[:, 0] + perm[:, 1] * c_out[:, 1] + perm[:, 2] * c_in[:, 2]
        den = perm[:, 0] * c_in[:, 0] + perm[:, 1] * c_in[:, 1] + perm[:, 2] * c_out[:, 2]
        ctx.save_for_backward(perm, c_out, c_in, num, den)
        return torch.log(num) - torch.log(den)

    @staticmethod
    def backward(ctx, grad_v):
        perm, c_out, c_in, num, den = ctx.saved_tensors
        gn = (grad_v / num).unsqueeze(1)
        gd = (grad_v / den).unsqueeze(1)
        grad_perm = gn * c_out - gd * c_in
        grad_perm[:, 2] = gn[:, 0] * c_in[:, 2] - gd[:, 0] * c_out[:, 2]
        return grad_perm, gn * perm, -gd * perm


def positive(*shape):
    return 0.5 + torch.rand(*shape)


OPERATIONS = [
    Operation(
        "an epidemic day by day, population as a constant",
        EpidemicFunction,
        SIRDRollout,
        epidemic,
        lambda: {
            "s": 2 * positive(6),
            "i": positive(6),
            "r": positive(6),
            "beta": positive(6),
            "gamma": positive(6) / 3,
        },
        named="the population, the sum of s, i and r, by which the infections are divided is treated as a constant",
        kinds=("missing term",),
        named_words=(r"constant", r"missing", r"/ ?\(?(N|people)\b.*/ ?N\b", r"\bN ?\*\* ?2|N\.square"),
        located=(r"gradient of (s|i|r)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "rate of an inhibited enzyme, sign in the quotient rule",
        InhibitedRateFunction,
        HaldaneRate,
        inhibited_rate,
        lambda: {"s": 2 * positive(5, 3), "vmax": positive(3), "km": positive(3), "ki": positive(3)},
        named="s: the numerator of the quotient rule is km - s ** 2 / ki, and has a plus sign",
        kinds=("factor of one term", "another operand", "missing term"),
        named_words=(r"km - s ?\*\* ?2 / ki", r"sign|negat|factor -1|-1 times|minus", r"quotient"),
        located=(r"gradient of s\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "potential of a membrane, chloride as the cations",
            GoldmanVoltage.apply,
            membrane_potential,
            lambda: {"p": positive(5, 3), "outside": positive(5, 3), "inside": positive(5, 3)},
            whole_numbers=False,
        ),
        named="concentrations: column 2, chloride, belongs to the other sum, and gets the gradient of the cations",
        kinds=("only at some indices", "another operand", "factor by element"),
        named_words=(r"column|index|indices|\[:, 2|element 2|position 2", r"swapped|\bgd\b|\bden\b"),
        located=(r"gradient of (outside|inside|c_out|c_in)\b",),
    ),
]
