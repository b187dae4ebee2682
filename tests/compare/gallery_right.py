"""Correct pairs over random shapes and options, none of which may be accused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import cycle, islice

from compare.case import Case
from tests.compare.gallery_right_formulas import FORMULAS
from tests.compare.gallery_right_functions import FUNCTIONS
from tests.compare.gallery_right_native import NATIVE
from tests.compare.gallery_right_ours import OURS

FAMILIES = [*NATIVE, *FORMULAS, *FUNCTIONS, *OURS]


def right_cases(n: int = 200, seed: int = 0) -> list[Case]:
    """``n`` cases: each family in turn, with sizes and options drawn anew each time."""
    return list(islice(_drawn(random.Random(seed)), n))


def _drawn(rng: random.Random) -> Iterator[Case]:
    for family in cycle(FAMILIES):
        yield family(rng)
