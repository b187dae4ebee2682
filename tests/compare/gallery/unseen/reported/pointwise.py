"""Reported mistakes in activations, quantizers, softmax and losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from tests.compare.gallery.unseen.operation import Operation, wrong_and_right

IGNORED = -1
SMOOTHING = 0.2
LOW, HIGH = -2, 1


def swiglu(e, g):
    return F.silu(e) * g


class SwiGLUFunction(Function):
    @staticmethod
    def forward(ctx, e, g):
        ctx.save_for_backward(e, g)
        return swiglu(e, g)

    @staticmethod
    def backward(ctx, grad):
        e, g = ctx.saved_tensors
        s = torch.sigmoid(e)
        return grad * g * (s + e * s * (1 - s)), grad * e * s


class FastSwiGLU(Function):
    @staticmethod
    def forward(ctx, e, g):
        ctx.save_for_backward(e, g)
        return e * torch.sigmoid(e) * g

    @staticmethod
    def backward(ctx, DW):
        e, g = ctx.saved_tensors
        se = torch.sigmoid(e)
        f = se * e
        df = DW * f
        dg = DW * g
        de = dg * se * (1.0 + e * (1.0 - se))
        return df, de


def dense_silu(x, weight):
    return F.silu(x @ weight.T)


class DenseSiLUFunction(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return dense_silu(x, weight)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        z = x @ weight.T
        s = torch.sigmoid(z)
        delta = g * s * (1 + z * (1 - s))
        return delta @ weight, delta.T @ x


class FusedLinearSwish(Function):
    @staticmethod
    def forward(ctx, x, weight):
        z = x @ weight.t()
        activation = z * torch.sigmoid(z)
        ctx.save_for_backward(x, weight, activation)
        return activation

    @staticmethod
    def backward(ctx, grad_output):
        x, weight, activation = ctx.saved_tensors
        s = torch.sigmoid(activation)
        delta = grad_output * (s + activation * s * (1 - s))
        return delta @ weight, delta.t() @ x


def softmax(x):
    return torch.softmax(x, 1)


class SoftmaxFunction(Function):
    @staticmethod
    def forward(ctx, x):
        y = softmax(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return y * (g - (g * y).sum(1, keepdim=True))


class SoftmaxWithoutDot(Function):
    @staticmethod
    def forward(ctx, x):
        e = torch.exp(x - x.amax(1, keepdim=True))
        y = e / e.sum(1, keepdim=True)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad_output):
        (y,) = ctx.saved_tensors
        return grad_output * y * (1 - y)


def logits(x, weight, bias):
    return x @ weight.T + bias


class LogitsFunction(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return logits(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight, g.T @ x, g.sum(0)


class SoftmaxRegression(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight, bias)
        return torch.mm(x, weight.t()) + bias

    @staticmethod
    def backward(ctx, difference):
        x, weight, bias = ctx.saved_tensors
        grad_weight = torch.mm(x.t(), difference).t()
        grad_bias = torch.sum(difference)
        return torch.mm(difference, weight), grad_weight, grad_bias.expand_as(bias)


def smoothed_cross_entropy(x, labels):
    kept = labels != IGNORED
    logs = torch.log_softmax(x, 1)
    picked = logs.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    rows = (1 - SMOOTHING) * picked + SMOOTHING * logs.mean(1)
    return -(rows * kept).sum() / kept.sum()


class SmoothedFunction(Function):
    @staticmethod
    def forward(ctx, x, labels):
        ctx.save_for_backward(x, labels)
        return smoothed_cross_entropy(x, labels)

    @staticmethod
    def backward(ctx, g):
        x, labels = ctx.saved_tensors
        kept = (labels != IGNORED)[:, None]
        target = (1 - SMOOTHING) * F.one_hot(labels.clamp(min=0), x.shape[1]).to(x) + SMOOTHING / x.shape[1]
        return g * (torch.softmax(x, 1) - target) * kept / kept.sum(), None


class LabelSmoothing(Function):
    @staticmethod
    def forward(ctx, x, target):
        ctx.save_for_backward(x, target)
        return smoothed_cross_entropy(x, target)

    @staticmethod
    def backward(ctx, grad):
        x, target = ctx.saved_tensors
        mask = (target != IGNORED).to(x)
        classes = x.size(1)
        p = torch.softmax(x, 1)
        hard = (p - F.one_hot(target.clamp(min=0), classes)) * mask[:, None]
        smooth = p - 1 / classes
        return grad * ((1 - SMOOTHING) * hard + SMOOTHING * smooth) / mask.sum(), None


def fake_quantized(x, scale):
    scaled = x / scale
    rounded = scaled.round()
    inside = (rounded >= LOW) & (rounded <= HIGH)
    through = torch.where(inside, x, x.detach())
    return (rounded.clamp(LOW, HIGH) * scale).detach() + through - through.detach()


class FakeQuantizedFunction(Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return fake_quantized(x, scale)

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        rounded = (x / scale).round()
        return g * ((rounded >= LOW) & (rounded <= HIGH)), None


class FakeQuantizeClamp(Function):
    @staticmethod
    def forward(ctx, x, scale):
        q = torch.round(x / scale)
        ctx.save_for_backward(q)
        return q.clamp(LOW, HIGH) * scale

    @staticmethod
    def backward(ctx, grad_output):
        (q,) = ctx.saved_tensors
        return torch.where((q > LOW) & (q < HIGH), grad_output, torch.zeros_like(grad_output)), None


class QuantGrad(Function):
    @staticmethod
    def forward(ctx, tensor, scale):
        return torch.clamp(torch.round(tensor / scale), LOW, HIGH) * scale

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output, None


def quantizer(apply, x):
    return apply(x, torch.tensor(0.5, dtype=x.dtype))


OPERATIONS = [
    Operation(
        "SwiGLU, places of the gradients",
        SwiGLUFunction,
        FastSwiGLU,
        swiglu,
        lambda: {"e": torch.randn(5, 4), "g": torch.randn(5, 4)},
        named="the gradients of the two halves are stored in one another's place (unslothai/unsloth #3314)",
        kinds=("swapped",),
        named_words=(r"gradient of [eg]", r"de, df"),
        located=(r"gradient of e", r"gradient of g"),
        options={"whole_numbers": False},
    ),
    Operation(
        "dense and SiLU, result for its argument",
        DenseSiLUFunction,
        FusedLinearSwish,
        dense_silu,
        lambda: (torch.randn(5, 4), torch.randn(3, 4)),
        named="SiLU's derivative is taken at its result and not at its argument (ooples/AiDotNet.Tensors #106)",
        kinds=("another operand",),
        named_words=(r"silu",),
        located=(r"gradient of x", r"gradient of weight"),
        options={"whole_numbers": False},
    ),
    Operation(
        "softmax, diagonal of the Jacobian",
        SoftmaxFunction,
        SoftmaxWithoutDot,
        softmax,
        lambda: (torch.randn(5, 4),),
        named="only the Jacobian's diagonal is used: the dot product is missing (HomericIntelligence/Odyssey #2134)",
        kinds=("missing term", "wrong sum"),
        named_words=(r"diagonal|missing|sigmoid",),
        located=(r"gradient of x",),
        options={"whole_numbers": False},
    ),
    Operation(
        "dense, one sum for the bias",
        LogitsFunction,
        SoftmaxRegression,
        logits,
        lambda: (torch.randn(5, 4), torch.randn(3, 4), torch.randn(3)),
        named="the bias's gradient is summed over the classes, too (rasbt/stat453-deep-learning-ss21 #5)",
        kinds=("wrong sum", "summed over the batch"),
        named_words=(r"sum",),
        located=(r"gradient of bias",),
    ),
    Operation(
        "smoothed labels, rows that are ignored",
        SmoothedFunction,
        LabelSmoothing,
        smoothed_cross_entropy,
        lambda: {"x": torch.randn(6, 4), "labels": torch.tensor([0, 3, IGNORED, 1, IGNORED, 2])},
        named="the uniform part of the loss counts the ignored rows (pytorch/pytorch #73205)",
        kinds=("only for some values", "missing term", "step left out", "only at some indices"),
        named_words=(r"labels", r"rows? 2", r"kept|mask"),
        located=(r"gradient of x",),
        options={"whole_numbers": False},
    ),
    Operation(
        "fake quantizer, bounds of the clamp",
        FakeQuantizedFunction,
        FakeQuantizeClamp,
        lambda x: fake_quantized(x, torch.tensor(0.5, dtype=x.dtype)),
        lambda: (torch.randn(8, 5),),
        named="elements that are rounded to a bound get no gradient (pytorch/ao #4806)",
        kinds=("only at bounds", "only for some values"),
        named_words=(r"bound|-2|-1 |0\.5|>=|<=",),
        located=(r"gradient of x",),
        call=quantizer,
        options={"whole_numbers": False},
    ),
    Operation(
        "fake quantizer, no mask",
        FakeQuantizedFunction,
        QuantGrad,
        lambda x: fake_quantized(x, torch.tensor(0.5, dtype=x.dtype)),
        lambda: (torch.randn(8, 5),),
        named="elements outside of the bounds get the incoming gradient (microsoft/nni #3160)",
        kinds=("passes the incoming gradient through", "only for some values", "step left out"),
        named_words=(r"mask|outside|passes|unchanged",),
        located=(r"gradient of x",),
        call=quantizer,
        options={"whole_numbers": False},
    ),
]

WRONG, RIGHT = wrong_and_right(OPERATIONS)
