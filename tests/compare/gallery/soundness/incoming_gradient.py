"""Gradients that are right for some incoming gradients only, or that are not linear in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.grad import conv1d_weight

from compare.case import Case
from tests.compare.gallery.soundness.wrong_gradient import WrongGradient, from_output, wrong
from tests.compare.gallery.wrong_function import hand_written, randn


class ScaledSine(Function):
    """Sine with a constant factor; backward has the input in place of the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return factor * x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.factor * x * x.cos(), None


class BothOutputs(Function):
    """Sine and cosine; backward fails if one of them is not used, since it is passed None."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.cos()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad_sine: Tensor, grad_cosine: Tensor) -> Tensor:
        sine, cosine = ctx.saved_tensors
        return grad_sine * cosine - grad_cosine * sine


class OneOutputAlone(Function):
    """Sum and difference; the second input loses its gradient if that of the difference is 0."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + b, a - b

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return g + h, g - h if h.any() else h


class AffineFunction(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight + bias

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        return g * weight, (g * x).sum(0), x.sum(0)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.linspace(0.5, 2, 4)), nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class WrongAffine(Affine):
    def forward(self, x: Tensor) -> Tensor:
        return AffineFunction.apply(x, self.weight, self.bias)


def affine() -> WrongGradient:
    case = Case.from_modules("affine: grad_bias sums x", WrongAffine(), Affine(), lambda: torch.randn(5, 4))
    return WrongGradient(lambda: case, "bias")


def row_norm(x: Tensor) -> Tensor:
    return x.norm(dim=1)


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:])


def layer_norm_backward_with_x(g: Tensor, x: Tensor) -> Tensor:
    """Subtract the mean of x in place of the mean of g."""
    deviation = x.var(1, correction=0, keepdim=True).add(1e-5).sqrt()
    x_hat = (x - x.mean(1, keepdim=True)) / deviation
    return (g - x.mean(1, keepdim=True) - x_hat * (g * x_hat).mean(1, keepdim=True)) / deviation


def clip_norm(g: Tensor, largest: float) -> Tensor:
    return g * (largest / g.norm()).clamp(max=1)


def avg_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def upsample(g: Tensor) -> Tensor:
    return g.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4


def smooth_l1(x: Tensor, y: Tensor) -> Tensor:
    return F.smooth_l1_loss(x, y, reduction="none")


