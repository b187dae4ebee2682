"""Gases: pressure of a real gas, vapour pressure of a mixture."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def gas_pressure(n, v, t, a, b):
    return n * t / (v - n * b) - a * n**2 / v**2


class GasPressureFunction(Function):
    @staticmethod
    def forward(ctx, n, v, t, a, b):
        ctx.save_for_backward(n, v, t, a, b)
        return n * t / (v - n * b) - a * n**2 / v**2

    @staticmethod
    def backward(ctx, g):
        n, v, t, a, b = ctx.saved_tensors
        w = v - n * b
        gn = g * (t * v / w**2 - 2 * a * n / v**2)
        gv = g * (2 * a * n**2 / v**3 - n * t / w**2)
        return gn, gv, g * n / w, -(g * n**2 / v**2).sum(), (g * n**2 * t / w**2).sum()


class VanDerWaalsPressure(Function):
    """Pressure of a real gas, with the gas constant in the temperature's unit."""

    @staticmethod
    def forward(ctx, n, V, T, a, b):
        free = V - n * b
        ctx.save_for_backward(n, V, T, a, free)
        return n * T / free - a * (n / V) ** 2

    @staticmethod
    def backward(ctx, grad_p):
        n, V, T, a, free = ctx.saved_tensors
        grad_free = -grad_p * n * T / free**2
        grad_n = grad_p * (T / free - 2 * a * n / V**2)
        grad_V = grad_free + grad_p * 2 * a * n**2 / V**3
        grad_T = grad_p * n / free
        grad_a = -(grad_p * (n / V) ** 2).sum()
        grad_b = -(grad_free * n).sum()
        return grad_n, grad_V, grad_T, grad_a, grad_b


def vapour_pressure(x, t, a, b, c):
    return (x * 10 ** (a - b / (c + t[:, None]))).sum(1)


class VapourPressureFunction(Function):
    @staticmethod
    def forward(ctx, x, t, a, b, c):
        p = torch.exp(math.log(10) * (a - b / (c + t[:, None])))
        ctx.save_for_backward(x, t, b, c, p)
        return (x * p).sum(1)

    @staticmethod
    def backward(ctx, g):
        x, t, b, c, p = ctx.saved_tensors
        g = g[:, None]
        u = c + t[:, None]
        ga = g * x * p * math.log(10)
        gu = ga * b / u**2
        return g * p, gu.sum(1), ga.sum(0), -(ga / u).sum(0), gu.sum(0)


class AntoineMixture(Function):
    """Raoult's law with Antoine vapour pressures: rows are temperatures, columns substances."""

    @staticmethod
    def forward(ctx, x, T, A, B, C):
        ct = C + T.unsqueeze(1)
        psat = torch.pow(10.0, A - B / ct)
        ctx.save_for_backward(x, B, ct, psat)
        return torch.sum(x * psat, dim=1)

    @staticmethod
    def backward(ctx, grad_p):
        x, B, ct, psat = ctx.saved_tensors
        grad_p = grad_p.unsqueeze(1)
        grad_x = grad_p * psat
        grad_exponent = grad_p * x * psat
        grad_A = grad_exponent.sum(0)
        grad_B = -(grad_exponent / ct).sum(0)
        grad_ct = grad_exponent * B / ct**2
        return grad_x, grad_ct.sum(1), grad_A, grad_B, grad_ct.sum(0)


OPERATIONS = [
    Operation(
        "pressure of a real gas, amount in the free volume",
        GasPressureFunction,
        VanDerWaalsPressure,
        gas_pressure,
        lambda: {
            "n": torch.rand(6) + 0.5,
            "v": torch.rand(6) + 2,
            "t": torch.rand(6) + 1,
            "a": torch.rand(()) + 0.5,
            "b": torch.rand(()) * 0.5,
        },
        named="n: the free volume also depends on n; the term grad_free * -b is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing|left out|leaves out", r"free|\bb\b"),
        located=(r"gradient of n\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "vapour of a mixture, base of the power",
        VapourPressureFunction,
        AntoineMixture,
        vapour_pressure,
        lambda: {
            "x": torch.rand(4, 3),
            "t": torch.rand(4),
            "a": torch.rand(3),
            "b": torch.rand(3) + 0.5,
            "c": torch.rand(3) + 1,
        },
        named="t, a, b, c: the derivative of 10^u lacks the factor ln 10",
        kinds=("constant factor", "step left out"),
        named_words=(r"ln ?\(?10|log\(10", r"2\.30", r"0\.434", r"factor"),
        located=(r"gradients? of (t|T|a|A|b|B|c|C)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
