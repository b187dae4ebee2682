"""The seven operations of the document, with the argument names of ``torch.nn.functional``."""

from manualgrad.functions.conv2d import conv2d
from manualgrad.functions.cost import softmax_cross_entropy
from manualgrad.functions.dense import dense
from manualgrad.functions.flatten import flatten
from manualgrad.functions.max_pool2d import max_pool2d
from manualgrad.functions.relu import relu
from manualgrad.functions.softmax import softmax

__all__ = ["conv2d", "dense", "flatten", "max_pool2d", "relu", "softmax", "softmax_cross_entropy"]
