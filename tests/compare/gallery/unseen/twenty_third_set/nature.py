"""Games and nature: hits on armour, light in layers of water, a herd that needs company, flow in a channel."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def hits_on_armour(attack, armour, count):
    return (count[:, None] * (attack[:, None] - armour).clamp(min=0.1)).sum(0)


class HitsOnArmourFunction(Function):
    @staticmethod
    def forward(ctx, attack, armour, count):
        hit = (attack[:, None] - armour).clamp(min=0.1)
        ctx.save_for_backward(hit, count, attack[:, None] - armour >= 0.1)
        return count @ hit

    @staticmethod
    def backward(ctx, g):
        hit, count, above = ctx.saved_tensors
        gd = count[:, None] * g * above
        return gd.sum(1), -gd.sum(0), hit @ g


class ArmourDamage(Function):
    """Damage that each defender takes; every hit does at least 0.1."""

    @staticmethod
    def forward(ctx, attack, armour, count):
        damage = attack.unsqueeze(1) - armour.unsqueeze(0)
        damage = torch.clamp(damage, min=0.1)
        ctx.save_for_backward(damage, count)
        return (count.unsqueeze(1) * damage).sum(dim=0)

    @staticmethod
    def backward(ctx, grad_output):
        damage, count = ctx.saved_tensors
        grad_damage = count.unsqueeze(1) * grad_output.unsqueeze(0)
        grad_damage = grad_damage * (damage > 0)
        grad_count = (damage * grad_output).sum(dim=1)
        return grad_damage.sum(dim=1), -grad_damage.sum(dim=0), grad_count


def light_in_water(surface, turbidity, depth):
    return surface[:, None] * torch.exp(-(turbidity * depth).cumsum(1))


class LightInWaterFunction(Function):
    @staticmethod
    def forward(ctx, surface, turbidity, depth):
        share = torch.exp(-(turbidity * depth).cumsum(1))
        ctx.save_for_backward(surface, turbidity, depth, share)
        return surface[:, None] * share

    @staticmethod
    def backward(ctx, g):
        surface, turbidity, depth, share = ctx.saved_tensors
        grad_sums = -g * surface[:, None] * share
        ge = grad_sums.flip(1).cumsum(1).flip(1)
        return (g * share).sum(1), ge * depth, (ge * turbidity).sum(0)


class BeerLambertLayers(Function):
    """Light below each of the layers, for columns of water (columns, layers) with common layer depths (layers,)."""

    @staticmethod
    def forward(ctx, i0, k, dz):
        tau = torch.cumsum(k * dz, dim=1)
        light = i0.unsqueeze(1) * torch.exp(-tau)
        ctx.save_for_backward(i0, k, dz, light)
        return light

    @staticmethod
    def backward(ctx, grad_light):
        i0, k, dz, light = ctx.saved_tensors
        grad_i0 = (grad_light * light).sum(1) / i0
        grad_tau = -grad_light * light
        grad_kdz = torch.cumsum(grad_tau, dim=1)
        return grad_i0, grad_kdz * dz, (grad_kdz * k).sum(0)


def herd(n, r, capacity, threshold):
    return n + r * n * (1 - n / capacity) * (n / threshold - 1)


class HerdFunction(Function):
    @staticmethod
    def forward(ctx, n, r, capacity, threshold):
        ctx.save_for_backward(n, r, capacity, threshold)
        return n + r * n * (1 - n / capacity) * (n / threshold - 1)

    @staticmethod
    def backward(ctx, g):
        n, r, k, a = ctx.saved_tensors
        room, company = 1 - n / k, n / a - 1
        gn = g * (1 + r * (room * company - n / k * company + n / a * room))
        return (
            gn,
            (g * n * room * company).sum(),
            (g * r * n**2 * company).sum() / k**2,
            -(g * r * n**2 * room).sum() / a**2,
        )


class AlleeStep(Function):
    """One year of growth with an Allee threshold A below the capacity K."""

    @staticmethod
    def forward(ctx, N, r, K, A):
        crowd = 1 - N / K
        allee = N / A - 1
        ctx.save_for_backward(N, r, K, A, crowd, allee)
        return N + r * N * crowd * allee

    @staticmethod
    def backward(ctx, grad_out):
        N, r, K, A, crowd, allee = ctx.saved_tensors
        grad_crowd = grad_out * r * N * allee
        grad_allee = grad_out * r * N * crowd
        grad_N = grad_out * r * crowd * allee - grad_crowd / K + grad_allee / A
        grad_r = (grad_out * N * crowd * allee).sum()
        grad_K = (grad_crowd * N).sum() / K**2
        grad_A = -(grad_allee * N).sum() / A**2
        return grad_N, grad_r, grad_K, grad_A


def channel_flow(width, depth, slope):
    area = width * depth
    return area * (area / (width + 2 * depth)) ** (2 / 3) * slope.sqrt()


class ChannelFlowFunction(Function):
    @staticmethod
    def forward(ctx, width, depth, slope):
        flow = channel_flow(width, depth, slope)
        ctx.save_for_backward(width, depth, slope, flow)
        return flow

    @staticmethod
    def backward(ctx, g):
        w, d, slope, flow = ctx.saved_tensors
        wet = w + 2 * d
        gf = g * flow
        return gf * (5 / (3 * w) - 2 / (3 * wet)), gf * (5 / (3 * d) - 4 / (3 * wet)), gf / (2 * slope)


class ManningFlow(Function):
    """Discharge of rectangular channels by Manning's formula, with roughness 1."""

    @staticmethod
    def forward(ctx, width, depth, slope):
        area = width * depth
        perimeter = width + 2 * depth
        flow = area ** (5 / 3) / perimeter ** (2 / 3) * torch.sqrt(slope)
        ctx.save_for_backward(width, depth, slope, area, perimeter, flow)
        return flow

    @staticmethod
    def backward(ctx, grad_flow):
        width, depth, slope, area, perimeter, flow = ctx.saved_tensors
        grad_area = grad_flow * 5 / 3 * flow / area
        grad_perimeter = -grad_flow * 2 / 3 * flow / perimeter
        grad_width = grad_area * depth + grad_perimeter
        grad_depth = grad_area * width + grad_perimeter
        grad_slope = grad_flow * flow / (2 * slope)
        return grad_width, grad_depth, grad_slope


