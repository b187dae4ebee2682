"""Structures: stress that counts, bars that turn, steel that hardens, a beam's natural frequency."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

BARS = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3]])


def equivalent_stress(stress):
    x, y, z, xy, yz, zx = stress.unbind(-1)
    normal = 0.5 * ((x - y) ** 2 + (y - z) ** 2 + (z - x) ** 2)
    return (normal + 3 * (xy**2 + yz**2 + zx**2)).sqrt()


class EquivalentStressFunction(Function):
    @staticmethod
    def forward(ctx, stress):
        result = equivalent_stress(stress)
        ctx.save_for_backward(stress, result)
        return result

    @staticmethod
    def backward(ctx, g):
        stress, result = ctx.saved_tensors
        normal, shear = stress[..., :3], stress[..., 3:]
        deviator = normal - normal.mean(-1, keepdim=True)
        return torch.cat([1.5 * deviator, 3 * shear], -1) * (g / result).unsqueeze(-1)


class VonMises(Function):
    """Equivalent stress of (xx, yy, zz, xy, yz, zx)."""

    @staticmethod
    def forward(ctx, sigma):
        mean = sigma[..., :3].mean(dim=-1, keepdim=True)
        s = torch.cat([sigma[..., :3] - mean, sigma[..., 3:]], dim=-1)
        J2 = 0.5 * (s[..., :3] ** 2).sum(-1) + (s[..., 3:] ** 2).sum(-1)
        eq = torch.sqrt(3 * J2)
        ctx.save_for_backward(s, eq)
        return eq

    @staticmethod
    def backward(ctx, grad_eq):
        s, eq = ctx.saved_tensors
        return (1.5 * grad_eq / eq).unsqueeze(-1) * s


def bar_forces(points, stiffness, rest):
    d = points[BARS[:, 1]] - points[BARS[:, 0]]
    length = d.norm(dim=1, keepdim=True)
    pull = (stiffness * (length[:, 0] - rest))[:, None] * d / length
    forces = torch.zeros_like(points)
    return forces.index_add(0, BARS[:, 0], pull).index_add(0, BARS[:, 1], -pull)


class BarForcesFunction(Function):
    @staticmethod
    def forward(ctx, points, stiffness, rest):
        ctx.save_for_backward(points, stiffness, rest)
        return bar_forces(points, stiffness, rest)

    @staticmethod
    def backward(ctx, g):
        points, stiffness, rest = ctx.saved_tensors
        first, second = BARS.unbind(1)
        d = points[second] - points[first]
        length = d.norm(dim=1, keepdim=True)
        unit = d / length
        to_pull = g[first] - g[second]
        along = (to_pull * unit).sum(1)
        tension = (stiffness * (length[:, 0] - rest))[:, None]
        to_d = (stiffness * along)[:, None] * unit + tension / length * (to_pull - along[:, None] * unit)
        to_points = torch.zeros_like(points).index_add_(0, second, to_d).index_add_(0, first, -to_d)
        return to_points, along * (length[:, 0] - rest), -along * stiffness


class TrussForces(Function):
    @staticmethod
    def forward(ctx, X, k, L0):
        i, j = BARS[:, 0], BARS[:, 1]
        d = X[j] - X[i]
        L = d.norm(dim=1)
        n = d / L.unsqueeze(1)
        N = k * (L - L0)
        f = N.unsqueeze(1) * n
        F = torch.zeros_like(X)
        F.index_add_(0, i, f)
        F.index_add_(0, j, -f)
        ctx.save_for_backward(n, k, L, L0, X)
        return F

    @staticmethod
    def backward(ctx, grad_F):
        n, k, L, L0, X = ctx.saved_tensors
        i, j = BARS[:, 0], BARS[:, 1]
        grad_f = grad_F[i] - grad_F[j]
        grad_N = (grad_f * n).sum(dim=1)
        grad_L = grad_N * k
        grad_d = grad_L.unsqueeze(1) * n
        grad_X = torch.zeros_like(X)
        grad_X.index_add_(0, j, grad_d)
        grad_X.index_add_(0, i, -grad_d)
        return grad_X, grad_N * (L - L0), -grad_L


def hardened(strain, limit, modulus):
    trial = 2 * strain
    over = trial.abs() - limit
    step = over.clamp(min=0) / (2 + modulus)
    return trial - 2 * step * trial.sign()


class HardenedFunction(Function):
    @staticmethod
    def forward(ctx, strain, limit, modulus):
        ctx.save_for_backward(strain, limit, modulus)
        return hardened(strain, limit, modulus)

    @staticmethod
    def backward(ctx, g):
        strain, limit, modulus = ctx.saved_tensors
        over = (2 * strain.abs() - limit).clamp(min=0)
        flows = (over > 0).to(g)
        to_step = -2 * g * strain.sign()
        to_over = to_step * flows / (2 + modulus)
        to_modulus = -to_step * over / (2 + modulus) ** 2
        return 2 * g + 2 * to_over * strain.sign(), -to_over.sum(), to_modulus.sum()


class ReturnMapping(Function):
    """Stress of a bar with Young's modulus 2 and linear isotropic hardening, one step from rest."""

    @staticmethod
    def forward(ctx, eps, sigma_y, H):
        E = 2.0
        trial = E * eps
        plastic = trial.abs() > sigma_y
        dgamma = (trial.abs() - sigma_y) / (E + H)
        sigma = torch.where(plastic, trial - E * dgamma * torch.sign(trial), trial)
        ctx.save_for_backward(trial, plastic, dgamma, H)
        return sigma

    @staticmethod
    def backward(ctx, grad):
        E = 2.0
        trial, plastic, dgamma, H = ctx.saved_tensors
        sign = torch.sign(trial)
        tangent = torch.where(plastic, E * H / (E + H), torch.full_like(trial, E))
        grad_eps = grad * tangent
        grad_sigma_y = (grad * sign * E / (E + H)).sum()
        grad_H = (grad * plastic * sign * E * dgamma / (E + H)).sum()
        return grad_eps, grad_sigma_y, grad_H


