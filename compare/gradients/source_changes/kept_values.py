"""Counters, caches and other values that functions keep from call to call, which a search puts back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from compare.gradients.source_changes.reached_objects import find_reached
from compare.gradients.source_changes.saved_values import SavedValues

MAX_COPIES = 100  # of tensors, made when they are met first


class KeptValues:
    """The values that functions keep, as they are now and at later times.

    Attributes:
        reached: where they keep them.
        first: the values when this object was made.
    """

    def __init__(self, *functions: Any) -> None:
        self._functions = list(functions)
        self._copies: dict[int, tuple[Tensor, int, Tensor | None]] = {}
        self._caches: list[Any] = []
        self._later: list[SavedValues] = []
        self.reached = find_reached(self._functions)
        self.first = self.save()

    def add(self, functions: Iterable[Any]) -> None:
        """Keep an eye on further functions, whose first values are those of now."""
        self._functions += functions
        self.reached = find_reached(self._functions)
        self._later.append(self.save())

    def save(self) -> SavedValues:
        """The values as they are now."""
        if len(self._copies) > MAX_COPIES:
            self._copies.clear()
        return SavedValues(self.reached, self._copies)

    def restore_first(self) -> None:
        """Put everything back to the first values."""
        for saved in (*reversed(self._later), self.first):
            saved.restore()
        self._clear()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put everything back to what it is now; the caches of :func:`functools.lru_cache` are emptied."""
        saved = self.save()
        try:
            yield
        finally:
            saved.restore()
            self._clear()

    @contextmanager
    def own_caches(self, others: KeptValues) -> Iterator[None]:
        """Let functions with :func:`functools.lru_cache` have other caches; those that ``others`` use, too, stay."""
        shared = {id(scope.get(name)) for scope, name in others.reached.names.values()}
        cached_functions = [
            (scope, name, scope[name])
            for scope, name in self.reached.names.values()
            if isinstance(scope.get(name), functools._lru_cache_wrapper) and id(scope[name]) not in shared
        ]
        own = {id(cached): _with_own_cache(cached) for _, _, cached in cached_functions}
        self._caches = list(own.values())
        try:
            for scope, name, cached in cached_functions:
                scope[name] = own[id(cached)]
            yield
        finally:
            self._caches = []
            for scope, name, cached in cached_functions:
                scope[name] = cached

    def _clear(self) -> None:
        for cache in self._caches:
            cache.cache_clear()


def _with_own_cache(cached: Any) -> Any:
    parameters = cached.cache_parameters()
    return functools.lru_cache(parameters["maxsize"], parameters["typed"])(cached.__wrapped__)
