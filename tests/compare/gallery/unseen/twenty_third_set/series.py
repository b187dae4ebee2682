"""Series and pictures: a picture's running sums, kurtosis, autocovariances, logarithms of mel energies."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def area_sums(image, gain):
    return (gain[:, None, None] * image).cumsum(1).cumsum(2)


class AreaSumsFunction(Function):
    @staticmethod
    def forward(ctx, image, gain):
        ctx.save_for_backward(image, gain)
        return area_sums(image, gain)

    @staticmethod
    def backward(ctx, g):
        image, gain = ctx.saved_tensors
        back = g.flip(1, 2).cumsum(1).cumsum(2).flip(1, 2)
        return gain[:, None, None] * back, (back * image).sum((1, 2))


class IntegralImage(Function):
    """Summed-area table of images (B, H, W), each times its exposure (B,)."""

    @staticmethod
    def forward(ctx, image, exposure):
        ctx.save_for_backward(image, exposure)
        scaled = image * exposure.view(-1, 1, 1)
        return torch.cumsum(torch.cumsum(scaled, dim=-2), dim=-1)

    @staticmethod
    def backward(ctx, grad_table):
        image, exposure = ctx.saved_tensors
        grad = torch.cumsum(grad_table.flip(-1), dim=-1).flip(-1)
        grad = torch.cumsum(grad, dim=-2)
        grad_image = grad * exposure.view(-1, 1, 1)
        grad_exposure = (grad * image).sum(dim=(-2, -1))
        return grad_image, grad_exposure


def kurtosis(x):
    centred = x - x.mean(1, keepdim=True)
    return (centred**4).mean(1) / (centred**2).mean(1) ** 2


class KurtosisFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return kurtosis(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        z = x - x.mean(1, keepdim=True)
        second, fourth = (z**2).mean(1, keepdim=True), (z**4).mean(1, keepdim=True)
        to_z = 4 * g[:, None] / x.size(1) * (z**3 / second**2 - fourth * z / second**3)
        return to_z - to_z.mean(1, keepdim=True)


class Kurtosis(Function):
    """m4 / m2^2 of each row of x (B, N)."""

    @staticmethod
    def forward(ctx, x):
        d = x - x.mean(dim=1, keepdim=True)
        m2 = d.pow(2).mean(dim=1, keepdim=True)
        m4 = d.pow(4).mean(dim=1, keepdim=True)
        ctx.save_for_backward(d, m2, m4)
        return (m4 / m2.pow(2)).squeeze(1)

    @staticmethod
    def backward(ctx, grad_output):
        d, m2, m4 = ctx.saved_tensors
        n = d.shape[1]
        grad = grad_output.unsqueeze(1)
        grad_m4 = grad / m2.pow(2)
        grad_m2 = -2 * grad * m4 / m2.pow(3)
        return grad_m4 * 4 * d.pow(3) / n + grad_m2 * 2 * d / n


def lagged_products(x):
    T = x.size(1)
    return torch.stack([(x[:, lag:] * x[:, : T - lag]).sum(1) / T for lag in range(4)], 1)


class LaggedProductsFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return lagged_products(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        to_x = torch.zeros_like(x)
        for lag in range(4):
            early, late = x[:, : x.size(1) - lag], x[:, lag:]
            to_x[:, lag:] += g[:, lag, None] * early
            to_x[:, : x.size(1) - lag] += g[:, lag, None] * late
        return to_x / x.size(1)


class Autocovariance(Function):
    """r[k] = sum over t of x[t] x[t+k] / T for k = 0..3, of series x (B, T) with mean zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        T = x.shape[1]
        r = x.new_empty(x.shape[0], 4)
        for k in range(4):
            r[:, k] = (x[:, : T - k] * x[:, k:]).sum(dim=1) / T
        return r

    @staticmethod
    def backward(ctx, grad_r):
        (x,) = ctx.saved_tensors
        T = x.shape[1]
        grad_x = torch.zeros_like(x)
        for k in range(4):
            g = grad_r[:, k : k + 1] / T
            grad_x[:, : T - k] += g * x[:, k:]
        return grad_x


def log_energies(frames, bank):
    return (torch.fft.rfft(frames).abs() ** 2 @ bank + 0.1).log()


class LogEnergiesFunction(Function):
    @staticmethod
    def forward(ctx, frames, bank):
        ctx.save_for_backward(frames, bank)
        return log_energies(frames, bank)

    @staticmethod
    def backward(ctx, g):
        frames, bank = ctx.saved_tensors
        n = torch.arange(frames.size(1)).to(frames)
        angle = 2 * torch.pi / len(n) * n[: len(n) // 2 + 1, None] * n
        re, im = frames @ angle.cos().T, frames @ angle.sin().T
        power = re**2 + im**2
        to_energy = g / (power @ bank + 0.1)
        to_power = to_energy @ bank.T
        return 2 * (to_power * re) @ angle.cos() + 2 * (to_power * im) @ angle.sin(), power.T @ to_energy


class LogMel(Function):
    """log(|rfft(frames)|^2 @ mel + 0.1) for frames (B, N) and mel (N // 2 + 1, M)."""

    @staticmethod
    def forward(ctx, frames, mel):
        spec = torch.fft.rfft(frames)
        power = spec.real**2 + spec.imag**2
        energy = power @ mel + 0.1
        ctx.save_for_backward(spec, power, energy, mel)
        ctx.n = frames.shape[-1]
        return energy.log()

    @staticmethod
    def backward(ctx, grad):
        spec, power, energy, mel = ctx.saved_tensors
        grad_energy = grad / energy
        grad_spec = 2 * (grad_energy @ mel.t()) * spec
        grad_frames = torch.fft.irfft(grad_spec, n=ctx.n) * ctx.n
        return grad_frames, power.t() @ grad_energy


OPERATIONS = [
    Operation(
        "running sums of a picture, rows from the top",
        AreaSumsFunction,
        IntegralImage,
        area_sums,
        lambda: {"image": torch.randn(2, 4, 5), "gain": torch.randn(2)},
        named="backward flips only the columns: the running sum over rows is not reversed",
        kinds=("flipped", "wrong sum", "step left out"),
        named_words=(r"flip|revers",),
        located=(r"gradient of (image|gain|exposure)\b",),
    ),
    Operation(
        "kurtosis of rows, mean as a constant",
        KurtosisFunction,
        Kurtosis,
        kurtosis,
        lambda: (torch.randn(4, 6),),
        named="x: the mean that is subtracted depends on x too; the mean of the gradient is not subtracted",
        kinds=("missing term", "step left out"),
        named_words=(r"\bmean\b", r"missing|left out|lacks|not (added|subtracted)"),
        located=(r"gradient of (x|input 0)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "covariances at several lags, the later sample",
        LaggedProductsFunction,
        Autocovariance,
        lagged_products,
        lambda: (torch.randn(3, 7),),
        named="x: each product has two samples, and the term of the later one is missing",
        kinds=("missing term",),
        named_words=(r"missing|left out|lacks|not added", r"x\[:, ?k:\]|later|second"),
        located=(r"gradient of (x|input 0)\b",),
    ),
    Operation(
        "logarithms of mel energies, inverse transform for the transpose",
        LogEnergiesFunction,
        LogMel,
        log_energies,
        lambda: {"frames": torch.randn(3, 8), "bank": torch.rand(5, 3)},
        named="frames: irfft counts the inner frequencies twice, so it is no transpose of rfft",
        kinds=("factor by element", "factor of one term", "another operand"),
        named_words=(r"frequenc|half|twice|doubl", r"irfft|rfft|transpose|adjoint"),
        located=(r"gradient of frames\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
