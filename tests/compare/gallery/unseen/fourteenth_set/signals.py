"""Signals: smoothing by a penalty, the end of a fitted parabola, a cepstrum, energies over their recent mean."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EPS = 0.1
TAPS = (3 / 35, -5 / 35, -3 / 35, 9 / 35, 31 / 35)
SMOOTH, ALPHA, DELTA, ROOT = 0.3, 0.8, 2.0, 0.5


def second_differences(x):
    one = torch.eye(x.shape[1], dtype=x.dtype)
    return one[2:] - 2 * one[1:-1] + one[:-2]


def penalized(x, log_weight):
    d = second_differences(x)
    matrix = torch.eye(x.shape[1], dtype=x.dtype) + torch.exp(log_weight) * d.T @ d
    return torch.linalg.solve(matrix, x.T).T


class PenalizedFunction(Function):
    @staticmethod
    def forward(ctx, x, log_weight):
        y = penalized(x, log_weight)
        ctx.save_for_backward(y, log_weight)
        return y

    @staticmethod
    def backward(ctx, g):
        y, log_weight = ctx.saved_tensors
        d = second_differences(y)
        grad_x = penalized(g, log_weight)
        return grad_x, -torch.exp(log_weight) * ((grad_x @ d.T) * (y @ d.T)).sum()


class WhittakerSmoother(Function):
    @staticmethod
    def forward(ctx, x, log_lam):
        n = x.size(1)
        D = torch.diff(torch.eye(n, dtype=x.dtype), n=2, dim=0)
        lam = log_lam.exp()
        A = torch.eye(n, dtype=x.dtype) + lam * (D.t() @ D)
        ctx.save_for_backward(x, lam, A, D)
        return torch.linalg.solve(A, x.t()).t()

    @staticmethod
    def backward(ctx, grad_out):
        x, lam, A, D = ctx.saved_tensors
        grad_x = torch.linalg.solve(A, grad_out.t()).t()
        grad_lam = -((grad_x @ D.t()) * (x @ D.t())).sum()
        return grad_x, grad_lam * lam


def end_of_parabola(x):
    n = x.shape[1] - len(TAPS) + 1
    return sum(tap * x[:, k : k + n] for k, tap in enumerate(TAPS))


class EndOfParabolaFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.width = x.shape[1]
        return end_of_parabola(x)

    @staticmethod
    def backward(ctx, g):
        grad = g.new_zeros(g.shape[0], ctx.width)
        for k, tap in enumerate(TAPS):
            grad[:, k : k + g.shape[1]] += tap * g
        return grad


class SavitzkyGolayEnd(Function):
    @staticmethod
    def forward(ctx, signal):
        coeffs = torch.tensor(TAPS, dtype=signal.dtype)
        ctx.save_for_backward(coeffs)
        return signal.unfold(1, coeffs.numel(), 1) @ coeffs

    @staticmethod
    def backward(ctx, grad):
        (coeffs,) = ctx.saved_tensors
        margin = coeffs.numel() - 1
        padded = grad.new_zeros(grad.size(0), grad.size(1) + 2 * margin)
        padded[:, margin : margin + grad.size(1)] = grad
        return padded.unfold(1, coeffs.numel(), 1) @ coeffs


def cepstrum(x):
    spectrum = torch.fft.fft(x)
    return torch.fft.ifft(torch.log(spectrum.real**2 + spectrum.imag**2 + EPS) / 2).real


class CepstrumFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return cepstrum(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        spectrum = torch.fft.fft(x)
        to_logarithm = torch.fft.fft(g).real
        return torch.fft.ifft(to_logarithm * spectrum / (spectrum.real**2 + spectrum.imag**2 + EPS)).real


class RealCepstrum(Function):
    @staticmethod
    def forward(ctx, frame):
        X = torch.fft.fft(frame, dim=-1)
        power = (X * X.conj()).real + EPS
        ctx.save_for_backward(X, power)
        return torch.fft.ifft(0.5 * power.log(), dim=-1).real

    @staticmethod
    def backward(ctx, grad_c):
        X, power = ctx.saved_tensors
        grad_log = torch.fft.fft(grad_c, dim=-1).real
        grad_X = grad_log * X.conj() / power
        return torch.fft.ifft(grad_X, dim=-1).real


def over_recent_energy(energy):
    recent = [energy[:, 0]]
    for t in range(1, energy.shape[1]):
        recent.append((1 - SMOOTH) * recent[-1] + SMOOTH * energy[:, t])
    return (energy / (torch.stack(recent, 1) + EPS) ** ALPHA + DELTA) ** ROOT - DELTA**ROOT


class PCEN(Function):
    @staticmethod
    def forward(ctx, E):
        M = torch.empty_like(E)
        M[:, 0] = E[:, 0]
        for t in range(1, E.size(1)):
            M[:, t] = (1 - SMOOTH) * M[:, t - 1] + SMOOTH * E[:, t]
        gain = (M + EPS).pow(-ALPHA)
        base = E * gain + DELTA
        ctx.save_for_backward(E, M, gain, base)
        return base.pow(ROOT) - DELTA**ROOT

    @staticmethod
    def backward(ctx, grad_out):
        E, M, gain, base = ctx.saved_tensors
        grad_base = grad_out * ROOT * base.pow(ROOT - 1)
        grad_E = grad_base * gain
        grad_M = -ALPHA * grad_base * E * gain / (M + EPS)
        carry = torch.zeros_like(E[:, 0])
        for t in range(E.size(1) - 1, -1, -1):
            carry = grad_M[:, t] + (1 - SMOOTH) * carry
            grad_E[:, t] += SMOOTH * carry
        return grad_E


OPERATIONS = [
    Operation(
        "smoothing by a penalty, differences before smoothing",
        PenalizedFunction,
        WhittakerSmoother,
        penalized,
        lambda: {"x": torch.randn(3, 7), "log_weight": torch.tensor(0.4)},
        named="log_weight: the differences of x itself are taken, where those of the smoothed result belong",
        kinds=("another operand", "step left out"),
        named_words=(r"\bx\b.*(place|instead)|(place|instead).*\bx\b", r"penalized|solve|smoothed"),
        located=(r"gradient of log_weight",),
    ),
    Operation(
        "end of a parabola, order of the taps",
        EndOfParabolaFunction,
        SavitzkyGolayEnd,
        end_of_parabola,
        lambda: (torch.randn(2, 11),),
        named="backward correlates with the taps in forward's order, where the reversed order belongs",
        kinds=("flipped", "not transposed", "permuted"),
        named_words=(r"flip", r"revers", r"order of"),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "cepstrum, conjugated spectrum",
        CepstrumFunction,
        RealCepstrum,
        cepstrum,
        lambda: (torch.randn(3, 7),),
        named="the spectrum is conjugated in the derivative of log |X|, so the gradient is reversed in time",
        kinds=("conjugated", "another operand", "flipped", "permuted"),
        named_words=(r"conj", r"flip", r"revers", r"\bfft\b.*ifft|ifft.*\bfft\b"),
        located=(r"gradient of (x|input 0)",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "energies over their recent mean, first step",
            PCEN.apply,
            over_recent_energy,
            lambda: (torch.rand(3, 6) * 2 + 0.6,),
        ),
        named="the mean begins at the first energy with the factor 1; backward gives that step the factor 0.3",
        kinds=("only at borders", "only at some indices", "missing term", "factor of one term"),
        named_words=(r"border", r"\bfirst\b|column 0|\[:, 0\]|\b0\]|index 0"),
        located=(r"gradient of (energy|input 0)",),
    ),
]
