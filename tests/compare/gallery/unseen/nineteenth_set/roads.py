"""Roads: travel times of full links, cars that follow each other, trips between zones, flow from cell to cell."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def travel_time(volume, capacity, free):
    return free * (1 + 0.15 * (volume / capacity) ** 4)


class TravelTimeFunction(Function):
    @staticmethod
    def forward(ctx, volume, capacity, free):
        ctx.save_for_backward(volume, capacity, free)
        return travel_time(volume, capacity, free)

    @staticmethod
    def backward(ctx, g):
        volume, capacity, free = ctx.saved_tensors
        load = volume / capacity
        to_load = g * free * 0.6 * load**3
        return to_load / capacity, -to_load * load / capacity, g * (1 + 0.15 * load**4)


class BPRLatency(Function):
    """Bureau of Public Roads link latency, alpha = 0.15 and beta = 4."""

    @staticmethod
    def forward(ctx, volume, capacity, free):
        saturation = volume / capacity
        congestion = 0.15 * saturation.pow(4)
        ctx.save_for_backward(saturation, congestion, capacity, free)
        return free * (1 + congestion)

    @staticmethod
    def backward(ctx, grad_time):
        saturation, congestion, capacity, free = ctx.saved_tensors
        grad_volume = grad_time * free * 4 * 0.15 * saturation.pow(3) / capacity
        grad_capacity = -grad_time * free * 4 * congestion
        return grad_volume, grad_capacity, grad_time * (1 + congestion)


def following(speed, gap, approach):
    wanted = 1 + torch.relu(1.5 * speed + 0.5 * speed * approach)
    return 1 - (speed / 2) ** 4 - (wanted / gap) ** 2


class FollowingFunction(Function):
    @staticmethod
    def forward(ctx, speed, gap, approach):
        ctx.save_for_backward(speed, gap, approach)
        return following(speed, gap, approach)

    @staticmethod
    def backward(ctx, g):
        speed, gap, approach = ctx.saved_tensors
        inner = 1.5 * speed + 0.5 * speed * approach
        wanted = 1 + inner.clamp(min=0)
        to_inner = torch.where(inner > 0, -2 * g * wanted / gap**2, torch.zeros_like(g))
        to_speed = to_inner * (1.5 + 0.5 * approach) - g * speed**3 / 4
        return to_speed, 2 * g * wanted**2 / gap**3, to_inner * 0.5 * speed


class IntelligentDriver(Function):
    @staticmethod
    def forward(ctx, v, s, dv):
        dynamic = 1.5 * v + v * dv / 2
        active = dynamic > 0
        s_star = 1 + dynamic * active
        ctx.save_for_backward(v, s, s_star, active)
        return 1 - (v / 2).pow(4) - (s_star / s).square()

    @staticmethod
    def backward(ctx, grad_acc):
        v, s, s_star, active = ctx.saved_tensors
        grad_star = -2 * grad_acc * s_star / s.square()
        grad_s = 2 * grad_acc * s_star.square() / s.pow(3)
        grad_v = -grad_acc * v.pow(3) / 4
        grad_v = grad_v + grad_star * active * 1.5
        grad_dv = grad_star * active * v / 2
        return grad_v, grad_s, grad_dv


def trips(origins, pull, cost, beta):
    weights = pull * torch.exp(-beta * cost)
    return origins[:, None] * weights / weights.sum(1, keepdim=True)


class TripsFunction(Function):
    @staticmethod
    def forward(ctx, origins, pull, cost, beta):
        ctx.save_for_backward(origins, pull, cost, beta)
        return trips(origins, pull, cost, beta)

    @staticmethod
    def backward(ctx, g):
        origins, pull, cost, beta = ctx.saved_tensors
        weights = pull * torch.exp(-beta * cost)
        share = weights / weights.sum(1, keepdim=True)
        to_log = origins[:, None] * share * (g - (g * share).sum(1, keepdim=True))
        return (g * share).sum(1), to_log.sum(0) / pull, -beta * to_log, -(to_log * cost).sum()


class GravityModel(Function):
    """Production-constrained gravity model with exponential deterrence."""

    @staticmethod
    def forward(ctx, O, A, C, beta):  # noqa: E741
        f = A.unsqueeze(0) * torch.exp(-beta * C)
        p = f / f.sum(dim=1, keepdim=True)
        T = O.unsqueeze(1) * p
        ctx.save_for_backward(p, T, A, C, beta)
        return T

    @staticmethod
    def backward(ctx, grad_T):
        p, T, A, C, beta = ctx.saved_tensors
        grad_O = (grad_T * p).sum(dim=1)
        centred = grad_T - grad_O.unsqueeze(1)
        grad_A = (T * centred).sum(dim=0) / A
        grad_C = -beta * T * centred
        grad_beta = -(grad_T * T * C).sum()
        return grad_O, grad_A, grad_C, grad_beta


def cell_step(density):
    demand = (2 * density).clamp(max=1.0)
    supply = (1.5 - 0.5 * density).clamp(max=1.0)
    flow = torch.minimum(demand[:-1], supply[1:])
    change = torch.zeros_like(density)
    change[:-1] = change[:-1] - flow
    change[1:] = change[1:] + flow
    return density + 0.2 * change


class CellStepFunction(Function):
    @staticmethod
    def forward(ctx, density):
        ctx.save_for_backward(density)
        return cell_step(density)

    @staticmethod
    def backward(ctx, g):
        (density,) = ctx.saved_tensors
        sending, receiving = (2 * density).clamp(max=1.0)[:-1], (1.5 - 0.5 * density).clamp(max=1.0)[1:]
        to_flow = 0.2 * (g[1:] - g[:-1])
        by_demand = sending < receiving
        grad = g.clone()
        grad[:-1] += torch.where(by_demand & (density[:-1] < 0.5), 2 * to_flow, torch.zeros_like(to_flow))
        grad[1:] += torch.where(~by_demand & (density[1:] > 1.0), -0.5 * to_flow, torch.zeros_like(to_flow))
        return grad


class CellTransmission(Function):
    """One step of the cell transmission model on a road closed at both ends."""

    @staticmethod
    def forward(ctx, rho):
        S = torch.clamp(2 * rho, max=1.0)
        R = torch.clamp(1.5 - 0.5 * rho, max=1.0)
        q = torch.min(S[:-1], R[1:])
        ctx.save_for_backward(rho, S, R)
        out = rho.clone()
        out[:-1] -= 0.2 * q
        out[1:] += 0.2 * q
        return out

    @staticmethod
    def backward(ctx, grad_out):
        rho, S, R = ctx.saved_tensors
        dS = 2.0 * (S < 1)
        dR = -0.5 * (R < 1)
        grad_q = 0.2 * (grad_out[1:] - grad_out[:-1])
        free = S[:-1] < R[1:]
        grad_rho = grad_out.clone()
        for i in range(len(rho) - 1):
            if free[i]:
                grad_rho[i] += grad_q[i] * dS[i]
            else:
                grad_rho[i] += grad_q[i] * dR[i + 1]
        return grad_rho


def cars():
    return {"speed": 0.5 + torch.rand(6), "gap": 1 + torch.rand(6), "approach": 6 * torch.rand(6) - 5}


def zones():
    return {
        "origins": 0.5 + torch.rand(3),
        "pull": 0.5 + torch.rand(4),
        "cost": 2 * torch.rand(3, 4),
        "beta": 0.5 + torch.rand(()),
    }


OPERATIONS = [
    Operation(
        "travel times of full links, divisor of the load",
        TravelTimeFunction,
        BPRLatency,
        travel_time,
        lambda: {"volume": 0.5 + torch.rand(5), "capacity": 0.7 + torch.rand(5), "free": 1 + torch.rand(5)},
        named="capacity: the division by the capacity itself is missing",
        kinds=("factor by element", "factor of one term", "step left out", "another operand"),
        named_words=(r"capacity", r"divi"),
        located=(r"gradient of capacity\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "cars that follow, approach in the speed's gradient",
        FollowingFunction,
        IntelligentDriver,
        following,
        cars,
        named="speed: its part through the product of speed and approach is missing",
        kinds=("missing term", "only for some values", "another operand"),
        named_words=(r"\bdv\b|approach", r"missing.*(dynamic|v \* dv)"),
        located=(r"gradient of (speed|v)\b",),
        options={"whole_numbers": False, "kinks": True},
    ),
    Operation(
        "trips between zones, mean cost in the gradient of beta",
        TripsFunction,
        GravityModel,
        trips,
        zones,
        named="beta: the part through the sum of weights is missing, the incoming gradient is not centred",
        kinds=("missing term", "another operand", "step left out"),
        named_words=(r"centred", r"missing", r"\bsum\b", r"divi|quotient|normali"),
        located=(r"gradient of beta\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "flow from cell to cell, supply of the next cell",
        CellStepFunction,
        CellTransmission,
        cell_step,
        lambda: {"density": 2.2 * torch.rand(8) + 0.1},
        named="where the next cell's supply is the smaller, its gradient goes to the cell before it",
        kinds=("shifted", "only at some indices", "only for some values"),
        named_words=(r"shift|next|place|ind(ex|ices)", r"i \+ 1", r"dR|supply|\bR\b"),
        located=(r"gradient of (density|rho)\b",),
        options={"whole_numbers": False, "kinks": True},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
