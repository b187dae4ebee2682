"""Deliberately wrong Functions with the diagnosis that ``compare`` must give, and correct ones in ``right``."""

from __future__ import annotations

from tests.compare.gallery.activation import ACTIVATION
from tests.compare.gallery.calls import CALLS
from tests.compare.gallery.convolution import CONVOLUTION
from tests.compare.gallery.cross_entropy import CROSS_ENTROPY
from tests.compare.gallery.dense import DENSE
from tests.compare.gallery.memory import MEMORY
from tests.compare.gallery.normalization import NORMALIZATION
from tests.compare.gallery.pooling import POOLING
from tests.compare.gallery.second_question import SECOND_QUESTION
from tests.compare.gallery.wrong_function import WrongFunction

WRONG: list[WrongFunction] = [
    *DENSE,
    *CONVOLUTION,
    *POOLING,
    *ACTIVATION,
    *CROSS_ENTROPY,
    *NORMALIZATION,
    *MEMORY,
    *CALLS,
    *SECOND_QUESTION,
]
