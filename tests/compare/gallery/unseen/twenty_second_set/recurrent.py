"""Recurrent layers: pooled gates of a convolutional recurrence, states that are kept at random."""

from __future__ import annotations

import torch
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right


def pooled_states(z, f, o, c):
    candidates, forget, outputs = torch.tanh(z), torch.sigmoid(f), torch.sigmoid(o)
    states = []
    for n in range(z.size(0)):
        c = forget[n] * c + (1 - forget[n]) * candidates[n]
        states.append(outputs[n] * c)
    return torch.stack(states)


class PooledStatesFunction(Function):
    @staticmethod
    def forward(ctx, z, f, o, c):
        candidates, forget, outputs = torch.tanh(z), torch.sigmoid(f), torch.sigmoid(o)
        states = [c]
        for n in range(z.size(0)):
            states.append(torch.lerp(candidates[n], states[-1], forget[n]))
        states = torch.stack(states)
        ctx.save_for_backward(candidates, forget, outputs, states)
        return outputs * states[1:]

    @staticmethod
    def backward(ctx, g):
        candidates, forget, outputs, states = ctx.saved_tensors
        to_output = g * states[1:] * outputs * (1 - outputs)
        to_states = g * outputs
        carried = torch.zeros_like(states[0])
        to_candidates, to_forget = torch.empty_like(g), torch.empty_like(g)
        for n in reversed(range(g.size(0))):
            carried = carried + to_states[n]
            to_candidates[n] = carried * (1 - forget[n])
            to_forget[n] = carried * (states[n] - candidates[n])
            carried = carried * forget[n]
        to_candidates = to_candidates * (1 - candidates.square())
        return to_candidates, to_forget * forget * (1 - forget), to_output, carried


class QRNNPooling(Function):
    """fo-pooling of a quasi-recurrent network (Bradbury et al. 2017).

    c_t = f_t * c_{t-1} + (1 - f_t) * z_t,  h_t = o_t * c_t
    """

    @staticmethod
    def forward(ctx, z, f, o, c0):
        z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
        T = z.shape[0]
        c = torch.empty_like(z)
        c_prev = c0
        for t in range(T):
            c[t] = f[t] * c_prev + (1 - f[t]) * z[t]
            c_prev = c[t]
        ctx.save_for_backward(z, f, o, c, c0)
        return o * c

    @staticmethod
    def backward(ctx, grad_h):
        z, f, o, c, c0 = ctx.saved_tensors
        T = z.shape[0]
        dz, df, do = torch.empty_like(z), torch.empty_like(f), torch.empty_like(o)
        dc_next = torch.zeros_like(c0)
        for t in range(T - 1, -1, -1):
            do[t] = grad_h[t] * c[t]
            dc = grad_h[t] * o[t] + dc_next
            df[t] = dc * (c[t] - z[t])
            dz[t] = dc * (1 - f[t])
            dc_next = dc * f[t]
        dz = dz * (1 - z**2)
        df = df * f * (1 - f)
        do = do * o * (1 - o)
        return dz, df, do, dc_next


def kept_states(x, h, weight, recurrent, bias, kept):
    states = []
    for step, keep in zip(x, kept, strict=True):
        proposed = torch.tanh(step @ weight + h @ recurrent + bias)
        h = torch.where(keep, h, proposed)
        states.append(h)
    return torch.stack(states)


class KeptStatesFunction(Function):
    @staticmethod
    def forward(ctx, x, h, weight, recurrent, bias, kept):
        states, proposals = [h], []
        for n in range(x.size(0)):
            proposals.append(torch.tanh(x[n] @ weight + states[-1] @ recurrent + bias))
            states.append(torch.where(kept[n], states[-1], proposals[-1]))
        states = torch.stack(states)
        ctx.save_for_backward(x, weight, recurrent, kept, states, torch.stack(proposals))
        return states[1:].clone()

    @staticmethod
    def backward(ctx, g):
        x, weight, recurrent, kept, states, proposals = ctx.saved_tensors
        slopes = torch.empty_like(g)
        to_state = torch.zeros_like(states[0])
        for n in reversed(range(len(x))):
            to_state = to_state + g[n]
            slopes[n] = torch.where(kept[n], 0, to_state * (1 - proposals[n].square()))
            to_state = torch.where(kept[n], to_state, 0) + slopes[n] @ recurrent.mT
        flat = slopes.flatten(0, 1)
        to_weight = x.flatten(0, 1).mT @ flat
        to_recurrent = states[:-1].flatten(0, 1).mT @ flat
        return slopes @ weight.mT, to_state, to_weight, to_recurrent, flat.sum(0), None


class ZoneoutRNN(Function):
    """Elman network with zoneout (Krueger et al. 2017). ``mask`` is True where the unit keeps its old value."""

    @staticmethod
    def forward(ctx, x, h0, W, U, b, mask):
        h = h0
        hs, cands = [], []
        for t in range(x.size(0)):
            cand = torch.tanh(x[t] @ W + h @ U + b)
            h = torch.where(mask[t], h, cand)
            hs.append(h)
            cands.append(cand)
        out = torch.stack(hs)
        ctx.save_for_backward(x, h0, W, U, mask, out, torch.stack(cands))
        return out

    @staticmethod
    def backward(ctx, grad_out):
        x, h0, W, U, mask, out, cands = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        grad_W = torch.zeros_like(W)
        grad_U = torch.zeros_like(U)
        grad_b = W.new_zeros(W.size(1))
        grad_h = torch.zeros_like(h0)
        for t in range(x.size(0) - 1, -1, -1):
            grad_h = grad_h + grad_out[t]
            grad_a = grad_h * ~mask[t] * (1 - cands[t] ** 2)
            h_prev = out[t - 1] if t > 0 else h0
            grad_x[t] = grad_a @ W.t()
            grad_W += x[t].t() @ grad_a
            grad_U += h_prev.t() @ grad_a
            grad_b += grad_a.sum(0)
            grad_h = grad_a @ U.t()
        return grad_x, grad_h, grad_W, grad_U, grad_b, None


OPERATIONS = [
    Operation(
        "pooled gates of a recurrence, state after the step",
        PooledStatesFunction,
        QRNNPooling,
        pooled_states,
        lambda: {
            "z": torch.randn(4, 3, 2),
            "f": torch.randn(4, 3, 2),
            "o": torch.randn(4, 3, 2),
            "c": torch.randn(3, 2),
        },
        named="f: the state after the step stands where the state before the step belongs",
        kinds=("another operand", "shifted", "factor by element", "wrong intermediate value"),
        named_words=(r"c\[t - 1\]|c_prev|c0", r"before|previous|shift|earlier", r"\bc\b.*\bc\b"),
        located=(r"gradient of f\b",),
    ),
    Operation(
        "states kept at random, no gradient through kept states",
        KeptStatesFunction,
        ZoneoutRNN,
        kept_states,
        lambda: {
            "x": torch.randn(4, 3, 2),
            "h": torch.randn(3, 3),
            "weight": torch.randn(2, 3),
            "recurrent": torch.randn(3, 3),
            "bias": torch.randn(3),
            "kept": torch.rand(4, 3, 3) < 0.4,
        },
        named="a kept state is the previous one, so its gradient goes on to the previous state; that term is missing",
        kinds=("missing term", "step left out"),
        named_words=(r"missing", r"mask|kept|keep|where"),
        located=(r"gradient of (h|h0|x)\b",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
