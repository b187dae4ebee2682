"""Promise: the search keeps the fastest tiles, measures no tiles that give wrong gradients, and says why not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from manualgrad import DocumentCNN
from manualgrad.network import cuda_graph, cuda_tiles
from manualgrad.network.cuda_dense_block import DenseBlock
from scripts import cuda_tiles as search
from tests.cuda.test_network import COARSE, TINY, tiles  # noqa: F401


def test_the_fastest_value_of_each_attribute_is_kept_until_nothing_changes(capsys):
    seconds = {
        "windows": {4: 3.0, 8: 2.0, 16: 2.5},
        "conv_warps": {2: 1.0, 4: 1.01},
        "positions": {16: 1.0, 32: 0.99},
    }

    def step_seconds(chosen) -> float:
        # With 8 windows two warps are the slower ones: a second pass changes what the first one kept.
        factor = 0.5 if (chosen.windows, chosen.conv_warps) == (8, 4) else 1.0
        return factor * sum(values[getattr(chosen, name)] for name, values in seconds.items())

    def measure(choices):
        return [
            "not measured: registers" if t.windows == 16 else step_seconds(t) / step_seconds(choices[0])
            for t in choices
        ]

    candidates = {"conv_warps": (2, 4), "windows": (4, 8, 16), "positions": (16, 32)}
    best = search.find_fastest(cuda_tiles.SMALL, measure, candidates)
    assert best == replace(cuda_tiles.SMALL, windows=8, conv_warps=4)  # 0.5 % for positions is no gain
    printed = capsys.readouterr().out
    assert "windows = 16: not measured: registers" in printed
    assert "kept: windows = 8" in printed and "kept: conv_warps = 4" in printed


class Clock:
    """A timer with seconds of its own: the interval between two marks takes what the next of ``intervals`` says."""

    def __init__(self, intervals: list[float]) -> None:
        self.intervals = iter(intervals)

    def mark(self) -> None:
        return None

    def seconds(self, marks: list[None]) -> list[float]:
        return [next(self.intervals) for _ in marks[1:]]


class CheckedGraph:
    """A graph that runs for the check of the gradients only: its timed replays compute nothing new."""

    def __init__(self, run, device) -> None:
        self.graph, self.num_replays = cuda_graph.capture(run, device), 0

    def replay(self) -> None:
        if not self.num_replays:
            self.graph.replay()
        self.num_replays += 1


@pytest.fixture
def graphs(monkeypatch) -> list[CheckedGraph]:
    """The graphs that the search captures."""
    captured: list[CheckedGraph] = []
    monkeypatch.setattr(search, "capture", lambda *args: captured.append(CheckedGraph(*args)) or captured[-1])
    return captured


@pytest.fixture
def batch(tiles, kernel_device) -> search.Batch:  # noqa: F811
    torch.manual_seed(0)
    return search.Batch.draw(DocumentCNN(**TINY), (1, 12, 12), 3, kernel_device)


def test_a_ratio_is_the_median_of_the_rounds(batch, graphs, monkeypatch):
    monkeypatch.setattr(search, "ROUNDS", 3)
    warm_ups = [1.0, 1.0] * 2
    rounds = [2.0, 1.0, 3.0, 6.0, 1.0, 0.6]  # every second round begins with the last
    ratios = search.TileTimer(batch, Clock(warm_ups + rounds)).measure([COARSE, replace(COARSE, windows=8)])
    assert ratios == [1.0, 0.5]
    assert [graph.num_replays for graph in graphs] == [1 + 2 + 3] * 2, "the check, the warm-ups and the rounds"


def test_tiles_that_give_wrong_gradients_or_no_launch_are_not_measured(batch, graphs, monkeypatch):
    from triton.runtime.errors import OutOfResources

    monkeypatch.setattr(search, "ROUNDS", 1)
    grad_weight = DenseBlock._grad_weight

    def changed(self, at):
        if self.tiles.dense_parts == 7:
            raise OutOfResources(300_000, 227_000, "shared memory")
        launch = grad_weight(self, at)
        halved = {**launch.arguments, "N": 1} if self.tiles.dense_parts == 5 else launch.arguments
        return replace(launch, arguments=halved)

    monkeypatch.setattr(DenseBlock, "_grad_weight", changed)
    steps = search.TileTimer(batch, Clock([1.0] * 100))
    first, wrong, too_large = steps.measure([COARSE, replace(COARSE, dense_parts=5), replace(COARSE, dense_parts=7)])
    assert first == 1.0
    assert "off by" in wrong and "shared memory" in too_large
    with pytest.raises(ValueError, match="the present tiles cannot be measured"):
        steps.measure([replace(COARSE, dense_parts=7)])


@pytest.mark.parametrize("arguments", [[], ["0"], ["sixty-four"], ["64", "-1"]])
def test_other_arguments_are_refused(arguments, capsys):
    assert search.main(arguments) == 2
    assert "python -m scripts.cuda_tiles" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the search would begin")
def test_without_a_gpu_it_says_so(capsys):
    assert search.main(["64"]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err