def natural_frequency(shape, stiffness, mass):
    k = torch.einsum("bi,ij,bj->b", shape, stiffness, shape)
    m = torch.einsum("bi,ij,bj->b", shape, mass, shape)
    return (k / m).sqrt()


class NaturalFrequencyFunction(Function):
    @staticmethod
    def forward(ctx, shape, stiffness, mass):
        result = natural_frequency(shape, stiffness, mass)
        ctx.save_for_backward(shape, stiffness, mass, result)
        return result

    @staticmethod
    def backward(ctx, g):
        shape, stiffness, mass, w = ctx.saved_tensors
        m = ((shape @ mass) * shape).sum(-1)
        to_k = g / (2 * w * m)
        to_m = -to_k * w**2
        both = to_k[:, None, None] * (stiffness + stiffness.T) + to_m[:, None, None] * (mass + mass.T)
        to_shape = torch.einsum("bij,bj->bi", both, shape)
        return to_shape, (to_k[:, None] * shape).T @ shape, (to_m[:, None] * shape).T @ shape


class RayleighFrequency(Function):
    @staticmethod
    def forward(ctx, v, K, M):
        vKv = ((v @ K) * v).sum(dim=1)
        vMv = ((v @ M) * v).sum(dim=1)
        omega = (vKv / vMv).sqrt()
        ctx.save_for_backward(v, K, M, vMv, omega)
        return omega

    @staticmethod
    def backward(ctx, grad_omega):
        v, K, M, vMv, omega = ctx.saved_tensors
        c = (grad_omega / (2 * omega * vMv)).unsqueeze(1)
        residual = v @ (K + K.t()) - omega.square().unsqueeze(1) * (v @ (M + M.t()))
        grad_v = c * residual
        grad_K = (c * v).t() @ v
        grad_M = -(c * omega.unsqueeze(1) * v).t() @ v
        return grad_v, grad_K, grad_M


def frame():
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0], [1.5, 1.2]])
    return {
        "points": corners + 0.1 * torch.randn(4, 2),
        "stiffness": 0.5 + torch.rand(4),
        "rest": 0.5 + torch.rand(4),
    }


def beam():
    half = torch.rand(2, 3, 3)
    stiffness, mass = 3 * torch.eye(3) + half
    return {"shape": torch.randn(4, 3).sign() * (0.5 + torch.rand(4, 3)), "stiffness": stiffness, "mass": mass}


OPERATIONS = [
    Operation(
        "stress that counts, shear twice",
        EquivalentStressFunction,
        VonMises,
        equivalent_stress,
        lambda: {"stress": torch.randn(5, 6)},
        named="the shear components, which stand for two entries each, get half of their gradient",
        kinds=("factor by element", "factor of one term", "only at some indices", "constant factor"),
        named_words=(r"factor", r"1/2|0\.5|half|twice|\b2\b", r"columns? 3|last (three|3)|index 3"),
        located=(r"gradient of (stress|sigma)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "bars that turn, direction as a constant",
        BarForcesFunction,
        TrussForces,
        bar_forces,
        frame,
        named="points: the part through the direction of the bars, tension over length across it, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"direction|\bn\b|d / L", r"constant", r"divi|norm"),
        located=(r"gradient of (points|X)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "steel that hardens, limit below the limit",
        HardenedFunction,
        ReturnMapping,
        hardened,
        lambda: {"strain": torch.randn(7), "limit": 0.8 + torch.rand(()), "modulus": 0.3 + torch.rand(())},
        named="limit: elements that stay elastic add to its gradient, the mask is missing",
        kinds=("missing term", "step left out", "wrong sum", "another operand", "only for some values"),
        named_words=(r"mask|plastic|where|elastic",),
        located=(r"gradient of (limit|sigma_y)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "natural frequency, frequency for its square",
        NaturalFrequencyFunction,
        RayleighFrequency,
        natural_frequency,
        beam,
        named="mass: the frequency stands for its square, the quotient of the two forms",
        kinds=("another operand", "factor by element", "step left out", "factor of one term"),
        named_words=(r"omega|squar|pow|sqrt|root",),
        located=(r"gradient of (mass|M)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
