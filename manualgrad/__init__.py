"""manualgrad: neural-network layers for PyTorch whose gradients are derived by hand, and proven right."""

from manualgrad import _startup

if _startup.runs_as_command():
    _startup.remove_current_folder()  # before torch is imported

from manualgrad import functional, interop, kernels, models, nn
from manualgrad.functional import conv2d, dense, flatten, max_pool2d, relu, softmax, softmax_cross_entropy
from manualgrad.interop import from_torch, to_torch
from manualgrad.models import DocumentCNN
from manualgrad.sequential import Sequential

__version__ = "0.2.0"

__all__ = [
    "DocumentCNN",
    "Sequential",
    "conv2d",
    "dense",
    "flatten",
    "from_torch",
    "functional",
    "interop",
    "kernels",
    "max_pool2d",
    "models",
    "nn",
    "relu",
    "softmax",
    "softmax_cross_entropy",
    "to_torch",
]
