"""The seven operations of the formula sheet (docs/equations.md), with argument names of ``torch.nn.functional``."""

from manualgrad.ops.conv2d import conv2d
from manualgrad.ops.dense import dense
from manualgrad.ops.flatten import flatten
from manualgrad.ops.loss import softmax_cross_entropy
from manualgrad.ops.max_pool2d import max_pool2d
from manualgrad.ops.relu import relu
from manualgrad.ops.softmax import softmax

__all__ = ["conv2d", "dense", "flatten", "max_pool2d", "relu", "softmax", "softmax_cross_entropy"]
