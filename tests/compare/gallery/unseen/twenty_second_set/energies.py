"""Energies: of a bond that may break, of a body's radiation, of charges in each other's field."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right


def bond_energy(r, depth, width, rest):
    return depth * (1 - torch.exp(-width * (r - rest))) ** 2


class BondEnergyFunction(Function):
    @staticmethod
    def forward(ctx, r, depth, width, rest):
        ctx.save_for_backward(r, depth, width, rest)
        return bond_energy(r, depth, width, rest)

    @staticmethod
    def backward(ctx, g):
        r, depth, width, rest = ctx.saved_tensors
        decay = torch.exp(-width * (r - rest))
        to_exponent = 2 * g * depth * (1 - decay) * decay
        to_r = to_exponent * width
        return to_r, (g * (1 - decay) ** 2).sum(0), (to_exponent * (r - rest)).sum(0), -to_r.sum(0)


class MorsePotential(Function):
    """V(r) = D (1 - exp(-a (r - r0)))^2 with D, a and r0 for each type of bond."""

    @staticmethod
    def forward(ctx, r, D, a, r0):
        e = torch.exp(-a * (r - r0))
        ctx.save_for_backward(r, D, a, e)
        return D * (1 - e) ** 2

    @staticmethod
    def backward(ctx, grad_V):
        r, D, a, e = ctx.saved_tensors
        common = grad_V * 2 * D * (1 - e) * e
        grad_r = common * a
        grad_D = (grad_V * (1 - e) ** 2).sum(dim=0)
        grad_a = (common * r).sum(dim=0)
        grad_r0 = -grad_r.sum(dim=0)
        return grad_r, grad_D, grad_a, grad_r0


def radiation(frequency, temperature):
    return frequency**3 / (torch.exp(frequency / temperature[:, None]) - 1)


class RadiationFunction(Function):
    @staticmethod
    def forward(ctx, frequency, temperature):
        ctx.save_for_backward(frequency, temperature)
        return radiation(frequency, temperature)

    @staticmethod
    def backward(ctx, g):
        frequency, temperature = ctx.saved_tensors
        t = temperature[:, None]
        grown = torch.exp(frequency / t)
        to_ratio = -g * frequency**3 * grown / (grown - 1) ** 2
        to_frequency = 3 * frequency**2 * g / (grown - 1) + to_ratio / t
        return to_frequency.sum(0), -(to_ratio * frequency / t**2).sum(1)


class PlanckLaw(Function):
    """Spectral radiance of black bodies, in units where all constants are 1: nu (M,), T (B,) -> (B, M)."""

    @staticmethod
    def forward(ctx, nu, T):
        x = nu[None, :] / T[:, None]
        denom = torch.exp(x) - 1.0
        ctx.save_for_backward(nu, T, x, denom)
        return nu.pow(3) / denom

    @staticmethod
    def backward(ctx, grad_B):
        nu, T, x, denom = ctx.saved_tensors
        ex = torch.exp(x)
        # d/dnu: quotient rule
        d_nu = (3 * nu.pow(2) * denom - nu.pow(3) * ex / T[:, None]) / denom.pow(2)
        # d/dT: dx/dT = -nu / T^2
        d_T = nu.pow(4) * ex / (T[:, None].pow(2) * denom)
        return (grad_B * d_nu).sum(0), (grad_B * d_T).sum(1)


def field_energies(charges, places):
    distance = (places[:, None] - places[None] + torch.eye(len(places)).to(places)[..., None]).norm(dim=2)
    others = 1 - torch.eye(len(places)).to(places)
    return 0.5 * charges * (others / distance * charges).sum(1)


class CoulombEnergy(Function):
    """Energy of every charge in the field of the others, half of each pair's: q (N,), pos (N, 3) -> (N,)."""

    @staticmethod
    def forward(ctx, q, pos):
        diff = pos.unsqueeze(1) - pos.unsqueeze(0)
        dist = diff.pow(2).sum(-1)
        dist.fill_diagonal_(1.0)
        inv_r = dist.rsqrt()
        inv_r.fill_diagonal_(0.0)
        ctx.save_for_backward(q, diff, inv_r)
        return 0.5 * q * (inv_r @ q)

    @staticmethod
    def backward(ctx, grad_E):
        q, diff, inv_r = ctx.saved_tensors
        grad_q = 0.5 * grad_E * (inv_r @ q) + 0.5 * (inv_r @ (grad_E * q))
        pair = 0.5 * (grad_E[:, None] + grad_E[None, :]) * q[:, None] * q[None, :]
        force = -pair * inv_r**2
        grad_pos = (force[..., None] * diff).sum(1)
        return grad_q, grad_pos


OPERATIONS = [
    Operation(
        "energy of bonds, width",
        BondEnergyFunction,
        MorsePotential,
        bond_energy,
        lambda: {
            "r": torch.rand(6, 4) * 2 + 0.5,
            "depth": torch.rand(4) + 0.5,
            "width": torch.rand(4) + 0.5,
            "rest": torch.rand(4) + 0.7,
        },
        named="width: its factor is r - rest, and backward takes r",
        kinds=("another operand", "missing term", "wrong sum"),
        named_words=(r"\br0\b|\brest\b", r"missing|another", r"common \* \(r - "),
        located=(r"gradient of (width|a)\b",),
    ),
    Operation(
        "radiation of bodies, square of the divisor",
        RadiationFunction,
        PlanckLaw,
        radiation,
        lambda: {"frequency": torch.rand(5) * 2 + 0.5, "temperature": torch.rand(3) + 0.6},
        named="temperature: the derivative of a quotient has the divisor squared, and backward divides by it once",
        kinds=("another operand", "step left out", "factor of one term", "factor by element"),
        named_words=(r"denom", r"squar|\*\* ?2|pow"),
        located=(r"gradient of (temperature|T)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "energy of charges, power of the distance",
            CoulombEnergy.apply,
            field_energies,
            lambda: {"charges": torch.randn(5), "places": torch.randn(5, 3)},
            whole_numbers=False,
        ),
        named="places: the derivative of 1 / r is the difference over the cube of r, and backward has the square",
        kinds=("another operand", "step left out", "factor by element"),
        named_words=(r"inv_r", r"cube|\*\* ?3|pow|power"),
        located=(r"gradient of (places|pos)\b",),
    ),
]
