"""Layers as the recursion of δ needs them: each with its inputs and what its forward saved, and z^l from these."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from manualgrad.ops.conv2d import conv2d_forward
from manualgrad.ops.conv_relu_pool_geometry import ConvReLUPoolGeometry
from manualgrad.ops.dense import dense_forward


@dataclass(frozen=True)
class ConvLayer:
    """A convolution, f^l = C, with its inputs and what its forward saved.

    w and b are the parameters of the model, no copies: after an update they hold the new values.

    Attributes:
        x: x^l, (N, H, W, C_in).
        w: w^l, (kH, kW, C_in, C_out).
        b: b^l, (C_out,).
        geometry: stride, padding and sizes of the convolution and of its pooling, and R'(0).
        pool_index: (N, C_out, H_out, W_out) uint8: the position of each pooling window's maximum and R' there, as
            ``ops/relu_pool.py`` encodes them.
    """

    x: Tensor
    w: Tensor
    b: Tensor | None
    geometry: ConvReLUPoolGeometry
    pool_index: Tensor

    @cached_property
    @torch.no_grad()
    def z(self) -> Tensor:
        """z^l, computed from x, w and b when it is first read, since backward needs only the pool index."""
        return conv2d_forward(self.x, self.w, self.b, self.geometry.convolution)  # eq. (17), f = C


@dataclass(frozen=True)
class DenseLayer:
    """A dense layer, f^l = D, with its inputs. w and b are the parameters of the model, no copies.

    Attributes:
        x: x^l, (N, in_features).
        w: w^l, (in_features, out_features).
        b: b^l, (out_features,).
    """

    x: Tensor
    w: Tensor
    b: Tensor | None

    @cached_property
    @torch.no_grad()
    def z(self) -> Tensor:
        """z^l, (N, out_features), computed from x, w and b when it is first read."""
        return dense_forward(self.x, self.w, self.b)  # eq. (17), f = D


Layer = ConvLayer | DenseLayer
