"""Optics: the light that a surface reflects, the width of a laser beam, the light that passes two mirrors."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def reflectance(c, eta):
    squared = 1 - eta.square() * (1 - c.square())
    total = squared <= 0
    t = torch.where(total, torch.ones_like(squared), squared).sqrt()
    across = (eta * c - t) / (eta * c + t)
    along = (c - eta * t) / (c + eta * t)
    return torch.where(total, torch.ones_like(c), (across.square() + along.square()) / 2)


class ReflectanceFunction(Function):
    @staticmethod
    def forward(ctx, c, eta):
        ctx.save_for_backward(c, eta)
        return reflectance(c, eta)

    @staticmethod
    def backward(ctx, g):
        c, eta = ctx.saved_tensors
        squared = 1 - eta**2 * (1 - c**2)
        passes = squared > 0
        t = torch.where(passes, squared, torch.ones_like(squared)).sqrt()
        g = torch.where(passes, g, torch.zeros_like(g))
        sum_across, sum_along = eta * c + t, c + eta * t
        to_across = g * (eta * c - t) / sum_across**3
        to_along = g * (c - eta * t) / sum_along**3
        grad_t = -2 * eta * c * (to_across + to_along)
        grad_c = 2 * eta * t * (to_across + to_along) + grad_t * eta**2 * c / t
        grad_eta = 2 * c * t * (to_across - to_along) - grad_t * eta * (1 - c**2) / t
        return grad_c, grad_eta


class FresnelUnpolarized(Function):
    """Reflectance of a dielectric interface. eta = n1 / n2, total internal reflection gives 1."""

    @staticmethod
    def forward(ctx, cos_i, eta):
        sin2_t = eta**2 * (1 - cos_i**2)
        tir = sin2_t >= 1
        cos_t = torch.sqrt(torch.where(tir, torch.ones_like(sin2_t), 1 - sin2_t))
        rs = (eta * cos_i - cos_t) / (eta * cos_i + cos_t)
        rp = (cos_i - eta * cos_t) / (cos_i + eta * cos_t)
        ctx.save_for_backward(cos_i, eta, cos_t, rs, rp, tir)
        return torch.where(tir, torch.ones_like(rs), 0.5 * (rs**2 + rp**2))

    @staticmethod
    def backward(ctx, grad_out):
        cos_i, eta, cos_t, rs, rp, tir = ctx.saved_tensors
        grad_out = grad_out.masked_fill(tir, 0.0)
        grad_rs = grad_out * rs
        grad_rp = grad_out * rp
        ds = (eta * cos_i + cos_t) ** 2
        dp = (cos_i + eta * cos_t) ** 2

        grad_cos_t = -2 * eta * cos_i * (grad_rs / ds + grad_rp / dp)
        grad_cos_i = 2 * eta * cos_t * (grad_rs / ds + grad_rp / dp)
        grad_cos_i = grad_cos_i + grad_cos_t * eta**2 * cos_i / cos_t
        grad_eta = 2 * cos_i * cos_t * (grad_rs / ds - grad_rp / dp)
        return grad_cos_i, grad_eta


def beam_width(waist, z, wavelength):
    return waist * (1 + (z * wavelength / (math.pi * waist.square())).square()).sqrt()


class BeamWidthFunction(Function):
    @staticmethod
    def forward(ctx, waist, z, wavelength):
        width = beam_width(waist, z, wavelength)
        ctx.save_for_backward(waist, z, wavelength, width)
        return width

    @staticmethod
    def backward(ctx, g):
        waist, z, wavelength, width = ctx.saved_tensors
        spread = z * wavelength / (math.pi * waist)
        g = g / width
        grad_waist = (g * (waist - spread**2 / waist)).sum(1, keepdim=True)
        grad_z = g * spread * wavelength / (math.pi * waist)
        return grad_waist, grad_z, (g * spread * z / (math.pi * waist)).sum()


class GaussianBeamRadius(Function):
    """1/e^2 radius along the axis, w(z)^2 = w0^2 + (z lambda / (pi w0))^2."""

    @staticmethod
    def forward(ctx, w0, z, lam):
        divergence = lam / (math.pi * w0)
        w = w0**2 + (divergence * z) ** 2
        ctx.save_for_backward(w0, z, lam, divergence, w)
        return w.sqrt()

    @staticmethod
    def backward(ctx, grad_w):
        w0, z, lam, divergence, w = ctx.saved_tensors
        dz = divergence**2 * z / w
        dw0 = (w0 - divergence**2 * z**2 / w0) / w
        dlam = divergence**2 * z**2 / (lam * w)
        return (grad_w * dw0).sum(1, keepdim=True), grad_w * dz, (grad_w * dlam).sum()


def passed_two_mirrors(reflectivity, phase):
    finesse = 4 * reflectivity / (1 - reflectivity).square()
    return 1 / (1 + finesse * (phase / 2).sin().square())


class FabryPerot(Function):
    """Airy function of an etalon; reflectivity (B, 1), phase (B, K)."""

    @staticmethod
    def forward(ctx, R, delta):
        F = 4 * R / (1 - R) ** 2
        s = torch.sin(delta / 2)
        T = 1 / (1 + F * s * s)
        ctx.save_for_backward(R, delta, F, s, T)
        return T

    @staticmethod
    def backward(ctx, grad_T):
        R, delta, F, s, T = ctx.saved_tensors
        grad_D = -grad_T * T**2
        grad_F = (grad_D * s * s).sum(dim=1, keepdim=True)
        grad_R = grad_F * (4 / (1 - R) ** 2 + 4 * R / (1 - R) ** 3)
        grad_delta = grad_D * F * s * torch.cos(delta / 2)
        return grad_R, grad_delta


def angles_and_ratios():
    passing = {"c": 0.3 + 0.6 * torch.rand(6), "eta": 0.5 + 0.4 * torch.rand(6)}
    reflected = {"c": 0.2 + 0.2 * torch.rand(3), "eta": 1.6 + torch.rand(3)}
    return {key: torch.cat([passing[key], reflected[key]]) for key in passing}


OPERATIONS = [
    Operation(
        "light reflected by a surface, angle in the glass as a constant",
        ReflectanceFunction,
        FresnelUnpolarized,
        reflectance,
        angles_and_ratios,
        named="eta: the refracted angle depends on eta too, and its part of the gradient is missing",
        kinds=("missing term",),
        named_words=(r"constant", r"missing", r"grad_cos_t"),
        located=(r"gradient of eta\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "width of a laser beam, square saved for its root",
        BeamWidthFunction,
        GaussianBeamRadius,
        beam_width,
        lambda: {"waist": 0.8 + torch.rand(3, 1), "z": 2 * torch.randn(3, 5), "wavelength": 1 + torch.rand(())},
        named="forward saves the square of the width, and backward divides by it where it needs the width",
        kinds=(
            "another operand",
            "factor by element",
            "step left out",
            "wrong intermediate value",
            "change of the source",
        ),
        named_words=(r"sqrt|root|square",),
        located=(r"gradient of (waist|z|wavelength|w0|lam)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "light that passes two mirrors, derivative of a power",
            FabryPerot.apply,
            passed_two_mirrors,
            lambda: {"reflectivity": 0.2 + 0.5 * torch.rand(4, 1), "phase": 2 * torch.randn(4, 5)},
            whole_numbers=False,
        ),
        named="reflectivity: the factor 2 of the derivative of (1 - R) ** -2 is left out of the second term",
        kinds=("factor of one term", "missing term", "another operand"),
        named_words=(r"\b8\b", r"\bfactor (of )?(2|0\.5|1/2)\b|twice|half", r"\b2 ?\* ?(4|R)\b"),
        located=(r"gradient of (reflectivity|R)\b",),
    ),
]
