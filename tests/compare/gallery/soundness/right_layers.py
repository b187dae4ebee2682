"""Right Functions of layers, losses and linear algebra, written in several ways."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.grad import conv1d_input, conv1d_weight, conv2d_input, conv2d_weight

from compare.case import Case
from tests.compare.gallery.soundness.wrong_gradient import from_output
from tests.compare.gallery.wrong_function import hand_written, randn


def right(name: str, native: Any, backward: Any, make_inputs: Any, **options: Any) -> Case:
    """Make a case of a Function that saves its inputs; backward computes in float64."""
    return Case(f"right: {name}", hand_written(native, backward), native, make_inputs, **options)


def right_from_output(name: str, native: Any, backward: Any, make_inputs: Any, **options: Any) -> Case:
    """Make a case of a Function with ``setup_context`` that saves its output too."""
    return Case(f"right: {name}", from_output(native, backward), native, make_inputs, **options)


def conv_backward(g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Return the unsummed gradient of the bias, which autograd sums, since it is (C_out, 1, 1)."""
    return conv2d_input(x.shape, w, g), conv2d_weight(x, w.shape, g), g


def conv_with_bias(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(x, w) + b


def conv1d_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    options = {"stride": 2, "padding": 1}
    return conv1d_input(x.shape, w, g, **options), conv1d_weight(x, w.shape, g, **options)


def rnn_cell(x: Tensor, h: Tensor, v: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(x @ v.T + h @ w.T)


def rnn_cell_backward(g: Tensor, y: Tensor, x: Tensor, h: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    g = g * (1 - y * y)
    return g @ v, g @ w, g.T @ x, g.T @ h


def gru_gate(h: Tensor, n: Tensor, z: Tensor) -> Tensor:
    return (1 - z.sigmoid()) * n + z.sigmoid() * h


def gru_gate_backward(g: Tensor, h: Tensor, n: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    s = z.sigmoid()
    return g * s, g * (1 - s), g * (h - n) * s * (1 - s)


def rms_norm(x: Tensor, w: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w


def rms_norm_backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unsummed gradient of the weight."""
    root = (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    scaled = g * w
    return (scaled - x * (scaled * x).mean(-1, keepdim=True) / root**2) / root, g * x / root


def swiglu(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return F.silu(a) * b


def swiglu_backward(g: Tensor, x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    s = a.sigmoid()
    return torch.cat([g * b * (s + a * s * (1 - s)), g * a * s], -1)


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def linear_upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, size=5, mode="linear", align_corners=True)


def linear_upsample_backward(g: Tensor, x: Tensor) -> Tensor:
    matrix = linear_upsample(torch.eye(3, dtype=g.dtype)[None])[0]  # (3, 5): it is linear
    return g @ matrix.T


class WithParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.weight.T)


class ByHand(WithParameters):
    def forward(self, x: Tensor) -> Tensor:
        return ScaledLinear.apply(x, self.weight, self.scale)


class ScaledLinear(Function):
    """Linear layer with one scale; asks which gradients are wanted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        y = x @ w.T
        ctx.save_for_backward(x, w, scale, y if ctx.needs_input_grad[2] else None)
        return scale * y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, scale, y = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            scale * (g @ w) if needs[0] else None,
            scale * (g.T @ x) if needs[1] else None,
            (g * y).sum() if needs[2] else None,
        )


def nll(z: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(z, y, ignore_index=-1)


def nll_backward(g: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, None]:
    valid = y >= 0
    return -g / valid.sum() * F.one_hot(y.clamp(min=0), z.shape[1]) * valid[:, None], None


def focal(x: Tensor, y: Tensor) -> Tensor:
    return -(y * (1 - x.sigmoid()).square() * F.logsigmoid(x)).sum()


def focal_backward(g: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    p, log_p = x.sigmoid(), F.logsigmoid(x)
    return g * y * (2 * p * (1 - p) ** 2 * log_p - (1 - p) ** 3), -g * (1 - p) ** 2 * log_p


def alignments(z: Tensor) -> Tensor:
    """Log of the sum over all monotone alignments of T = 4 frames to 2 labels, as in CTC without blanks."""
    a, b = z.log_softmax(1).unbind(1)
    paths = torch.stack([a[:n].sum() + b[n:].sum() for n in range(1, len(z))])
    return paths.logsumexp(0)


def alignments_backward(g: Tensor, z: Tensor) -> Tensor:
    a, b = z.log_softmax(1).unbind(1)
    paths = torch.stack([a[:n].sum() + b[n:].sum() for n in range(1, len(z))]).softmax(0)
    first = torch.stack([paths[t:].sum() for t in range(len(z))])  # paths in which frame t has the first label
    occupation = torch.stack([first, 1 - first], 1)
    return g * (occupation - z.softmax(1))


def pinball(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(y > x, 0.9 * (y - x), 0.1 * (x - y)).mean()


def pinball_backward(g: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    grad = g * torch.where(y > x, -0.9 * torch.ones_like(x), 0.1) / x.numel()
    return grad, -grad


def normalize_backward(g: Tensor, x: Tensor) -> Tensor:
    """Gradient of x, where y = x / |x| row by row."""
    norm = x.norm(dim=1, keepdim=True)
    return (g - x * (g * x).sum(1, keepdim=True) / norm**2) / norm


X = randn(x=(3, 4))

RIGHT_LAYERS = [
    right("channels last", lambda x: (2 * x).contiguous(memory_format=torch.channels_last), lambda g, x: 2 * g,
          randn(x=(2, 3, 2, 2))),
    right("convolution with an unsummed gradient of the bias", conv_with_bias, conv_backward,
          randn(x=(2, 1, 4, 3), w=(2, 1, 2, 2), b=(2, 1, 1))),
    right("convolution with stride and padding", lambda x, w: F.conv1d(x, w, stride=2, padding=1), conv1d_backward,
          randn(x=(2, 2, 6), w=(3, 2, 3))),
    right("one example, linear", F.linear, lambda g, x, w, b: (g @ w, g.T @ x, g), randn(x=(1, 3), w=(2, 3), b=(2,))),
    right_from_output("cell of an RNN", rnn_cell, rnn_cell_backward,
                      randn(x=(2, 3), h=(2, 2), v=(2, 3), w=(2, 2))),
    right("gate of a GRU", gru_gate, gru_gate_backward, randn(h=(2, 3), n=(2, 3), z=(2, 3))),
    right("RMS norm", rms_norm, rms_norm_backward, randn(x=(3, 5), w=(5,))),
    right("SwiGLU", swiglu, swiglu_backward, randn(x=(3, 4))),
    right("nearest upsampling", upsample,
          lambda g, x: g.unflatten(3, (-1, 2)).sum(4).unflatten(2, (-1, 2)).sum(3), randn(x=(1, 2, 2, 3))),
    right("linear interpolation", linear_upsample, linear_upsample_backward, randn(x=(2, 2, 3))),
    Case.from_modules("right: module with a scalar parameter", ByHand(), WithParameters(), lambda: torch.randn(4, 3)),
    Case("right: linear layer that asks which gradients are wanted", ScaledLinear.apply,
         lambda x, w, scale: scale * (x @ w.T), randn(x=(4, 3), w=(2, 3), scale=())),
    right("negative log-likelihood with ignored labels", nll, nll_backward,
          lambda: {"z": torch.randn(4, 3), "y": torch.tensor([2, -1, 0, -1])}),
    right("focal loss", focal, focal_backward, randn(x=(3, 2), y=(3, 2))),
    right("sum over alignments", alignments, alignments_backward, randn(z=(4, 2))),
    right("quantile loss", pinball, pinball_backward, randn(x=(3, 2), y=(3, 2))),
    right("cosine similarity", lambda a, b: F.normalize(a, dim=1) @ F.normalize(b, dim=1).T,
          lambda g, a, b: (normalize_backward(g @ F.normalize(b, dim=1), a),
                           normalize_backward(g.T @ F.normalize(a, dim=1), b)),
          randn(a=(3, 4), b=(2, 4)), whole_numbers=False),
    right_from_output("norm of everything", lambda x: x.norm(), lambda g, y, x: g * x / y, randn(x=(2, 3, 2))),
    right("logsumexp of large values", lambda x: x.logsumexp(1), lambda g, x: g[:, None] * x.softmax(1),
          lambda: {"x": 200 * torch.randn(3, 4)}),
    right("softplus of large values", lambda x: torch.logaddexp(x, x.new_zeros(())), lambda g, x: g * x.sigmoid(),
          lambda: {"x": 50 * torch.randn(3, 4)}),
    right_from_output("square root near 0", torch.sqrt, lambda g, y, x: g / (2 * y),
                      lambda: {"x": torch.rand(3, 4) ** 4 + 1e-3}, whole_numbers=False),
    right("error function", torch.erf, lambda g, x: g * 2 / math.sqrt(math.pi) * (-x * x).exp(), randn(x=())),
]  # fmt: skip
