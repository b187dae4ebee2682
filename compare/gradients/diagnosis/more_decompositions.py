"""Further composite functions of PyTorch in terms of simpler ones: activations, elementary functions, products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def log_softmax(x: Tensor, dim: int = -1, *_: Any, **__: Any) -> Tensor:
    shifted = x - x.detach().amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def softplus(x: Tensor, beta: float = 1.0, *_: Any) -> Tensor:
    return torch.log(1 + torch.exp(beta * x)) / beta


def elu(x: Tensor, alpha: float = 1.0, *_: Any, **__: Any) -> Tensor:
    return torch.where(x > 0, x, alpha * (torch.exp(x.clamp(max=0)) - 1))


def selu(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return 1.0507009873554804934193349852946 * elu(x, 1.6732632423543772848170429916717)


def celu(x: Tensor, alpha: float = 1.0, *_: Any, **__: Any) -> Tensor:
    return torch.where(x > 0, x, alpha * (torch.exp(x.clamp(max=0) / alpha) - 1))


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    return torch.where(x > 0, x, weight.reshape(-1, *[1] * max(0, x.dim() - 2)) * x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01, *_: Any, **__: Any) -> Tensor:
    return torch.where(x > 0, x, negative_slope * x)


def softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


def mish(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x * torch.tanh(torch.nn.functional.softplus(x))


def hardswish(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x * ((x + 3).clamp(0, 6) / 6)


def tanhshrink(x: Tensor) -> Tensor:
    return x - torch.tanh(x)


def glu(x: Tensor, dim: int = -1) -> Tensor:
    half = x.shape[dim] // 2
    return x.narrow(dim, 0, half) * torch.sigmoid(x.narrow(dim, half, half))


def logit(p: Tensor, *_: Any) -> Tensor:
    return torch.log(p) - torch.log(1 - p)


def xlogy(x: Tensor, y: Tensor) -> Tensor:
    return x * torch.log(y)


def hypot(a: Tensor, b: Tensor) -> Tensor:
    return torch.sqrt(a * a + b * b)


def logaddexp(a: Tensor, b: Tensor) -> Tensor:
    return torch.log(torch.exp(a) + torch.exp(b))


def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    largest = x.detach().amax(dim, keepdim=True)
    return torch.log(torch.exp(x - largest).cumsum(dim)) + largest


def lerp(a: Tensor, b: Tensor, weight: Any) -> Tensor:
    return a + weight * (b - a)


def addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + value * (a * b)


def addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: float = 1) -> Tensor:
    return x + value * (a / b)


def addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * x + alpha * (a @ b)


def outer_product(a: Tensor, b: Tensor) -> Tensor:
    return a[:, None] * b[None]


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def trace(a: Tensor) -> Tensor:
    return a.diagonal().sum()


def bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    product = torch.einsum("...i,oij,...j->...o", x, weight, y)
    return product if bias is None else product + bias


def cdist(a: Tensor, b: Tensor, p: float = 2.0, *_: Any, **__: Any) -> Tensor:
    difference = a.unsqueeze(-2) - b.unsqueeze(-3)
    return difference.abs().sum(-1) if p == 1 else torch.sqrt((difference * difference).sum(-1))


def pairwise_distance(a: Tensor, b: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    difference = a - b + eps
    return torch.sqrt((difference * difference).sum(-1, keepdim=keepdim))


def multi_dot(tensors: Any) -> Tensor:
    product = tensors[0]
    for each in tensors[1:]:
        product = product @ each
    return product


def cov(x: Tensor, *, correction: int = 1, **_: Any) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred @ centred.mT / (x.shape[1] - correction)


def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    square = torch.nn.functional.pad((x * x).movedim(1, -1), (size // 2, (size - 1) // 2))
    mean = square.unfold(-1, size, 1).mean(-1).movedim(-1, 1)
    return x / (k + alpha * mean) ** beta


MORE_DECOMPOSITIONS: dict[str, Callable[..., Tensor]] = {
    "softplus": softplus, "elu": elu, "selu": selu, "celu": celu, "prelu": prelu, "leaky_relu": leaky_relu,
    "softsign": softsign, "mish": mish, "hardswish": hardswish, "tanhshrink": tanhshrink,
    "glu": glu, "logit": logit, "special_logit": logit, "xlogy": xlogy, "special_xlogy": xlogy, "hypot": hypot,
    "logaddexp": logaddexp, "logcumsumexp": logcumsumexp, "lerp": lerp, "addcmul": addcmul, "addcdiv": addcdiv,
    "addmm": addmm, "outer": outer_product, "dot": dot, "trace": trace, "bilinear": bilinear, "cdist": cdist,
    "pairwise_distance": pairwise_distance, "linalg_multi_dot": multi_dot, "multi_dot": multi_dot, "cov": cov,
    "local_response_norm": local_response_norm,
    "logsigmoid": lambda x: -torch.nn.functional.softplus(-x),
    "softmin": lambda x, dim=-1, *_, **__: torch.softmax(-x, dim),
    "log1p": lambda x: torch.log(1 + x), "expm1": lambda x: torch.exp(x) - 1, "erfc": lambda x: 1 - torch.erf(x),
    "log2": lambda x: torch.log(x) / math.log(2), "log10": lambda x: torch.log(x) / math.log(10),
    "exp2": lambda x: torch.exp(x * math.log(2)), "tan": lambda x: torch.sin(x) / torch.cos(x),
    "sinc": lambda x: torch.sin(math.pi * x) / (math.pi * x),
}  # fmt: skip
