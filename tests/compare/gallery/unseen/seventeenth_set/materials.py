"""Materials: energy of a stretched solid, a collision of the lattice Boltzmann method."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

WEIGHTS = torch.tensor([1 / 6, 2 / 3, 1 / 6])
VELOCITIES = torch.tensor([-1.0, 0.0, 1.0])


def stretch_energy(F, mu, lam):
    log_j = (F[:, 0, 0] * F[:, 1, 1] - F[:, 0, 1] * F[:, 1, 0]).log()
    return mu / 2 * (F.square().sum((1, 2)) - 2 - 2 * log_j) + lam / 2 * log_j**2


class StretchEnergyFunction(Function):
    @staticmethod
    def forward(ctx, F, mu, lam):
        ctx.save_for_backward(F, mu, lam)
        return stretch_energy(F, mu, lam)

    @staticmethod
    def backward(ctx, g):
        F, mu, lam = ctx.saved_tensors
        det = F[:, 0, 0] * F[:, 1, 1] - F[:, 0, 1] * F[:, 1, 0]
        cofactors = torch.stack([F[:, 1, 1], -F[:, 1, 0], -F[:, 0, 1], F[:, 0, 0]], 1).view(-1, 2, 2)
        log_det = det.log()
        of_log = g * (lam * log_det - mu) / det
        grad_F = (g * mu)[:, None, None] * F + of_log[:, None, None] * cofactors
        grad_mu = g * (F.square().sum((1, 2)) / 2 - 1 - log_det)
        return grad_F, grad_mu, g * log_det**2 / 2


class NeoHookeanEnergy(Function):
    """Strain energy of a compressible neo-Hookean solid in the plane, one deformation gradient per element."""

    @staticmethod
    def forward(ctx, F, mu, lam):
        a, b, c, d = F[:, 0, 0], F[:, 0, 1], F[:, 1, 0], F[:, 1, 1]
        J = a * d - b * c
        logJ = torch.log(J)
        I1 = (F * F).sum(dim=(1, 2))
        ctx.save_for_backward(F, mu, lam, J, logJ, I1)
        return 0.5 * mu * (I1 - 2) - mu * logJ + 0.5 * lam * logJ * logJ

    @staticmethod
    def backward(ctx, grad_psi):
        F, mu, lam, J, logJ, I1 = ctx.saved_tensors
        a, b, c, d = F[:, 0, 0], F[:, 0, 1], F[:, 1, 0], F[:, 1, 1]
        cof = torch.stack([torch.stack([d, -b], dim=-1), torch.stack([-c, a], dim=-1)], dim=-2)
        F_inv_T = cof / J[:, None, None]
        # first Piola-Kirchhoff stress
        P = mu[:, None, None] * (F - F_inv_T) + (lam * logJ)[:, None, None] * F_inv_T
        grad_F = grad_psi[:, None, None] * P
        grad_mu = grad_psi * (0.5 * (I1 - 2) - logJ)
        grad_lam = grad_psi * 0.5 * logJ.square()
        return grad_F, grad_mu, grad_lam


def collision(f, omega):
    w, c = WEIGHTS.to(f), VELOCITIES.to(f)
    rho = f.sum(1, keepdim=True)
    u = (f * c).sum(1, keepdim=True) / rho
    equilibrium = w * rho * (1 + 3 * c * u + 4.5 * (c * u) ** 2 - 1.5 * u**2)
    return f - omega * (f - equilibrium)


class CollisionFunction(Function):
    @staticmethod
    def forward(ctx, f, omega):
        ctx.save_for_backward(f, omega)
        return collision(f, omega)

    @staticmethod
    def backward(ctx, g):
        f, omega = ctx.saved_tensors
        w, c = WEIGHTS.to(f), VELOCITIES.to(f)
        rho = f.sum(1, keepdim=True)
        momentum = (f * c).sum(1, keepdim=True)
        u = momentum / rho
        shape = 1 + 3 * c * u + 4.5 * (c * u) ** 2 - 1.5 * u**2
        to_equilibrium = omega * g
        to_u = (to_equilibrium * w * rho * (3 * c + 9 * c**2 * u - 3 * u)).sum(1, keepdim=True)
        to_rho = (to_equilibrium * w * shape).sum(1, keepdim=True) - to_u * momentum / rho**2
        grad_f = (1 - omega) * g + to_rho + to_u * c / rho
        return grad_f, (g * (w * rho * shape - f)).sum()


class BGKCollision(Function):
    """Relaxation of the distributions towards the D1Q3 equilibrium."""

    @staticmethod
    def forward(ctx, f, omega):
        w, c = WEIGHTS.to(f), VELOCITIES.to(f)
        rho = f.sum(dim=1, keepdim=True)
        u = (f @ c).unsqueeze(1) / rho
        cu = c * u
        poly = 1 + 3 * cu + 4.5 * cu * cu - 1.5 * u * u
        feq = w * rho * poly
        ctx.save_for_backward(f, omega, rho, u, poly, feq)
        return f + omega * (feq - f)

    @staticmethod
    def backward(ctx, grad_out):
        f, omega, rho, u, poly, feq = ctx.saved_tensors
        w, c = WEIGHTS.to(f), VELOCITIES.to(f)
        grad_omega = (grad_out * (feq - f)).sum()
        grad_feq = omega * grad_out
        grad_rho = (grad_feq * w * poly).sum(dim=1, keepdim=True)
        dpoly_du = 3 * c + 9 * c * c * u - 3 * u
        grad_u = (grad_feq * w * rho * dpoly_du).sum(dim=1, keepdim=True)
        grad_f = grad_out * (1 - omega) + grad_rho + grad_u * c / rho
        return grad_f, grad_omega


def deformations():
    return {"F": torch.eye(2) + 0.4 * (torch.rand(5, 2, 2) - 0.5), "mu": torch.rand(5), "lam": torch.rand(5)}


OPERATIONS = [
    Operation(
        "energy of a stretched solid, cofactors not transposed",
        StretchEnergyFunction,
        NeoHookeanEnergy,
        stretch_energy,
        deformations,
        named="F: the inverse stands where its transpose belongs, so the off-diagonal cofactors are exchanged",
        kinds=("another operand", "not transposed", "permuted", "only at some indices", "swapped"),
        named_words=(r"transpos", r"\bcof\b|F_inv_T", r"exchang|off.?diagonal"),
        located=(r"gradient of F\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "collision on a lattice, density in the velocity",
        CollisionFunction,
        BGKCollision,
        collision,
        lambda: {"f": 0.2 + torch.rand(5, 3), "omega": 0.5 + torch.rand(())},
        named="f: the velocity is a momentum over the density, and its part through the density is missing",
        kinds=("missing term", "step left out", "another operand"),
        named_words=(r"missing", r"\brho\b|densit", r"constant"),
        located=(r"gradient of f\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
