"""Deliberately wrong Functions, by which the diagnosis of ``compare`` is judged: each with what is wrong with it."""

from __future__ import annotations

from gallery_activation import ACTIVATION
from gallery_convolution import CONVOLUTION
from gallery_cross_entropy import CROSS_ENTROPY
from gallery_dense import DENSE
from gallery_memory import MEMORY
from gallery_normalization import NORMALIZATION
from gallery_pooling import POOLING
from gallery_wrong import Wrong

WRONG: list[Wrong] = [
    *DENSE,
    *CONVOLUTION,
    *POOLING,
    *ACTIVATION,
    *CROSS_ENTROPY,
    *NORMALIZATION,
    *MEMORY,
]
