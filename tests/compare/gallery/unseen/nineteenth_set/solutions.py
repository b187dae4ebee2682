"""Solutions: charge that screens charge, voltage across a membrane, forces between atoms, surfaces that fill."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

CHARGES = torch.tensor([1.0, -1.0, 2.0, -2.0])


def activity(amounts, size):
    z2 = CHARGES.to(amounts) ** 2
    root = (0.5 * (amounts * z2).sum(-1, keepdim=True)).sqrt()
    return -0.5 * z2 * root / (1 + size * root)


class ActivityFunction(Function):
    @staticmethod
    def forward(ctx, amounts, size):
        ctx.save_for_backward(amounts, size)
        return activity(amounts, size)

    @staticmethod
    def backward(ctx, g):
        amounts, size = ctx.saved_tensors
        z2 = CHARGES.to(amounts) ** 2
        root = (0.5 * (amounts * z2).sum(-1, keepdim=True)).sqrt()
        bottom = 1 + size * root
        to_ratio = -0.5 * (g * z2).sum(-1, keepdim=True)
        to_amounts = to_ratio / bottom**2 / (4 * root) * z2
        return to_amounts, (-to_ratio * root**2 / bottom**2).sum(0)


class DebyeHueckel(Function):
    """Logarithm of the activity coefficients of four ions (extended law)."""

    @staticmethod
    def forward(ctx, c, a):
        z = CHARGES.to(c)
        strength = 0.5 * (c * z**2).sum(dim=1, keepdim=True)
        root = strength.sqrt()
        ctx.save_for_backward(root, a, z)
        return -0.5 * z**2 * root / (1 + a * root)

    @staticmethod
    def backward(ctx, grad_out):
        root, a, z = ctx.saved_tensors
        f = 1 + a * root
        grad_f = (grad_out * -0.5 * z**2).sum(dim=1, keepdim=True)
        grad_root = grad_f / f**2
        grad_strength = grad_root / (2 * root)
        grad_c = 0.5 * grad_strength * z
        grad_a = -(grad_f * root**2 / f**2).sum(dim=0)
        return grad_c, grad_a


def membrane(inside, outside, ease):
    top = (ease[:2] * outside[:, :2]).sum(-1) + ease[2] * inside[:, 2]
    bottom = (ease[:2] * inside[:, :2]).sum(-1) + ease[2] * outside[:, 2]
    return top.log() - bottom.log()


class MembraneFunction(Function):
    @staticmethod
    def forward(ctx, inside, outside, ease):
        ctx.save_for_backward(inside, outside, ease)
        return membrane(inside, outside, ease)

    @staticmethod
    def backward(ctx, g):
        inside, outside, ease = ctx.saved_tensors
        over = torch.cat([outside[:, :2], inside[:, 2:]], 1)
        under = torch.cat([inside[:, :2], outside[:, 2:]], 1)
        to_over = (g / (over @ ease))[:, None] * ease
        to_under = -(g / (under @ ease))[:, None] * ease
        to_inside = torch.cat([to_under[:, :2], to_over[:, 2:]], 1)
        to_outside = torch.cat([to_over[:, :2], to_under[:, 2:]], 1)
        to_ease = (to_over * over / ease + to_under * under / ease).sum(0)
        return to_inside, to_outside, to_ease


class GoldmanPotential(Function):
    """Voltage over RT/F for potassium, sodium and chloride, whose charge is negative."""

    @staticmethod
    def forward(ctx, c_in, c_out, P):
        anion = torch.tensor([False, False, True], device=P.device)
        num = torch.where(anion, c_in, c_out) @ P
        den = torch.where(anion, c_out, c_in) @ P
        ctx.save_for_backward(c_in, c_out, P, num, den, anion)
        return torch.log(num / den)

    @staticmethod
    def backward(ctx, grad_v):
        c_in, c_out, P, num, den, anion = ctx.saved_tensors
        g_num = (grad_v / num).unsqueeze(1)
        g_den = (-grad_v / den).unsqueeze(1)
        grad_in = torch.where(anion, g_num, g_den) * P
        grad_out = torch.where(anion, g_den, g_num) * P
        grad_P = (g_num * c_out + g_den * c_in).sum(dim=0)
        return grad_in, grad_out, grad_P


def morse(points, depth, width):
    d = points[:, None] - points[None]
    first, second = torch.triu_indices(len(points), len(points), 1)
    distance = d[first, second].norm(dim=-1)
    return depth * ((1 - torch.exp(-width * (distance - 1))) ** 2).sum()


class MorseFunction(Function):
    @staticmethod
    def forward(ctx, points, depth, width):
        ctx.save_for_backward(points, depth, width)
        return morse(points, depth, width)

    @staticmethod
    def backward(ctx, g):
        points, depth, width = ctx.saved_tensors
        to_points = torch.zeros_like(points)
        to_depth, to_width = torch.zeros_like(depth), torch.zeros_like(width)
        for i in range(len(points)):
            for j in range(i + 1, len(points)):
                d = points[i] - points[j]
                r = d.norm()
                e = torch.exp(-width * (r - 1))
                to_depth = to_depth + g * (1 - e) ** 2
                to_width = to_width + 2 * g * depth * (1 - e) * e * (r - 1)
                force = 2 * g * depth * (1 - e) * e * width * d / r
                to_points[i] += force
                to_points[j] -= force
        return to_points, to_depth, to_width


class MorseEnergy(Function):
    @staticmethod
    def forward(ctx, x, D, a):
        n = x.shape[0]
        delta = x.unsqueeze(1) - x.unsqueeze(0)
        r = (delta**2).sum(dim=-1).add(torch.eye(n, dtype=x.dtype, device=x.device)).sqrt()
        decay = torch.exp(-a * (r - 1))
        shape = (1 - decay) ** 2
        ctx.save_for_backward(delta, r, decay, shape, D, a)
        return D * shape.triu(1).sum()

    @staticmethod
    def backward(ctx, grad_E):
        delta, r, decay, shape, D, a = ctx.saved_tensors
        slope = 2 * D * (1 - decay) * decay
        grad_r = grad_E * slope * a
        pair = (grad_r / r).unsqueeze(-1) * delta
        grad_x = pair.sum(dim=1)
        grad_D = grad_E * shape.triu(1).sum()
        grad_a = grad_E * (slope * (r - 1)).sum()
        return grad_x, grad_D, grad_a


def coverage(pressure, affinity, spread):
    power = (affinity * pressure) ** spread
    return power / (1 + power)


class CoverageFunction(Function):
    @staticmethod
    def forward(ctx, pressure, affinity, spread):
        ctx.save_for_backward(pressure, affinity, spread)
        return coverage(pressure, affinity, spread)

    @staticmethod
    def backward(ctx, g):
        pressure, affinity, spread = ctx.saved_tensors
        covered = coverage(pressure, affinity, spread)
        to_log = g * covered * (1 - covered)
        to_spread = (to_log * (affinity * pressure).log()).sum(0)
        return to_log * spread / pressure, (to_log * spread / affinity).sum(0), to_spread


class SipsIsotherm(Function):
    """Coverage of a rough surface: (K p)^n / (1 + (K p)^n)."""

    @staticmethod
    def forward(ctx, p, K, n):
        theta = torch.sigmoid(n * torch.log(K * p))
        ctx.save_for_backward(p, K, n, theta)
        return theta

    @staticmethod
    def backward(ctx, grad_theta):
        p, K, n, theta = ctx.saved_tensors
        grad_s = grad_theta * theta * (1 - theta)
        grad_p = grad_s * n / p
        grad_K = grad_s.sum(dim=0) * n / K
        grad_n = (grad_s * torch.log(p)).sum(dim=0)
        return grad_p, grad_K, grad_n


def sides():
    return {"inside": 0.2 + torch.rand(4, 3), "outside": 0.2 + torch.rand(4, 3), "ease": 0.2 + torch.rand(3)}


OPERATIONS = [
    Operation(
        "charge that screens charge, charge for its square",
        ActivityFunction,
        DebyeHueckel,
        activity,
        lambda: {"amounts": 0.2 + torch.rand(3, 4), "size": 0.5 + torch.rand(1)},
        named="amounts: multiplied by the charges, where their squares belong",
        kinds=("another operand", "factor by element", "step left out", "only at some indices"),
        named_words=(r"squar|\bz\b|pow|z \*\* 2|CHARGES",),
        located=(r"gradient of (amounts|c)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "voltage across a membrane, sides of the anion",
        MembraneFunction,
        GoldmanPotential,
        membrane,
        sides,
        named="ease: for the anion inside and outside are exchanged in forward, but not in its gradient",
        kinds=("only at some indices", "another operand", "swapped", "few elements", "step left out"),
        named_words=(r"anion|where", r"swap|exchang", r"c_in|c_out|inside|outside"),
        located=(r"gradient of (ease|P)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "forces between atoms, pairs twice",
        MorseFunction,
        MorseEnergy,
        morse,
        lambda: {"points": 1.2 * torch.randn(4, 3), "depth": 0.5 + torch.rand(()), "width": 0.5 + torch.rand(())},
        named="width: each pair is counted twice, the upper triangle is not taken",
        kinds=("constant factor", "wrong sum", "step left out"),
        named_words=(r"twice|factor|half|times 2|1/2", r"triu|triang"),
        located=(r"gradient of (width|a)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "surfaces that fill, affinity in the logarithm",
        CoverageFunction,
        SipsIsotherm,
        coverage,
        lambda: {"pressure": 0.3 + torch.rand(5, 3), "affinity": 0.5 + torch.rand(3), "spread": 0.5 + torch.rand(3)},
        named="spread: the logarithm is that of the pressure alone, without the affinity",
        kinds=("missing term", "another operand", "step left out"),
        named_words=(r"\blog", r"\bK\b|affinity"),
        located=(r"gradient of (spread|n)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