OPERATIONS = [
    Operation(
        "hits on armour, least damage",
        HitsOnArmourFunction,
        ArmourDamage,
        hits_on_armour,
        lambda: {"attack": torch.rand(5), "armour": torch.rand(4), "count": torch.rand(5) + 1},
        named="the mask compares the clamped damage with 0, so it is always true: clamped hits send a gradient",
        kinds=("only for some values", "step left out", "only at some indices", "another operand", "missing term"),
        named_words=(r"mask|clamp", r"> ?0|0\.1", r"damage"),
        located=(r"gradients? of (attack|armour)\b",),
        options={"kinks": True},
    ),
    Operation(
        "light in layers of water, direction of the sum",
        LightInWaterFunction,
        BeerLambertLayers,
        light_in_water,
        lambda: {"surface": torch.rand(3) + 1, "turbidity": torch.rand(3, 5), "depth": torch.rand(5) + 0.5},
        named="the backward of cumsum is a cumsum from the last layer to the first; here it runs from the first",
        kinds=("flipped", "wrong sum", "another operand", "step left out"),
        named_words=(r"cumsum|cumulative", r"revers|flip|direction"),
        located=(r"gradients? of (turbidity|k|depth|dz)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "herd that needs company, the herd itself",
        HerdFunction,
        AlleeStep,
        herd,
        lambda: {
            "n": torch.rand(6) + 0.5,
            "r": torch.rand(()) / 2 + 0.2,
            "capacity": torch.rand(()) + 2,
            "threshold": torch.rand(()) / 2 + 0.3,
        },
        named="n: forward adds N to its growth; the gradient lacks grad_out itself",
        kinds=("missing term", "step left out"),
        named_words=(r"missing|left out|leaves out", r"grad_out", r"identity|N \+"),
        located=(r"gradient of (n|N)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "flow in a channel, two banks",
        ChannelFlowFunction,
        ManningFlow,
        channel_flow,
        lambda: {"width": torch.rand(5) + 1, "depth": torch.rand(5) + 0.5, "slope": torch.rand(5) + 0.1},
        named="depth: the perimeter counts the depth twice; grad_perimeter lacks the factor 2",
        kinds=("factor of one term", "missing term", "step left out", "constant factor"),
        named_words=(r"\b2\b|twice|half", r"perimeter"),
        located=(r"gradient of depth\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