def conv1d_backward_clipped(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return F.conv_transpose1d(g, weight), conv1d_weight(x, weight.shape, g.clamp(-10, 10))


def softmax_nonlinear(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return y * (g - (g * g * y).sum(-1, keepdim=True))


def scale_by_nonzeros(g: Tensor, x: Tensor) -> Tensor:
    """Divide by the number of nonzero elements of g and multiply by that of all."""
    return g * x.cos() * g.numel() / g.count_nonzero().clamp(min=1)


def drawn_in_float64(**shapes: tuple[int, ...]) -> Callable[[], dict[str, Tensor]]:
    """Return a ``make_inputs`` that draws in float64, as a checker may draw its incoming gradients."""
    return lambda: {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


X = randn(x=(4, 5))
PAIR = randn(x=(3, 4), y=(3, 4))

INCOMING_GRADIENT = [
    wrong("sine times 3: x in place of g", "x", lambda x: ScaledSine.apply(x, 3.0), lambda x: 3 * x.sin(),
          drawn_in_float64(x=(40,))),
    wrong("sine of one number: x in place of g", "x", lambda x: ScaledSine.apply(x, 2.0), lambda x: 2 * x.sin(),
          drawn_in_float64(x=())),
    wrong("tanh: y in place of g", "x", from_output(torch.tanh, lambda g, y, x: y * (1 - y * y)), torch.tanh,
          randn(x=(2, 3, 2))),
    wrong("cube: g cubed, x in its place", "x", hand_written(lambda x: x**3, lambda g, x: 3 * g * g * x),
          lambda x: x**3, drawn_in_float64(x=(20,))),
    wrong("product of square matrices: grad_w transposes g in place of x", "w",
          hand_written(torch.mm, lambda g, x, w: (g @ w.T, g.T @ x)), torch.mm, randn(x=(4, 4), w=(4, 4))),
    wrong("cosine of a vector: every g divided by the first, times the first of x", "x",
          hand_written(torch.cos, lambda g, x: -g / g[0] * x[0] * x.sin()), torch.cos, drawn_in_float64(x=(9,))),
    wrong("vector plus vector: x in place of g", "b", hand_written(torch.add, lambda g, a, b: (g, a)), torch.add,
          drawn_in_float64(a=(8,), b=(8,))),
    wrong("product of square matrices: g and x exchanged in grad_w", "w",
          hand_written(torch.matmul, lambda g, x, w: (g @ w.mT, (g.mT @ x).sum(0))), torch.matmul,
          randn(x=(2, 3, 3), w=(3, 3))),
    wrong("multiplication: grad_w = x * x", "w", hand_written(torch.mul, lambda g, x, w: (g * w, x * x)), torch.mul,
          drawn_in_float64(x=(10,), w=(10,))),
    wrong("norm of rows: norm of g in place of g", "x",
          hand_written(row_norm, lambda g, x: x / x.norm(dim=1, keepdim=True) * g.norm()), row_norm, X),
    wrong("absolute value: x in place of g times its sign", "x", hand_written(torch.abs, lambda g, x: x.abs()),
          torch.abs,
          drawn_in_float64(x=(20,))),
    wrong("absolute value: |g| with the sign of x", "x", hand_written(torch.abs, lambda g, x: g.abs() * x.sign()),
          torch.abs, randn(x=(6,))),
    wrong("convolution: grad_weight of g clipped at 10", "weight", hand_written(F.conv1d, conv1d_backward_clipped),
          F.conv1d, randn(x=(2, 2, 5), weight=(3, 2, 2))),
    wrong("square: g clipped at 3", "x", hand_written(torch.square, lambda g, x: 2 * g.clamp(-3, 3) * x),
          torch.square, X),
    wrong("linear: norm of g clipped at 20", "x",
          hand_written(F.linear, lambda g, x, w: (clip_norm(g, 20) @ w, g.T @ x)), F.linear,
          randn(x=(3, 2), w=(4, 2))),
    wrong("average pooling: g below 0.001 is taken for 0", "x",
          hand_written(avg_pool, lambda g, x: upsample(g * (g.abs() > 1e-3))), avg_pool, randn(x=(2, 1, 4, 4))),
    wrong("average pooling: g below 0.1 is taken for 0", "x",
          hand_written(avg_pool, lambda g, x: upsample(g * (g.abs() > 0.1))), avg_pool, randn(x=(1, 2, 4, 4))),
    wrong("exponential: g rounded to steps of 1/16", "x",
          hand_written(torch.exp, lambda g, x: (16 * g).round() / 16 * x.exp()), torch.exp, X),
    wrong("exponential: g rounded to bfloat16", "x",
          hand_written(torch.exp, lambda g, x: g.bfloat16() * x.exp()), torch.exp, randn(x=(7,))),
    wrong("difference: sign of g", "y", hand_written(torch.sub, lambda g, x, y: (g, -g.sign())), torch.sub, PAIR),
    wrong("linear: weight decay in backward", "w",
          hand_written(F.linear, lambda g, x, w: (g @ w, g.T @ x + 1e-3 * w)), F.linear, randn(x=(3, 2), w=(4, 2))),
    wrong("sum: a constant of 1e-6 is added to g", "x",
          hand_written(lambda x: x.sum(0), lambda g, x: (g + 1e-6).expand_as(x)), lambda x: x.sum(0),
          randn(x=(3, 2, 2))),
    wrong("softplus: g squared with its sign", "x",
          hand_written(F.softplus, lambda g, x: g * g.abs() * x.sigmoid()), F.softplus, X),
    wrong("sigmoid: g normalised", "x",
          from_output(torch.sigmoid, lambda g, y, x: g / g.norm() * g.numel() ** 0.5 * y * (1 - y)), torch.sigmoid,
          X),
    wrong("ReLU: only positive g passes, as in guided backpropagation", "x",
          hand_written(F.relu, lambda g, x: g.clamp(min=0) * (x > 0)), F.relu, X),
    wrong("leaky ReLU: slope chosen by the sign of g", "x",
          hand_written(F.leaky_relu, lambda g, x: torch.where(g > 0, g, 0.01 * g)), F.leaky_relu, X),
    wrong("mean squared error: g taken for 1", "x",
          hand_written(F.mse_loss, lambda g, x, y: (2 * (x - y) / x.numel(), -2 * g * (x - y) / x.numel())),
          F.mse_loss, PAIR),
    wrong("cross-entropy: g taken for 1", "z",
          hand_written(F.cross_entropy, lambda g, z, y: ((z.softmax(1) - F.one_hot(y, 4)) / len(z), None)),
          F.cross_entropy, lambda: {"z": torch.randn(3, 4), "y": torch.tensor([0, 3, 1])}),
    wrong("dot product: g taken for 1 in one of two gradients", "w",
          hand_written(torch.dot, lambda g, x, w: (g * w, x)), torch.dot, randn(x=(5,), w=(5,))),
    wrong("smooth L1: sign of g lost", "y",
          hand_written(smooth_l1, lambda g, x, y: (g * (x - y).clamp(-1, 1), -g.abs() * (x - y).clamp(-1, 1))),
          smooth_l1, PAIR),
    wrong("sum: first element of g for all", "x",
          hand_written(lambda x: x.sum(1), lambda g, x: g[0].expand_as(x)), lambda x: x.sum(1), randn(x=(4, 3))),
    wrong("mean of columns: mean of g for all", "x",
          hand_written(lambda x: x.mean(0), lambda g, x: (g.mean() / len(x)).expand_as(x)), lambda x: x.mean(0), X),
    wrong("sine and cosine: their gradients exchanged", "x",
          hand_written(lambda x: (x.sin(), x.cos()), lambda g, h, x: h * x.cos() - g * x.sin()),
          lambda x: (x.sin(), x.cos()), X),
    wrong("sine and cosine: fails unless both outputs are used", "", BothOutputs.apply, lambda x: (x.sin(), x.cos()),
          randn(x=(2, 3))),
    wrong("sum and difference: gradient lost unless both outputs are used", "b", OneOutputAlone.apply,
          lambda a, b: (a + b, a - b), randn(a=(2, 3), b=(2, 3))),
    wrong("layer norm: mean of x in place of the mean of g", "x",
          hand_written(layer_norm, layer_norm_backward_with_x),
          layer_norm, X),
    wrong("softmax: g squared in the sum of the row", "x",
          from_output(lambda x: x.softmax(-1), softmax_nonlinear), lambda x: x.softmax(-1), randn(x=(2, 2, 3))),
    wrong("sine: divided by the number of nonzero elements of g", "x", hand_written(torch.sin, scale_by_nonzeros),
          torch.sin, X),
    affine(),
]  # fmt: skip
