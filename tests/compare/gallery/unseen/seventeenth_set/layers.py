"""Layers: a cell whose matrix is antisymmetric, sines of a linear layer, weights of three values."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

STEP, DAMPING = 0.5, 0.1


def antisymmetric_cell(x, w, v):
    h, states = torch.zeros_like(x[0]), []
    for each in x:
        h = h + STEP * torch.tanh(each @ v + h @ (w - w.T) - DAMPING * h)
        states.append(h)
    return torch.stack(states)


class AntisymmetricCellFunction(Function):
    @staticmethod
    def forward(ctx, x, w, v):
        ctx.save_for_backward(x, w, v)
        return antisymmetric_cell(x, w, v)

    @staticmethod
    def backward(ctx, g):
        x, w, v = ctx.saved_tensors
        states = [torch.zeros_like(x[0]), *antisymmetric_cell(x, w, v)]
        grad_x, product, grad_v = torch.zeros_like(x), torch.zeros_like(w), torch.zeros_like(v)
        to_h = torch.zeros_like(x[0])
        for t in reversed(range(len(x))):
            to_h = to_h + g[t]
            change = (states[t + 1] - states[t]) / STEP
            to_sum = STEP * to_h * (1 - change**2)
            grad_x[t] = to_sum @ v.T
            grad_v = grad_v + x[t].T @ to_sum
            product = product + states[t].T @ to_sum
            to_h = to_h + to_sum @ (w - w.T).T - DAMPING * to_sum
        return grad_x, product - product.T, grad_v


class AntisymmetricRNN(Function):
    """Chang et al. 2019; inputs and states have the same size."""

    @staticmethod
    def forward(ctx, x, W, V):
        A = W - W.t() - DAMPING * torch.eye(W.size(0), dtype=W.dtype, device=W.device)
        h = x.new_zeros(x.shape[1:])
        hs, acts = [h], []
        for t in range(x.size(0)):
            act = torch.tanh(h.mm(A) + x[t].mm(V))
            h = h + STEP * act
            acts.append(act)
            hs.append(h)
        ctx.save_for_backward(x, A, V, torch.stack(hs), torch.stack(acts))
        return torch.stack(hs[1:])

    @staticmethod
    def backward(ctx, grad_hs):
        x, A, V, hs, acts = ctx.saved_tensors
        dA, dV = torch.zeros_like(A), torch.zeros_like(V)
        dx = torch.empty_like(x)
        dh = torch.zeros_like(hs[0])
        for t in range(x.size(0) - 1, -1, -1):
            dh = dh + grad_hs[t]
            dpre = STEP * dh * (1 - acts[t] * acts[t])
            dA += hs[t].t().mm(dpre)
            dV += x[t].t().mm(dpre)
            dx[t] = dpre.mm(V.t())
            dh = dh + dpre.mm(A.t())
        return dx, dA, dV


def sine_layer(x, weight, bias, omega):
    return torch.sin(omega * (x @ weight.T + bias))


class SineLayerFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, omega):
        z = x @ weight.T + bias
        ctx.save_for_backward(x, weight, z, omega)
        return torch.sin(omega * z)

    @staticmethod
    def backward(ctx, g):
        x, weight, z, omega = ctx.saved_tensors
        to_argument = g * torch.cos(omega * z)
        to_z = omega * to_argument
        return to_z @ weight, to_z.T @ x, to_z.sum(0), (to_argument * z).sum()


class SirenLayer(Function):
    @staticmethod
    def forward(ctx, x, W, b, w0):
        pre = torch.addmm(b, x, W.t())
        ctx.save_for_backward(x, W, pre, w0)
        pre.mul_(w0)
        return pre.sin()

    @staticmethod
    def backward(ctx, grad_out):
        x, W, pre, w0 = ctx.saved_tensors
        d = grad_out * torch.cos(w0 * pre)
        grad_w0 = (d * pre).sum()
        d = d * w0
        return d.mm(W), d.t().mm(x), d.sum(dim=0), grad_w0


def ternary_weights(w):
    kept = (w.abs() > 0.7 * w.abs().mean(1, keepdim=True)).detach().to(w)
    scale = (w.abs() * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
    return scale * ((w.sign() * kept - w).detach() + w)


class TernaryWeight(Function):
    """Ternary weight network: -a, 0 or a in each row; the rounding is passed straight through."""

    @staticmethod
    def forward(ctx, w):
        mag = w.abs()
        mask = mag > 0.7 * mag.mean(dim=1, keepdim=True)
        alpha = (mag * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        ternary = torch.sign(w) * mask
        ctx.save_for_backward(alpha, ternary)
        return alpha * ternary

    @staticmethod
    def backward(ctx, grad_output):
        alpha, ternary = ctx.saved_tensors
        grad_alpha = (grad_output * ternary).sum(dim=1, keepdim=True)
        return grad_output * alpha + grad_alpha * ternary / ternary.shape[1]


OPERATIONS = [
    Operation(
        "cell with an antisymmetric matrix, one half of its gradient",
        AntisymmetricCellFunction,
        AntisymmetricRNN,
        antisymmetric_cell,
        lambda: {"x": torch.randn(4, 2, 3), "w": torch.randn(3, 3), "v": torch.randn(3, 3)},
        named="w: the cell uses w minus its transpose, and the part through the transpose is missing",
        kinds=("missing term", "step left out", "wrong half"),
        named_words=(r"missing", r"transpos|dA\.t|\.T\b|\.mT", r"half|symmetric"),
        located=(r"gradient of (w|W)\b",),
    ),
    Operation(
        "sines of a linear layer, saved before a change in place",
        SineLayerFunction,
        SirenLayer,
        sine_layer,
        lambda: {
            "x": torch.randn(5, 3),
            "weight": torch.randn(4, 3),
            "bias": torch.randn(4),
            "omega": 1.5 + torch.rand(()),
        },
        named="forward multiplies the saved sum by omega in place, so backward multiplies it by omega once more",
        kinds=("another operand", "step left out", "factor of one term"),
        named_words=(r"in.?place|mul_", r"\bpre\b", r"omega|w0"),
        located=(r"gradient of (x|weight|W)\b", r"gradient of (omega|w0)\b"),
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "weights of three values, number of all",
            TernaryWeight.apply,
            ternary_weights,
            lambda: {"w": torch.randn(4, 6)},
            kinks=True,
            whole_numbers=False,
        ),
        named="the scale is the mean of the kept weights, and its gradient is divided by the number of all",
        kinds=("factor of one term", "wrong sum", "another operand", "step left out"),
        named_words=(r"number|count|size of|shape", r"mean", r"kept|mask"),
        located=(r"gradient of w\b",),
    ),
]
