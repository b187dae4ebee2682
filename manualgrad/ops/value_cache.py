"""A cache of what follows from shapes and numbers: a layer has the same ones in every step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch

from manualgrad.tensor_checks import in_plain_eager_mode

P = ParamSpec("P")
R = TypeVar("R")

MAX_CACHED = 512
_INT, _EXACT_TYPES = {int}, {int, bool, float, str, type(None)}


def cached_by_value(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function``, which depends on nothing but its arguments, with a cache of its results.

    1, 1.0 and True are one key to a dict, but not to a check of arguments: a call is cached only if its arguments are
    numbers, strings, None, or tuples of ints, which includes shapes. Nor is a call cached while a compiler or another
    mode is active, where sizes may be symbols.
    """
    cached = functools.lru_cache(MAX_CACHED, typed=True)(cast("Callable[..., R]", function))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        values = (*args, *kwargs.values()) if kwargs else args
        is_cacheable = in_plain_eager_mode() and have_exact_types(values)
        return (cached if is_cacheable else cast("Callable[..., R]", function))(*args, **kwargs)

    return cast("Callable[P, R]", call)


def have_exact_types(values: tuple[Any, ...]) -> bool:
    """Return True if all values are numbers, strings, None, or tuples of ints."""
    for value in values:
        kind = type(value)
        if kind is tuple or kind is torch.Size:
            if set(map(type, value)) != _INT:
                return False
        elif kind not in _EXACT_TYPES:
            return False
    return True
