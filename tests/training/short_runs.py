"""Results of a short run, and faults in the middle of it; conftest.py has its options."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from manualgrad.training.metrics_logger import MetricsLogger

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def same_weights(a: Path, b: Path) -> bool:
    first, second = (torch.load(folder / "weights.pt", weights_only=True) for folder in (a, b))
    return all(torch.equal(first[name], second[name]) for name in first)


def at_step(monkeypatch, step: int, action) -> None:
    """Call ``action`` when the metrics of a step have been written, before the run checks for signals."""
    original = MetricsLogger.log_step

    def log_step(self, metrics):
        original(self, metrics)
        if metrics.step == step:
            action()

    monkeypatch.setattr(MetricsLogger, "log_step", log_step)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
