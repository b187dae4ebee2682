"""Chemistry: activation by a ligand, competition for sites, angles between bonds, pressure of a real gas."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

BONDS = torch.tensor([[0, 1, 2], [1, 2, 3], [3, 1, 0], [2, 4, 0]])
STIFFNESS = 1.7
REST = -0.4
GAS, ATTRACTION, VOLUME = 0.8, 1.3, 0.4


def activation(dose, half, exponent):
    return dose**exponent / (half**exponent + dose**exponent)


class ActivationFunction(Function):
    @staticmethod
    def forward(ctx, dose, half, exponent):
        ctx.save_for_backward(dose, half, exponent)
        return activation(dose, half, exponent)

    @staticmethod
    def backward(ctx, g):
        dose, half, exponent = ctx.saved_tensors
        y = activation(dose, half, exponent)
        to_logit = g * y * (1 - y)
        grad_half = -(to_logit * exponent / half).sum(0)
        return to_logit * exponent / dose, grad_half, (to_logit * (dose / half).log()).sum(0)


class HillCurve(Function):
    @staticmethod
    def forward(ctx, x, k, n):
        xn, kn = x.pow(n), k.pow(n)
        ctx.save_for_backward(x, k, n, xn, kn)
        return xn / (kn + xn)

    @staticmethod
    def backward(ctx, grad_y):
        x, k, n, xn, kn = ctx.saved_tensors
        denom2 = (kn + xn) ** 2
        grad_x = grad_y * n * xn * kn / (x * denom2)
        grad_k = -(grad_y * n * xn * kn / (k * denom2)).sum(0)
        grad_n = (grad_y * xn * kn * torch.log(x) / denom2).sum(0)
        return grad_x, grad_k, grad_n


def occupied_sites(pressure, affinity):
    bound = affinity * pressure
    return bound / (1 + bound.sum(1, keepdim=True))


class OccupiedSitesFunction(Function):
    @staticmethod
    def forward(ctx, pressure, affinity):
        ctx.save_for_backward(pressure, affinity)
        return occupied_sites(pressure, affinity)

    @staticmethod
    def backward(ctx, g):
        pressure, affinity = ctx.saved_tensors
        y = occupied_sites(pressure, affinity)
        free = 1 - y.sum(1, keepdim=True)
        to_bound = free * (g - (g * y).sum(1, keepdim=True))
        return to_bound * affinity, (to_bound * pressure).sum(0)


class CompetitiveLangmuir(Function):
    @staticmethod
    def forward(ctx, p, K):
        Kp = K * p
        total = 1 + Kp.sum(dim=-1, keepdim=True)
        ctx.save_for_backward(p, K, Kp, total)
        return Kp / total

    @staticmethod
    def backward(ctx, grad_theta):
        p, K, Kp, total = ctx.saved_tensors
        grad_Kp = grad_theta * (total - Kp) / total.pow(2)
        return grad_Kp * K, (grad_Kp * p).sum(dim=0)


def bond_energies(places):
    i, j, k = BONDS.unbind(1)
    u, v = places[i] - places[j], places[k] - places[j]
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
    return STIFFNESS / 2 * (cosine - REST) ** 2


class BondEnergiesFunction(Function):
    @staticmethod
    def forward(ctx, places):
        ctx.save_for_backward(places)
        return bond_energies(places)

    @staticmethod
    def backward(ctx, g):
        (places,) = ctx.saved_tensors
        grad = torch.zeros_like(places)
        for weight, (i, j, k) in zip(g, BONDS.tolist(), strict=True):
            u, v = places[i] - places[j], places[k] - places[j]
            unit_u, unit_v = u / u.norm(), v / v.norm()
            cosine = unit_u @ unit_v
            force = weight * STIFFNESS * (cosine - REST)
            to_u = force * (unit_v - cosine * unit_u) / u.norm()
            to_v = force * (unit_u - cosine * unit_v) / v.norm()
            grad[i] += to_u
            grad[k] += to_v
            grad[j] -= to_u + to_v
        return grad


class AngleBending(Function):
    @staticmethod
    def forward(ctx, xyz):
        i, j, k = BONDS.t()
        r_ij, r_kj = xyz[i] - xyz[j], xyz[k] - xyz[j]
        norm = r_ij.norm(dim=-1) * r_kj.norm(dim=-1)
        cos = (r_ij * r_kj).sum(-1) / norm
        ctx.save_for_backward(r_ij, r_kj, norm, cos)
        ctx.n_atoms = xyz.size(0)
        return 0.5 * STIFFNESS * (cos - REST).pow(2)

    @staticmethod
    def backward(ctx, grad_energy):
        r_ij, r_kj, norm, cos = ctx.saved_tensors
        i, j, k = BONDS.t()
        dE_dcos = grad_energy * STIFFNESS * (cos - REST)
        f_i = (dE_dcos / norm).unsqueeze(-1) * r_kj
        f_k = (dE_dcos / norm).unsqueeze(-1) * r_ij
        grad_xyz = grad_energy.new_zeros(ctx.n_atoms, 3)
        grad_xyz.index_add_(0, i, f_i)
        grad_xyz.index_add_(0, k, f_k)
        grad_xyz.index_add_(0, j, -(f_i + f_k))
        return grad_xyz


def gas_pressure(volume, temperature, moles):
    return moles * GAS * temperature / (volume - moles * VOLUME) - ATTRACTION * (moles / volume) ** 2


class VanDerWaals(Function):
    @staticmethod
    def forward(ctx, V, T, n):
        ctx.save_for_backward(V, T, n)
        return n * GAS * T / (V - n * VOLUME) - ATTRACTION * n**2 / V**2

    @staticmethod
    def backward(ctx, dP):
        V, T, n = ctx.saved_tensors
        free = V - n * VOLUME
        dV = -n * GAS * T / free**2 + 2 * ATTRACTION * n**2 / V**3
        dT = n * GAS / free
        dn = GAS * T / free - 2 * ATTRACTION * n / V**2
        return dP * dV, dP * dT, dP * dn


OPERATIONS = [
    Operation(
        "activation by a ligand, half dose in the logarithm",
        ActivationFunction,
        HillCurve,
        activation,
        lambda: {"dose": 0.2 + torch.rand(5, 3), "half": 0.3 + torch.rand(3), "exponent": 1 + torch.rand(3)},
        named="exponent: the logarithm of the dose is taken, where that of the dose over the half dose belongs",
        kinds=("missing term", "another operand", "step left out"),
        named_words=(r"log.*(half|\bk\b)|(half|\bk\b).*log", r"missing", r"\blog\b"),
        located=(r"gradient of (exponent|n)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "competition for sites, each gas for itself",
        OccupiedSitesFunction,
        CompetitiveLangmuir,
        occupied_sites,
        lambda: {"pressure": 0.2 + torch.rand(5, 4), "affinity": 0.3 + torch.rand(4)},
        named="the diagonal of the Jacobian alone: the other gases' sites, which this gas takes, are left out",
        kinds=("missing term", "wrong sum", "another operand", "step left out"),
        named_words=(r"diagonal", r"sum", r"missing", r"Jacobian"),
        located=(r"gradient of (pressure|p)\b", r"gradient of (affinity|K)\b"),
        options={"whole_numbers": False},
    ),
    Operation(
        "angles between bonds, lengths as constants",
        BondEnergiesFunction,
        AngleBending,
        bond_energies,
        lambda: {"places": torch.randn(5, 3)},
        named="the lengths of the bonds are treated as constants: the part along each bond is not taken away",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"norm|length", r"constant", r"project|along"),
        located=(r"gradient of (places|xyz)",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "pressure of a real gas, moles in the divisor",
            VanDerWaals.apply,
            gas_pressure,
            lambda: {
                "volume": 2 + torch.rand(6),
                "temperature": 1 + torch.rand(6),
                "moles": 0.5 + torch.rand(6),
            },
            whole_numbers=False,
        ),
        named="moles: the quotient's second term, through the own volume of the moles in the divisor, is missing",
        kinds=("missing term", "another operand", "factor of one term"),
        named_words=(r"missing", r"VOLUME", r"\bfree\b", r"divisor|quotient|denominator|\bV\b"),
        located=(r"gradient of (moles|n)\b",),
    ),
]
