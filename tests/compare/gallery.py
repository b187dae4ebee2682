"""Deliberately wrong Functions, by which the diagnosis of ``compare`` is judged: each with what is wrong with it."""

from __future__ import annotations

from tests.compare.gallery_activation import ACTIVATION
from tests.compare.gallery_convolution import CONVOLUTION
from tests.compare.gallery_cross_entropy import CROSS_ENTROPY
from tests.compare.gallery_dense import DENSE
from tests.compare.gallery_memory import MEMORY
from tests.compare.gallery_normalization import NORMALIZATION
from tests.compare.gallery_pooling import POOLING
from tests.compare.gallery_wrong import Wrong

WRONG: list[Wrong] = [
    *DENSE,
    *CONVOLUTION,
    *POOLING,
    *ACTIVATION,
    *CROSS_ENTROPY,
    *NORMALIZATION,
    *MEMORY,
]
