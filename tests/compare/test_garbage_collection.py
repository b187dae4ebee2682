"""Promise: while compare searches a mistake, only young objects are collected, and all of them afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest

from compare.gradients.garbage_collection import only_young_objects_collected


class Ring:
    """An object that refers to itself, which only the garbage collector removes."""

    def __init__(self) -> None:
        self.itself = self


def collections_of_all_objects(num_objects: int) -> int:
    """Number of collections of all objects while so many are made, each of which is kept."""
    before = gc.get_stats()[2]["collections"]
    kept = [Ring() for _ in range(num_objects)]
    assert len(kept) == num_objects
    return gc.get_stats()[2]["collections"] - before


@pytest.fixture
def default_thresholds():
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("default_thresholds")
def test_all_objects_are_collected_afterwards_only():
    num_objects = 2 * len(gc.get_objects()) + 100_000
    with only_young_objects_collected():
        assert collections_of_all_objects(num_objects) == 0
    assert collections_of_all_objects(num_objects) > 0


@pytest.mark.usefixtures("default_thresholds")
def test_young_objects_are_collected():
    with only_young_objects_collected():
        ring = weakref.ref(Ring())
        collections_of_all_objects(20_000)
        assert ring() is None


@pytest.mark.usefixtures("default_thresholds")
def test_the_thresholds_are_as_before_after_an_exception():
    def search() -> None:
        with only_young_objects_collected():
            raise ValueError("of the search")

    with pytest.raises(ValueError, match="of the search"):
        search()
    assert gc.get_threshold() == (700, 10, 10)
