"""Sequentials of layers, and their gradients."""

from __future__ import annotations

import copy

import torch
from torch import nn

import manualgrad as mg
from manualgrad import nn as ours


def convolutions() -> list[nn.Module]:
    """Three convolutions, for images of 30×28."""
    fused = [ours.ConvReLUMaxPool2d(16, 16, (2, 3), subgradient=1)]
    return [ours.Conv2d(2, 16, 3), ours.ReLU(), ours.MaxPool2d(), *fused, ours.Conv2d(16, 32, 2), ours.ReLU(),
            ours.MaxPool2d(2, 2)]  # fmt: skip


def dense_layers() -> list[nn.Module]:
    return [ours.Dense(128, 20), ours.ReLU(), ours.Dense(20, 9), ours.ReLU(subgradient=0), ours.Dense(9, 5)]


def make_ours() -> mg.Sequential:
    return mg.Sequential(*convolutions(), ours.Flatten(), *dense_layers())


def make_nested() -> mg.Sequential:
    return mg.Sequential(nn.Sequential(*convolutions()), mg.Sequential(ours.Flatten(), *dense_layers()))


def make_native(inplace: bool = False) -> nn.Sequential:
    convs = [layer for c_in, c_out in ((2, 16), (16, 16), (16, 32))
             for layer in (nn.Conv2d(c_in, c_out, 2), nn.ReLU(inplace), nn.MaxPool2d(2))]  # fmt: skip
    dense = nn.Linear(32 * 2 * 2, 20), nn.ReLU(inplace), nn.Linear(20, 9), nn.ReLU(inplace), nn.Linear(9, 5)
    return nn.Sequential(*convs, nn.Flatten(), *dense)


def images(batch_size: int = 5) -> torch.Tensor:
    return torch.randn(batch_size, 2, 30, 28)


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    z = model(x)
    weights = torch.linspace(-1, 1, z.numel(), dtype=x.dtype).view_as(z)
    return [z.detach(), *torch.autograd.grad((z * weights).sum(), list(model.parameters()))]


def layer_by_layer(model: nn.Module) -> nn.Module:
    """A copy whose layers run one by one."""
    copied = copy.deepcopy(model)
    copied.__class__ = nn.Sequential
    return copied
