"""Functions that keep values from call to call, each with a mistake in backward: three times g x, and not two."""

from __future__ import annotations

import functools
from collections import deque

import numpy as np
import torch
from torch.autograd import Function

NUM_CALLS = 0
LAST = None
LOG: list[str] = []
SHAPES: set[torch.Size] = set()
STATS = {"calls": 0, "names": ["backward"]}
RECENT: deque[str] = deque(maxlen=3)
COUNTS = np.zeros(2)
FACTORS: dict[str, float] = {}
TABLE = torch.arange(3.0)
SHARED: dict[str, float] = {}


class Square(Function):
    """x squared."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x


class InGlobalNames(Square):
    @staticmethod
    def backward(ctx, g):
        global LAST, NUM_CALLS
        (x,) = ctx.saved_tensors
        NUM_CALLS += 1
        LAST = g
        return 3 * g * x


class InContainers(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        LOG.append(f"step {len(LOG)}")
        RECENT.append(f"step {len(LOG)}")
        SHAPES.add(x.shape[: len(LOG) % 3])
        STATS["calls"] += 1
        STATS["names"].append("backward")
        COUNTS[0] += 1
        return 3 * g * x


class InAClass(Square):
    count = 0
    names: list[str] = []  # noqa: RUF012

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        InAClass.count += 1
        InAClass.last = g
        InAClass.names.append("backward")
        return 3 * g * x


class Counter:
    """An object that counts."""

    def __init__(self):
        self.count, self.names = 0, []

    def note(self, name):
        self.count += 1
        self.names.append(name)


COUNTER = Counter()


class InAnObject(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        COUNTER.note("backward")
        return 3 * g * x


def counted(function):
    calls = 0

    @functools.wraps(function)
    def inner(*arguments):
        nonlocal calls
        calls += 1
        inner.calls = calls
        return function(*arguments)

    return inner


class InAClosure(Square):
    @staticmethod
    @counted
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x


def note(name, known={}):  # noqa: B006
    known[name] = known.get(name, 0) + 1


class InADefault(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        note("backward")
        return 3 * g * x


def factor_of_square():
    if "square" not in FACTORS:
        FACTORS["square"] = 3.0
    return FACTORS["square"]


class CachesItsFactor(Square):
    """The mistake is in what is kept: an edit has an effect only where nothing is kept yet."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return factor_of_square() * g * x


@functools.lru_cache
def cached_factor():
    return 3.0


class CachesWithALibrary(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return cached_factor() * g * x


class ReadsATable(Square):
    """An edit that adds to what the name has would write into the table."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        scale = TABLE
        scale = TABLE + 1
        return g * x * scale[2] * scale[0]


class WritesIntoATable(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        TABLE.add_(0)
        return 3 * g * x


class SharesWithNative(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        SHARED["calls"] = SHARED.get("calls", 0) + 1
        return 3 * g * x


def native_that_shares(x):
    SHARED.setdefault("calls", 0)
    return x * x
