"""Cases of correct functions with random shapes and options; no finding about them is allowed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import cycle, islice

from compare.case import Case
from tests.compare.gallery.right_formulas import FORMULAS
from tests.compare.gallery.right_functions import FUNCTIONS
from tests.compare.gallery.right_native import NATIVE
from tests.compare.gallery.right_ours import OURS

FAMILIES = [*NATIVE, *FORMULAS, *FUNCTIONS, *OURS]


def right_cases(n: int = 200, seed: int = 0) -> list[Case]:
    """Make ``n`` cases, one of each family in turn; every case draws its own sizes and options."""
    return list(islice(_draw_cases(random.Random(seed)), n))


def _draw_cases(rng: random.Random) -> Iterator[Case]:
    for family in cycle(FAMILIES):
        yield family(rng)
