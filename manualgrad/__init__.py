"""manualgrad: neural-network layers for PyTorch whose gradients are derived by hand, and proven right."""

from manualgrad import functional, models, nn
from manualgrad.functional import conv2d, dense, flatten, max_pool2d, relu, softmax, softmax_cross_entropy
from manualgrad.models import DocumentCNN

__version__ = "0.1.0"

__all__ = [
    "DocumentCNN",
    "conv2d",
    "dense",
    "flatten",
    "functional",
    "max_pool2d",
    "models",
    "nn",
    "relu",
    "softmax",
    "softmax_cross_entropy",
]
