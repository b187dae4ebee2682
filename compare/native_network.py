"""DocumentCNN in plain ``torch.nn``, and the conversion of its weights in both directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manualgrad.models import DocumentCNN
from manualgrad.nn import ConvReLUMaxPool2d


class HalfReLU(nn.Module):
    """ReLU as ``torch.maximum(z, 0)``: its derivative at 0 is 1/2, which is PyTorch's rule for a tied maximum."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.maximum(z, z.new_zeros(()))


def native_twin(model: DocumentCNN) -> nn.Sequential:
    """Build the same network in ``torch.nn``, with the same weights and layer names. It returns logits.

    The kernels are flipped, because PyTorch's convolution is a correlation. The columns of the first dense weight are
    in (channel, row, column) order, which is the order of ``nn.Flatten``. ReLU's derivative at 0 is the model's.

    Raises:
        ValueError: the model's subgradient is neither 0 nor 1/2, so no native ReLU has it.
    """
    twin = nn.Sequential()
    for name, layer in model.named_children():
        twin.add_module(name, _native_layer(name, layer))
        if isinstance(layer, ConvReLUMaxPool2d):
            twin.add_module(name.replace("conv", "relu"), _native_layer("relu", layer))
            twin.add_module(name.replace("conv", "pool"), _native_layer("pool", layer))
    example = next(model.parameters())
    twin.to(device=example.device, dtype=example.dtype)
    copy_weights_to_native(twin, model)
    return twin


def copy_weights_to_native(native: nn.Module, model: DocumentCNN) -> None:
    """Copy ``model``'s weights into ``native``, in PyTorch's convention."""
    native.load_state_dict(to_native(model.state_dict(), model))


def copy_weights_from_native(native: nn.Module, model: DocumentCNN) -> None:
    """Copy ``native``'s weights into ``model``, in the formula sheet's convention."""
    model.load_state_dict(from_native(native.state_dict(), model))


def to_native(named: dict[str, Tensor], model: DocumentCNN) -> dict[str, Tensor]:
    """Convert named weights, or their gradients, from the convention of the formula sheet to PyTorch's."""
    return {name: _convert(name, tensor, model, to_native=True) for name, tensor in named.items()}


def from_native(named: dict[str, Tensor], model: DocumentCNN) -> dict[str, Tensor]:
    """Convert named weights, or their gradients, from PyTorch's convention to that of the formula sheet."""
    return {name: _convert(name, tensor, model, to_native=False) for name, tensor in named.items()}


def _convert(name: str, tensor: Tensor, model: DocumentCNN, *, to_native: bool) -> Tensor:
    if name.startswith("conv") and name.endswith("weight"):
        return tensor.flip(2, 3)
    if name == f"{model.first_dense}.weight":
        channels, height, width = model.flatten_input_shape
        rows = len(tensor)
        if to_native:
            return tensor.reshape(rows, height, width, channels).permute(0, 3, 1, 2).reshape(rows, -1)
        return tensor.reshape(rows, channels, height, width).permute(0, 2, 3, 1).reshape(rows, -1)
    return tensor.clone()


def _native_layer(name: str, layer: nn.Module) -> nn.Module:
    kind = name.rstrip("0123456789")
    if kind == "conv":
        return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride)
    if kind == "relu":
        if layer.subgradient not in (0, 0.5):
            raise ValueError(
                f"expected subgradient 0 or 0.5: no native ReLU has the derivative {layer.subgradient} at 0"
            )
        return HalfReLU() if layer.subgradient else nn.ReLU()
    if kind == "pool":
        return nn.MaxPool2d(2)
    if kind == "flatten":
        return nn.Flatten()
    return nn.Linear(layer.in_features, layer.out_features)
