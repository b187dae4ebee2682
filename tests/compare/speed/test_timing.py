"""Promise: measurements are interleaved, and ratios are medians within a round."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compare.speed import timer
from compare.speed.interleaving import Spread, fastest, interleave, ratios_by_round
from compare.speed.results import make_rows
from tests.compare.speed.fakes import FakeTimer


def test_measurements_are_interleaved_and_the_order_alternates() -> None:
    order: list[str] = []

    def measurement(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or len(order)

    results = interleave({name: measurement(name) for name in ("ours", "native")}, 3)
    assert order == ["ours", "native", "native", "ours", "ours", "native"]
    assert results == {"ours": [1, 4, 5], "native": [2, 3, 6]}


def test_ratio_is_the_median_of_ratios_within_a_round() -> None:
    # A machine that slows down threefold in two of five rounds: each round's ratio is still 0.5.
    native = [2.0, 2.0, 6.0, 6.0, 2.0]
    assert ratios_by_round([value / 2 for value in native], native) == Spread(0.5, 0.5, 0.5, 5)
    # The median of ratios is 1, the ratio of medians would be 2 / 3.
    assert ratios_by_round([1.0, 2.0, 9.0], [1.0, 4.0, 3.0]) == Spread(1.0, 0.75, 2.0, 3)
    with pytest.raises(ValueError, match="zip"):
        ratios_by_round([1.0], [1.0, 2.0])


def test_fastest_has_the_smallest_median() -> None:
    assert fastest({"a": [1.0, 1.0, 100.0], "b": [2.0, 2.0, 2.0]}) == "a"


def test_phases_are_timed_without_the_first_step() -> None:
    fake, durations = FakeTimer(), iter([(100.0, 100.0), (2.0, 3.0), (4.0, 5.0)])

    def step(mark: Callable[[], None]) -> None:
        mark()
        for duration in next(durations):
            fake.now += duration
            mark()
        fake.now += 50  # after the last mark: not timed

    assert timer.time_phases(step, 2, fake) == [3.0, 4.0]


def test_the_number_of_steps_fills_the_time_and_is_at_least_one() -> None:
    fake = FakeTimer()

    def step(mark: Callable[[], None]) -> None:
        mark()
        fake.now += 0.25
        mark()

    assert timer.num_steps_for(step, 1.0, fake) == 4
    assert timer.num_steps_for(step, 0.01, fake) == 1


def test_garbage_collection_is_off_while_timing() -> None:
    import gc

    enabled: list[bool] = []
    timer.time_phases(lambda mark: enabled.append(gc.isenabled()) or mark() or mark(), 2, timer.WallTimer())
    assert enabled == [True, False, False]
    assert gc.isenabled()


def test_rows_mark_the_faster_layout_of_each_side() -> None:
    seconds = {
        "manualgrad, contiguous": [2.0, 2.0, 2.0],
        "manualgrad, channels_last": [1.0, 1.5, 1.0],
        "PyTorch, contiguous": [4.0, 4.0, 4.0],
        "PyTorch, channels_last": [2.0, 3.0, 2.0],
    }
    sides = {label: "ours" if label.startswith("m") else "native" for label in seconds}
    measurements = {
        label: [{"seconds": [s / 2, s / 2], "page_faults": 7} for s in values] for label, values in seconds.items()
    }
    fields = {"kind": "operation", "subject": "relu", "channels": (2, 3), "batch": 10, "allocator": "tuned"}
    rows = make_rows(fields, sides, dict.fromkeys(seconds, ("forward", "backward")), measurements)
    assert [row.contender for row in rows if row.is_fastest_layout] == [
        "manualgrad, channels_last",
        "PyTorch, channels_last",
    ]
    assert {row.baseline for row in rows} == {"PyTorch, channels_last"}
    ours = rows[1]
    assert ours.ratios["step"] == ours.ratios["forward"] == Spread(0.5, 0.5, 0.5, 3)
    assert ours.seconds["step"].median == 1.0
    assert ours.images_per_second == 10
    assert ours.page_faults == 7
    assert make_rows(fields, {"manualgrad": "ours"}, {"manualgrad": ("forward",)}, {"manualgrad": []}) == []
