"""Steps one after another: spreading over a graph, a flow by Euler's method."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

RESTART = 0.2
STEPS = 3
STEP = 0.3


def spread(links, x):
    z = x
    for _ in range(STEPS):
        z = (1 - RESTART) * links @ z + RESTART * x
    return z


class SpreadFunction(Function):
    @staticmethod
    def forward(ctx, links, x):
        ctx.save_for_backward(links, x)
        return spread(links, x)

    @staticmethod
    def backward(ctx, g):
        links, x = ctx.saved_tensors
        states = [x]
        for _ in range(STEPS - 1):
            states.append((1 - RESTART) * links @ states[-1] + RESTART * x)
        to_links, to_x = torch.zeros_like(links), torch.zeros_like(x)
        for z in reversed(states):
            to_links += (1 - RESTART) * g @ z.T
            to_x += RESTART * g
            g = (1 - RESTART) * links.T @ g
        return to_links, to_x + g


class PersonalizedPropagation(Function):
    @staticmethod
    def forward(ctx, adj, h):
        zs = [h]
        for _ in range(STEPS):
            zs.append(torch.addmm(h, adj, zs[-1], beta=RESTART, alpha=1 - RESTART))
        ctx.save_for_backward(adj, *zs[:-1])
        return zs[-1]

    @staticmethod
    def backward(ctx, grad_z):
        adj, *zs = ctx.saved_tensors
        grad_adj = torch.zeros_like(adj)
        grad_h = torch.zeros_like(zs[0])
        for k in range(STEPS - 1, -1, -1):
            grad_h += RESTART * grad_z
            grad_z = (1 - RESTART) * grad_z
            grad_adj += grad_z @ zs[k].t()
            grad_z = adj.t() @ grad_z
        return grad_adj, grad_h


def euler_flow(z, weight):
    for _ in range(STEPS):
        z = z + STEP * torch.tanh(z @ weight.T)
    return z


class EulerFlowFunction(Function):
    @staticmethod
    def forward(ctx, z, weight):
        ctx.save_for_backward(z, weight)
        return euler_flow(z, weight)

    @staticmethod
    def backward(ctx, g):
        z, weight = ctx.saved_tensors
        states = [z]
        for _ in range(STEPS - 1):
            states.append(states[-1] + STEP * torch.tanh(states[-1] @ weight.T))
        to_weight = torch.zeros_like(weight)
        for z in reversed(states):
            to_sum = STEP * g * (1 - torch.tanh(z @ weight.T) ** 2)
            to_weight += to_sum.T @ z
            g = g + to_sum @ weight
        return g, to_weight


class AdjointODE(Function):
    @staticmethod
    def forward(ctx, z0, W):
        trajectory = [z0]
        for _ in range(STEPS):
            z = trajectory[-1]
            trajectory.append(z + STEP * torch.tanh(z @ W.t()))
        ctx.save_for_backward(torch.stack(trajectory), W)
        return trajectory[-1]

    @staticmethod
    def backward(ctx, grad_out):
        trajectory, W = ctx.saved_tensors
        adjoint = grad_out.clone()
        grad_W = torch.zeros_like(W)
        for n in reversed(range(STEPS)):
            z = trajectory[n]
            slope = 1 - torch.tanh(z @ W.t()).square()
            adjoint += STEP * (adjoint * slope) @ W
            grad_W += STEP * (adjoint * slope).t() @ z
        return adjoint, grad_W


OPERATIONS = [
    Operation(
        "spreading over a graph, start of the steps",
        SpreadFunction,
        PersonalizedPropagation,
        spread,
        lambda: {"links": torch.randn(5, 5) / 2, "x": torch.randn(5, 3)},
        named="x: the part through the first state, which is x itself, is missing",
        kinds=("missing term",),
        named_words=(r"missing", r"constant", r"no effect", r"first (state|step|use)"),
        located=(r"gradient of (x|h)\b",),
    ),
    Operation(
        "flow by Euler's method, adjoint after its step",
        EulerFlowFunction,
        AdjointODE,
        euler_flow,
        lambda: {"z": torch.randn(4, 3), "weight": torch.randn(3, 3)},
        named="weight: the carried gradient is taken after its step back, where it belongs before it",
        kinds=("shifted", "another operand", "permuted", "missing term"),
        named_words=(r"\bafter\b|\bbefore\b|\border\b|earlier|later", r"adjoint", r"shift"),
        located=(r"gradient of (weight|W)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
