"""Planets and weather: the place on an orbit at a time, a few steps of Lorenz's model on a circle."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

STEPS, DT = 3, 0.1


def eccentric_anomaly(mean_anomaly, e):
    E = mean_anomaly + e * torch.sin(mean_anomaly)
    for _ in range(8):
        E = E - (E - e * torch.sin(E) - mean_anomaly) / (1 - e * torch.cos(E))
    return E


def place_on_orbit(mean_anomaly, e):
    E = eccentric_anomaly(mean_anomaly, e)
    return torch.stack([torch.cos(E) - e, torch.sqrt(1 - e * e) * torch.sin(E)], -1)


class PlaceOnOrbitFunction(Function):
    @staticmethod
    def forward(ctx, mean_anomaly, e):
        E = eccentric_anomaly(mean_anomaly, e)
        ctx.save_for_backward(E, e)
        return torch.stack([torch.cos(E) - e, torch.sqrt(1 - e * e) * torch.sin(E)], -1)

    @staticmethod
    def backward(ctx, g):
        E, e = ctx.saved_tensors
        gx, gy = g.unbind(-1)
        root = torch.sqrt(1 - e * e)
        to_m = (gy * root * torch.cos(E) - gx * torch.sin(E)) / (1 - e * torch.cos(E))
        return to_m, to_m * torch.sin(E) - gx - gy * e / root * torch.sin(E)


class OrbitPosition(Function):
    """Position in the orbital plane from the mean anomaly M (Kepler's equation by Newton's method)."""

    @staticmethod
    def forward(ctx, M, ecc):
        E = M + ecc * M.sin()
        for _ in range(8):
            E = E - (E - ecc * E.sin() - M) / (1 - ecc * E.cos())
        b = (1 - ecc**2).sqrt()
        ctx.save_for_backward(ecc, E, b)
        return torch.stack((E.cos() - ecc, b * E.sin()), dim=-1)

    @staticmethod
    def backward(ctx, grad_xy):
        ecc, E, b = ctx.saved_tensors
        grad_x, grad_y = grad_xy[..., 0], grad_xy[..., 1]
        dE_dM = 1 / (1 - ecc * E.cos())
        grad_E = -grad_x * E.sin() + grad_y * b * E.cos()
        grad_M = grad_E * dE_dM
        grad_ecc = -grad_x - grad_y * (ecc / b) * E.sin()
        return grad_M, grad_ecc


def weather(x, forcing):
    for _ in range(STEPS):
        x = x + DT * ((x.roll(-1, 1) - x.roll(2, 1)) * x.roll(1, 1) - x + forcing)
    return x


class WeatherFunction(Function):
    @staticmethod
    def forward(ctx, x, forcing):
        states = [x]
        for _ in range(STEPS):
            x = states[-1]
            states.append(x + DT * ((x.roll(-1, 1) - x.roll(2, 1)) * x.roll(1, 1) - x + forcing))
        ctx.save_for_backward(*states[:-1])
        return states[-1]

    @staticmethod
    def backward(ctx, g):
        grad_forcing = g.new_zeros(())
        for x in reversed(ctx.saved_tensors):
            grad_forcing = grad_forcing + DT * g.sum()
            to_difference = g * x.roll(1, 1)
            to_factor = g * (x.roll(-1, 1) - x.roll(2, 1))
            rate = to_difference.roll(1, 1) - to_difference.roll(-2, 1) + to_factor.roll(-1, 1) - g
            g = g + DT * rate
        return g, grad_forcing


class Lorenz96(Function):
    @staticmethod
    def forward(ctx, x, F):
        ctx.xs = []
        for _ in range(STEPS):
            ctx.xs.append(x)
            ahead, behind, behind2 = torch.roll(x, -1, dims=1), torch.roll(x, 1, dims=1), torch.roll(x, 2, dims=1)
            x = x + DT * ((ahead - behind2) * behind - x + F)
        return x

    @staticmethod
    def backward(ctx, adj):
        grad_F = torch.zeros((), dtype=adj.dtype, device=adj.device)
        for x in ctx.xs[::-1]:
            ahead, behind, behind2 = torch.roll(x, -1, dims=1), torch.roll(x, 1, dims=1), torch.roll(x, 2, dims=1)
            grad_F = grad_F + DT * adj.sum()
            d_ahead = adj * behind
            d_behind = adj * (ahead - behind2)
            tendency = torch.roll(d_ahead, 1, dims=1) + torch.roll(d_behind, -1, dims=1)
            tendency = tendency - torch.roll(d_ahead, 2, dims=1) - adj
            adj = adj + DT * tendency
        return adj, grad_F


OPERATIONS = [
    Operation(
        "place on an orbit, eccentricity in Kepler's equation",
        PlaceOnOrbitFunction,
        OrbitPosition,
        place_on_orbit,
        lambda: {"mean_anomaly": 3 * torch.rand(6), "e": 0.1 + 0.5 * torch.rand(6)},
        named="e: its part through the eccentric anomaly, the solution of Kepler's equation, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"grad_E|dE_dM|\bE\b", r"constant"),
        located=(r"gradient of (e|ecc)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "Lorenz's model on a circle, direction of a shift",
        WeatherFunction,
        Lorenz96,
        weather,
        lambda: {"x": torch.randn(3, 6), "forcing": torch.randn(())},
        named="the neighbour two places behind is shifted as in forward, and not back, in its transpose",
        kinds=("not transposed", "another operand", "permuted", "missing term", "swapped"),
        named_words=(r"roll|shift", r"transpos", r"direction"),
        located=(r"gradient of x\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
