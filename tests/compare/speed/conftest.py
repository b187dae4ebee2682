"""One thread, and a worker in the process of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from compare.speed import benchmark, compiled_benchmark
from manualgrad.training import allocator
from tests.compare.speed.fakes import InProcessWorker


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run on one thread: no test here needs speed, and more threads are slow on a loaded machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_process_worker(monkeypatch: pytest.MonkeyPatch) -> type[InProcessWorker]:
    monkeypatch.setattr(InProcessWorker, "calls", [], raising=False)
    monkeypatch.setattr(benchmark, "Worker", InProcessWorker)
    monkeypatch.setattr(compiled_benchmark, "Worker", InProcessWorker)
    monkeypatch.setattr(benchmark, "OPERATIONS_BATCH", 2)
    monkeypatch.setattr(allocator, "tune", lambda: allocator.Tuning(True, "not tuned in tests"))
    return InProcessWorker
