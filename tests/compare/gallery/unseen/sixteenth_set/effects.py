"""Effects on sounds: an echo that grows dull, a compressor's gain."""

from __future__ import annotations

import torch
from torch.autograd import Function

from compare import Case
from tests.compare.gallery.unseen.operation import Operation, WrongFunction, wrong_and_right

DELAY = 2
KNEE, RATIO = 2.0, 4.0


def dull_echo(x, feedback, damping):
    state, out = torch.zeros_like(x[0]), []
    for t in range(len(x)):
        back = out[t - DELAY] if t >= DELAY else torch.zeros_like(x[0])
        state = damping * state + (1 - damping) * back
        out.append(x[t] + feedback * state)
    return torch.stack(out)


class DullEchoFunction(Function):
    @staticmethod
    def forward(ctx, x, feedback, damping):
        ctx.save_for_backward(x, feedback, damping)
        return dull_echo(x, feedback, damping)

    @staticmethod
    def backward(ctx, g):
        x, feedback, damping = ctx.saved_tensors
        y, state = [], [torch.zeros_like(x[0])]
        for t in range(len(x)):
            back = y[t - DELAY] if t >= DELAY else torch.zeros_like(x[0])
            state.append(damping * state[t] + (1 - damping) * back)
            y.append(x[t] + feedback * state[t + 1])
        to_y = list(g)
        grad_feedback, grad_damping, carried = (torch.zeros_like(feedback) for _ in range(3))
        carried = torch.zeros_like(x[0])
        for t in reversed(range(len(x))):
            back = y[t - DELAY] if t >= DELAY else torch.zeros_like(x[0])
            to_state = carried + feedback * to_y[t]
            grad_feedback = grad_feedback + (to_y[t] * state[t + 1]).sum()
            grad_damping = grad_damping + (to_state * (state[t] - back)).sum()
            if t >= DELAY:
                to_y[t - DELAY] = to_y[t - DELAY] + (1 - damping) * to_state
            carried = damping * to_state
        return torch.stack(to_y), grad_feedback, grad_damping


class DampedComb(Function):
    """Comb filter of Freeverb: a low-pass filter in the feedback."""

    @staticmethod
    def forward(ctx, x, g, d):
        steps = x.size(0)
        y = torch.cat([x.new_zeros(DELAY, x.size(1)), x])
        s = x.new_zeros(steps + 1, x.size(1))
        for t in range(steps):
            s[t + 1] = (1 - d) * y[t] + d * s[t]
            y[t + DELAY] += g * s[t + 1]
        ctx.save_for_backward(y, s, g, d)
        return y[DELAY:].clone()

    @staticmethod
    def backward(ctx, grad_y):
        y, s, g, d = ctx.saved_tensors
        steps = grad_y.size(0)
        grad_s = torch.zeros_like(grad_y[0])
        grad_g, grad_d = torch.zeros_like(g), torch.zeros_like(d)
        for t in range(steps - 1, -1, -1):
            grad_s = grad_s + g * grad_y[t]
            grad_g += (grad_y[t] * s[t + 1]).sum()
            grad_d += (grad_s * (s[t] - y[t])).sum()
            if t >= DELAY:
                grad_y[t - DELAY] += (1 - d) * grad_s
            grad_s = grad_s * d
        return grad_y, grad_g, grad_d


def compressed_gain(level, threshold):
    over = level - threshold
    knee = (over + KNEE / 2) ** 2 / (2 * KNEE)
    curve = torch.where(over > KNEE / 2, over, torch.where(over < -KNEE / 2, torch.zeros_like(over), knee))
    return (1 / RATIO - 1) * curve


class SoftKneeCompressor(Function):
    @staticmethod
    def forward(ctx, level, threshold):
        over = level - threshold
        above = over >= KNEE / 2
        inside = (over.abs() < KNEE / 2).to(level.dtype)
        ctx.save_for_backward(over, above, inside)
        curve = over * above + inside * (over + KNEE / 2) ** 2 / (2 * KNEE)
        return (1 / RATIO - 1) * curve

    @staticmethod
    def backward(ctx, grad_gain):
        over, above, inside = ctx.saved_tensors
        grad_curve = (1 / RATIO - 1) * grad_gain
        grad_level = grad_curve * (above + inside * (over + KNEE / 2) / KNEE)
        grad_threshold = -(grad_curve * above).sum(dim=0)
        return grad_level, grad_threshold


OPERATIONS = [
    Operation(
        "echo that grows dull, incoming gradient as a buffer",
        DullEchoFunction,
        DampedComb,
        dull_echo,
        lambda: {"x": torch.randn(6, 3), "feedback": torch.rand(()), "damping": torch.rand(())},
        named="backward adds to the incoming gradient itself, which others may still need",
        kinds=("changes the incoming gradient", "not repeatable", "raises"),
        named_words=(r"incoming gradient", r"in.?place|changes|written", r"clone"),
        located=(r"incoming gradient|grad_y",),
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
WRONG += [
    WrongFunction(
        Case(
            "gain of a compressor, threshold inside of the knee",
            SoftKneeCompressor.apply,
            compressed_gain,
            lambda: {"level": 2 * torch.randn(6, 3), "threshold": torch.randn(3)},
        ),
        named="threshold: levels inside of the knee give it no gradient",
        kinds=("missing term", "only for some values", "another operand"),
        named_words=(r"missing", r"inside", r"knee|KNEE", r"constant"),
        located=(r"gradient of threshold",),
    ),
]
