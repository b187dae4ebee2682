"""Grids of power lines: power at the nodes, lines of direct current, losses, frequency after a fault."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

FROM = torch.tensor([0, 0, 1, 2, 1])
TO = torch.tensor([1, 2, 2, 3, 3])


def node_power(voltage, angle, conductance, susceptance):
    turn = angle[:, None] - angle[None, :]
    return voltage * ((conductance * turn.cos() + susceptance * turn.sin()) @ voltage)


class NodePowerFunction(Function):
    @staticmethod
    def forward(ctx, voltage, angle, conductance, susceptance):
        ctx.save_for_backward(voltage, angle, conductance, susceptance)
        return node_power(voltage, angle, conductance, susceptance)

    @staticmethod
    def backward(ctx, g):
        v, angle, a, b = ctx.saved_tensors
        turn = angle[:, None] - angle[None, :]
        admittance = a * turn.cos() + b * turn.sin()
        pairs = (g * v)[:, None] * v[None, :]
        to_turn = pairs * (b * turn.cos() - a * turn.sin())
        to_v = g * (admittance @ v) + admittance.T @ (g * v)
        return to_v, to_turn.sum(1) - to_turn.sum(0), pairs * turn.cos(), pairs * turn.sin()


class ActivePower(Function):
    """P_i = V_i sum_j V_j (G_ij cos t_ij + B_ij sin t_ij)."""

    @staticmethod
    def forward(ctx, V, theta, G, B):
        t = theta.unsqueeze(1) - theta.unsqueeze(0)
        cos, sin = t.cos(), t.sin()
        Y = G * cos + B * sin
        current = Y @ V
        ctx.save_for_backward(V, G, B, cos, sin, current)
        return V * current

    @staticmethod
    def backward(ctx, grad_P):
        V, G, B, cos, sin, current = ctx.saved_tensors
        VV = torch.outer(V, V)
        w = grad_P.unsqueeze(1) * VV
        grad_V = grad_P * current
        d = w * (B * cos - G * sin)
        grad_theta = d.sum(dim=1) - d.sum(dim=0)
        return grad_V, grad_theta, w * cos, w * sin


def line_flows(angle, reactance):
    return (angle[FROM] - angle[TO]) / reactance


class LineFlowsFunction(Function):
    @staticmethod
    def forward(ctx, angle, reactance):
        ctx.save_for_backward(angle, reactance)
        return line_flows(angle, reactance)

    @staticmethod
    def backward(ctx, g):
        angle, reactance = ctx.saved_tensors
        per_line = g / reactance
        to_angle = torch.zeros_like(angle)
        for line in range(len(reactance)):
            to_angle[FROM[line]] += per_line[line]
            to_angle[TO[line]] -= per_line[line]
        return to_angle, -per_line * line_flows(angle, reactance)


class DCFlow(Function):
    @staticmethod
    def forward(ctx, theta, x):
        src, dst = FROM.to(theta.device), TO.to(theta.device)
        flow = (theta[src] - theta[dst]) / x
        ctx.save_for_backward(x, flow, src, dst)
        ctx.num_buses = theta.shape[0]
        return flow

    @staticmethod
    def backward(ctx, grad_flow):
        x, flow, src, dst = ctx.saved_tensors
        g = grad_flow / x
        grad_theta = g.new_zeros(ctx.num_buses)
        grad_theta[src] += g
        grad_theta[dst] -= g
        grad_x = -g * flow
        return grad_theta, grad_x


def losses(p, q, voltage, resistance):
    current = (p**2 + q**2).sqrt() / voltage
    return (resistance * current**2).sum(-1) / p.sum(-1)


class LossesFunction(Function):
    @staticmethod
    def forward(ctx, p, q, voltage, resistance):
        ctx.save_for_backward(p, q, voltage, resistance)
        return losses(p, q, voltage, resistance)

    @staticmethod
    def backward(ctx, g):
        p, q, voltage, resistance = ctx.saved_tensors
        total = p.sum(-1, keepdim=True)
        squares = (p**2 + q**2) / voltage**2
        lost = (resistance * squares).sum(-1, keepdim=True)
        g = g.unsqueeze(-1) / total
        to_p = g * (2 * resistance * p / voltage**2 - lost / total)
        to_q = 2 * g * resistance * q / voltage**2
        return to_p, to_q, -2 * g * resistance * squares / voltage, (g * squares).sum(0)


class RelativeLineLoss(Function):
    """Share of the active power that is lost as heat in the feeders of each scenario."""

    @staticmethod
    def forward(ctx, P, Q, V, R):
        S2 = P.square() + Q.square()
        I2 = S2 / V.square()
        delivered = P.sum(dim=-1)
        heat = (R * I2).sum(dim=-1)
        ctx.save_for_backward(P, Q, V, R, I2, delivered)
        return heat / delivered

    @staticmethod
    def backward(ctx, grad):
        P, Q, V, R, I2, delivered = ctx.saved_tensors
        grad_heat = (grad / delivered).unsqueeze(-1)
        grad_I2 = grad_heat * R
        grad_S2 = grad_I2 / V.square()
        grad_P = 2 * P * grad_S2
        grad_Q = 2 * Q * grad_S2
        grad_V = -2 * grad_I2 * I2 / V
        grad_R = (grad_heat * I2).sum(dim=0)
        return grad_P, grad_Q, grad_V, grad_R


def frequency_path(load, inertia, damping):
    deviation, path = torch.zeros_like(inertia), []
    for t in range(len(load)):
        deviation = deviation - 0.1 * (load[t] + damping * deviation) / inertia
        path.append(deviation)
    return torch.stack(path)


class FrequencyPathFunction(Function):
    @staticmethod
    def forward(ctx, load, inertia, damping):
        path = frequency_path(load, inertia, damping)
        ctx.save_for_backward(load, inertia, damping, path)
        return path

    @staticmethod
    def backward(ctx, g):
        load, inertia, damping, path = ctx.saved_tensors
        to_load, later = torch.zeros_like(load), torch.zeros_like(inertia)
        to_inertia, to_damping = torch.zeros_like(inertia), torch.zeros_like(damping)
        for t in reversed(range(len(load))):
            before = path[t - 1] if t > 0 else torch.zeros_like(inertia)
            later = later + g[t]
            to_load[t] = (-0.1 * later / inertia).sum()
            to_damping = to_damping - 0.1 * later * before / inertia
            to_inertia = to_inertia + 0.1 * later * (load[t] + damping * before) / inertia**2
            later = later * (1 - 0.1 * damping / inertia)
        return to_load, to_inertia, to_damping


class SwingEquation(Function):
    @staticmethod
    def forward(ctx, load, M, D):
        steps = load.shape[0]
        f = torch.zeros(steps + 1, M.shape[0], dtype=M.dtype, device=M.device)
        for k in range(steps):
            f[k + 1] = f[k] - 0.1 * (load[k] + D * f[k]) / M
        ctx.save_for_backward(load, M, D, f)
        return f[1:].clone()

    @staticmethod
    def backward(ctx, grad_f):
        load, M, D, f = ctx.saved_tensors
        grad_load = torch.zeros_like(load)
        grad_M = torch.zeros_like(M)
        grad_D = torch.zeros_like(D)
        adj = torch.zeros_like(M)
        for k in range(load.shape[0] - 1, -1, -1):
            adj = adj + grad_f[k]
            rate = adj * -0.1 / M
            grad_load[k] = rate.sum()
            grad_D += rate * f[k + 1]
            grad_M -= rate * (load[k] + D * f[k]) / M
            adj = adj + rate * D
        return grad_load, grad_M, grad_D


def nodes():
    return {
        "voltage": 0.8 + 0.4 * torch.rand(4),
        "angle": torch.randn(4),
        "conductance": torch.randn(4, 4),
        "susceptance": torch.randn(4, 4),
    }


def feeders():
    return {
        "p": 0.5 + torch.rand(3, 4),
        "q": torch.randn(3, 4),
        "voltage": 0.8 + torch.rand(3, 4),
        "resistance": torch.rand(4) + 0.1,
    }


OPERATIONS = [
    Operation(
        "power at the nodes, voltage of the neighbours",
        NodePowerFunction,
        ActivePower,
        node_power,
        nodes,
        named="voltage: the part as the neighbour of other nodes, the transposed product, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"transpos", r"constant", r"current|Y @ V"),
        located=(r"gradient of (voltage|V)\b",),
    ),
    Operation(
        "lines of direct current, nodes with several lines",
        LineFlowsFunction,
        DCFlow,
        line_flows,
        lambda: {"angle": torch.randn(4), "reactance": 0.3 + torch.rand(5)},
        named="angles: a node that begins or ends several lines gets the gradient of one of them only",
        kinds=("missing term", "wrong sum", "only at some indices", "few elements"),
        named_words=(r"repeat|several|accumulate|index_add|index_put|scatter",),
        located=(r"gradient of (angle|theta)\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "share of power lost, power in the divisor",
        LossesFunction,
        RelativeLineLoss,
        losses,
        feeders,
        named="p: the part through the divisor, the sum of the power, is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"divisor|denominator|delivered|quotient|divi", r"constant"),
        located=(r"gradient of [pP]\b",),
        options={"whole_numbers": False},
    ),
    Operation(
        "frequency after a fault, deviation after the step",
        FrequencyPathFunction,
        SwingEquation,
        frequency_path,
        lambda: {"load": torch.randn(5), "inertia": 0.5 + torch.rand(2), "damping": 0.5 + torch.rand(2)},
        named="damping: the deviation after the step stands for the one before it",
        kinds=("shifted", "another operand"),
        named_words=(r"shift|one step|before|previous|earlier", r"f\[k\]|f\[k \+ 1\]"),
        located=(r"gradient of (damping|D)\b",),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
