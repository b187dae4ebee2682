"""Composite functions of PyTorch in terms of simpler ones, so that the paths of a gradient in them can be told apart.

A function that its arguments do not fit, or that gives other values, is not used: see ``native_calls``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compare.gradients.diagnosis.loss_decompositions import LOSSES
from compare.gradients.diagnosis.more_decompositions import MORE_DECOMPOSITIONS, log_softmax


def softmax(x: Tensor, dim: int = -1, *_: Any, **__: Any) -> Tensor:
    e = (x - x.detach().amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    largest = x.detach().amax(dim, keepdim=True)
    result = (x - largest).exp().sum(dim, keepdim=True).log() + largest
    return result if keepdim else result.squeeze(dim)


def var(
    x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> Tensor:
    correction = (1 if unbiased else 0) if correction is None else correction
    dims = list(range(x.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    centred = x - x.mean(dims, keepdim=True)
    count = math.prod(x.shape[d] for d in dims)
    return (centred * centred).sum(dims, keepdim=keepdim) / (count - correction)


def std(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.sqrt(var(x, *args, **kwargs))


def _normalise(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    variance = (centred * centred).mean(dims, keepdim=True)
    return centred * torch.rsqrt(variance + eps)


def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    normalised = _normalise(x, list(range(-len(shape), 0)), eps)
    normalised = normalised if weight is None else normalised * weight
    return normalised if bias is None else normalised + bias


def rms_norm(x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    square = (x * x).mean(list(range(-len(shape), 0)), keepdim=True)
    normalised = x * torch.rsqrt(square + eps)
    return normalised if weight is None else normalised * weight


def group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    grouped = x.reshape(len(x), groups, -1)
    return _affine(_normalise(grouped, [2], eps).reshape(x.shape), weight, bias)


def batch_norm(
    x: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *_: Any,
) -> Tensor:  # fmt: skip
    if not training:
        normalised = (x - _channels(running_mean, x)) * torch.rsqrt(_channels(running_var, x) + eps)
        return _affine(normalised, weight, bias)
    return _affine(_normalise(x, [d for d in range(x.dim()) if d != 1], eps), weight, bias)


def instance_norm(
    x: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *_: Any,
) -> Tensor:  # fmt: skip
    return _affine(_normalise(x, list(range(2, x.dim())), eps), weight, bias)


def _channels(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.dim() - 2))


def _affine(x: Tensor, weight: Any, bias: Any) -> Tensor:
    x = x if weight is None else x * _channels(weight, x)
    return x if bias is None else x + _channels(bias, x)


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, *_: Any, **__: Any) -> Tensor:
    length = (x * x).sum(dim, keepdim=True).sqrt().clamp_min(eps)
    return x / length


def norm(x: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, *_: Any, **__: Any) -> Tensor:
    dims = list(range(x.dim())) if dim is None else dim
    return (x * x).sum(dims, keepdim=keepdim).sqrt()


def vector_norm(x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False) -> Tensor:
    return norm(x, ord, dim, keepdim)


def cosine_similarity(a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    lengths = (a * a).sum(dim).sqrt().clamp_min(eps) * (b * b).sum(dim).sqrt().clamp_min(eps)
    return (a * b).sum(dim) / lengths


def linear(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    product = x @ weight.t()
    return product if bias is None else product + bias


def silu(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x * torch.sigmoid(x)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + torch.tanh(inner))
    return x * (0.5 * (1 + torch.erf(x / math.sqrt(2))))


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, **__: Any,
) -> Tensor:  # fmt: skip
    scores = (q @ k.mT) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    elif attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    return torch.softmax(scores, -1) @ v


DECOMPOSITIONS: dict[str, Callable[..., Tensor]] = {
    "softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp, "var": var, "std": std,
    "layer_norm": layer_norm, "rms_norm": rms_norm, "group_norm": group_norm, "batch_norm": batch_norm,
    "instance_norm": instance_norm, "normalize": normalize, "norm": norm, "vector_norm": vector_norm,
    "linalg_vector_norm": vector_norm, "linalg_norm": norm, "cosine_similarity": cosine_similarity, "linear": linear,
    "silu": silu, "gelu": gelu, "scaled_dot_product_attention": scaled_dot_product_attention,
    **LOSSES, **MORE_DECOMPOSITIONS,
}  # fmt: skip
