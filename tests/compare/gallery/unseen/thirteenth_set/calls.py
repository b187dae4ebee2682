"""Calls of a Function: inputs that require gradients, outputs that are used, broadcast dimensions, conjugates."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

EPS = 0.1


def shifted_features(x, scale, shift):
    return x * (1 + scale[:, None]) + shift[:, None]


class FiLM(Function):
    @staticmethod
    def forward(ctx, x, gamma, beta):
        ctx.save_for_backward(x, gamma)
        return x * (1 + gamma.unsqueeze(1)) + beta.unsqueeze(1)

    @staticmethod
    def backward(ctx, grad_out):
        x, gamma = ctx.saved_tensors
        grad_x = grad_gamma = grad_beta = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_out * (1 + gamma.unsqueeze(1))
        if ctx.needs_input_grad[1]:
            grad_gamma = (grad_out * x).sum(dim=1)
        elif ctx.needs_input_grad[2]:
            grad_beta = grad_out.sum(dim=1)
        return grad_x, grad_gamma, grad_beta


def moments(x):
    mean = x.mean(1)
    return mean, torch.log(((x - mean[:, None]) ** 2).mean(1) + EPS)


class MomentsFunction(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return moments(x)

    @staticmethod
    def backward(ctx, to_mean, to_spread):
        (x,) = ctx.saved_tensors
        grad = torch.zeros_like(x)
        if to_mean is not None:
            grad = grad + to_mean[:, None] / x.shape[1]
        if to_spread is not None:
            centred = x - x.mean(1, keepdim=True)
            grad = grad + to_spread[:, None] * 2 * centred / x.shape[1] / ((centred**2).mean(1, keepdim=True) + EPS)
        return grad


class MeanLogVar(Function):
    @staticmethod
    def forward(ctx, x):
        mean = x.mean(dim=1)
        xc = x - mean.unsqueeze(1)
        var = xc.square().mean(dim=1) + EPS
        ctx.save_for_backward(xc, var)
        ctx.set_materialize_grads(False)
        return mean, var.log()

    @staticmethod
    def backward(ctx, grad_mean, grad_logvar):
        if grad_logvar is None:
            return None
        xc, var = ctx.saved_tensors
        n = xc.size(1)
        grad = 2 / n * xc * (grad_logvar / var).unsqueeze(1)
        if grad_mean is not None:
            grad = grad + grad_mean.unsqueeze(1) / n
        return grad


def scaled_maps(x, scale):
    return x * torch.exp(scale)


class ScaledMapsFunction(Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return scaled_maps(x, scale)

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        grad_x = g * torch.exp(scale)
        return grad_x, (grad_x * x).sum((0, 2), keepdim=True)


def unbroadcast(grad, shape):
    for dim, size in enumerate(shape):
        if size == 1:
            grad = grad.sum(dim)
    return grad.reshape(shape)


class LogScale(Function):
    @staticmethod
    def forward(ctx, x, log_scale):
        scale = log_scale.exp()
        y = x * scale
        ctx.save_for_backward(scale, y)
        return y

    @staticmethod
    def backward(ctx, grad_y):
        scale, y = ctx.saved_tensors
        return grad_y * scale, unbroadcast(grad_y * y, scale.shape)


def of_modulus_1(z):
    return z / z.abs()


class UnitModulusFunction(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return of_modulus_1(z)

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        unit = z / z.abs()
        return (g - unit * (unit.conj() * g).real) / z.abs()


class PhaseOnly(Function):
    @staticmethod
    def forward(ctx, spectrum):
        magnitude = spectrum.abs()
        phase = spectrum / magnitude
        ctx.save_for_backward(phase, magnitude)
        return phase

    @staticmethod
    def backward(ctx, grad):
        phase, magnitude = ctx.saved_tensors
        radial = (grad * phase).real
        return (grad - radial * phase) / magnitude


OPERATIONS = [
    Operation(
        "mean and spread, mean alone",
        MomentsFunction,
        MeanLogVar,
        moments,
        lambda: (torch.randn(4, 5),),
        named="if the spread is not used, backward returns nothing, though the mean has a gradient",
        kinds=("zero", "none", "missing term"),
        named_words=(r"\bzero\b|\bnone\b|\bno gradient", r"output 0|mean|unused|alone|one output"),
        located=(r"gradient of (x|input 0)",),
    ),
    Operation(
        "scale of maps, dimensions that were 1",
        ScaledMapsFunction,
        LogScale,
        scaled_maps,
        lambda: {"x": torch.randn(2, 3, 4, 4), "scale": torch.randn(1, 3, 1, 4) / 2},
        named="scale: after the first sum the dimensions have moved, so the second is over the last one",
        kinds=("wrong sum", "missing term"),
        named_words=(r"\bsum\b|dimension",),
        located=(r"gradient of scale",),
    ),
    Operation(
        "numbers of modulus 1, projection",
        UnitModulusFunction,
        PhaseOnly,
        of_modulus_1,
        lambda: (torch.randn(4, 3, dtype=torch.complex64),),
        named="the projection onto the number lacks its conjugate",
        kinds=("conjugated", "another operand"),
        named_words=(r"conj",),
        located=(r"gradient of (z|input 0)",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "features scaled and shifted, one of two",
            FiLM.apply,
            shifted_features,
            lambda: {"x": torch.randn(4, 5), "scale": torch.randn(4), "shift": torch.randn(4)},
        ),
        named="shift gets a gradient only if scale requires none",
        kinds=("depends on which inputs require a gradient", "none", "zero"),
        named_words=(r"requires? a gradient|requires_grad|needs_input_grad|require gradients", r"\bnone\b|zero"),
        located=(r"gradient of shift",),
    ),
]
