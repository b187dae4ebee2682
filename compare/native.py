"""DocumentCNN in plain ``torch.nn``, and its weights carried across in both directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manualgrad.models import DocumentCNN
from manualgrad.nn import ConvReLUMaxPool2d


class HalfReLU(nn.Module):
    """``torch.maximum(z, 0)``: ReLU whose derivative at 0 is 1/2, PyTorch's rule for a tied maximum."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.maximum(z, z.new_zeros(()))


def native_twin(model: DocumentCNN) -> nn.Sequential:
    """The same network in ``torch.nn`` with the same weights: same layer names, logits out.

    The kernels are flipped, since PyTorch's convolution is a correlation, and the first dense weight's columns are
    put in (channel, row, column) order, since ``nn.Flatten`` has that. ReLU's derivative at 0 is the model's own.

    Raises:
        ValueError: a model whose subgradient is neither 0 nor 1/2; no native ReLU has it.
    """
    twin = nn.Sequential()
    for name, layer in model.named_children():
        twin.add_module(name, _native(name, layer))
        if isinstance(layer, ConvReLUMaxPool2d):
            twin.add_module(name.replace("conv", "relu"), _native("relu", layer))
            twin.add_module(name.replace("conv", "pool"), _native("pool", layer))
    example = next(model.parameters())
    twin.to(device=example.device, dtype=example.dtype)
    load_weights(twin, model)
    return twin


def load_weights(native: nn.Module, model: DocumentCNN) -> None:
    """``native``'s weights become ``model``'s, each in its own convention."""
    native.load_state_dict(to_native(model.state_dict(), model))


def save_weights(native: nn.Module, model: DocumentCNN) -> None:
    """``model``'s weights become ``native``'s, each in its own convention: the inverse of :func:`load_weights`."""
    model.load_state_dict(from_native(native.state_dict(), model))


def to_native(named: dict[str, Tensor], model: DocumentCNN) -> dict[str, Tensor]:
    """Weights, or their gradients, under their names: from the document's convention to PyTorch's."""
    return {name: _turned(name, tensor, model, to_native=True) for name, tensor in named.items()}


def from_native(named: dict[str, Tensor], model: DocumentCNN) -> dict[str, Tensor]:
    """Weights, or their gradients, under their names: from PyTorch's convention to the document's."""
    return {name: _turned(name, tensor, model, to_native=False) for name, tensor in named.items()}


def _turned(name: str, tensor: Tensor, model: DocumentCNN, *, to_native: bool) -> Tensor:
    if name.startswith("conv") and name.endswith("weight"):
        return tensor.flip(2, 3)
    if name == f"{model.first_dense}.weight":
        k, i, j = model.flattened
        rows = len(tensor)
        if to_native:
            return tensor.reshape(rows, i, j, k).permute(0, 3, 1, 2).reshape(rows, k * i * j)
        return tensor.reshape(rows, k, i, j).permute(0, 2, 3, 1).reshape(rows, i * j * k)
    return tensor.clone()


def _native(name: str, layer: nn.Module) -> nn.Module:
    kind = name.rstrip("0123456789")
    if kind == "conv":
        return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride)
    if kind == "relu":
        if layer.subgradient not in (0, 0.5):
            raise ValueError(f"no native ReLU has the derivative {layer.subgradient} at 0; 0 and 0.5 are there")
        return HalfReLU() if layer.subgradient else nn.ReLU()
    if kind == "pool":
        return nn.MaxPool2d(2)
    if kind == "flatten":
        return nn.Flatten()
    return nn.Linear(layer.in_features, layer.out_features)
