"""The files that a finished run leaves, and the folder for them, which is looked at before any work is done."""

from __future__ import annotations

import io
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from manualgrad.files import write_whole
from manualgrad.training import pictures
from manualgrad.training.endings import fail
from manualgrad.training.records import LINES
from manualgrad.training.run import Run
from manualgrad.training.steps import Verdict

RESULTS = ("weights.pt", "metrics.json", LINES, "curves.png", "confusion.png", "kernels.png", "mistakes.png")
CHECKPOINTS = "checkpoints"


def make_folder(path: Path) -> Path:
    """Made, and written to, before any work is done that could be lost. Raises Ended."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        fail(f"--out {path} cannot be written to: {error.strerror}")
    for name in RESULTS:
        if (path / name).is_dir():
            fail(f"--out {path} holds a folder {name}, where a file is to be written")
    if (path / CHECKPOINTS).exists() and not (path / CHECKPOINTS).is_dir():
        fail(f"--out {path} holds a file {CHECKPOINTS}, where a folder is to be made")
    return path


def write_results(out: Path, run: Run, verdict: Verdict, options: dict[str, Any]) -> None:
    """weights.pt, metrics.json, and four pictures, each of which names the data that it was made from."""
    dataset = run.dataset
    weights = io.BytesIO()
    torch.save(run.model.state_dict(), weights)
    write_whole(out / "weights.pt", weights.getvalue())
    metrics = {
        "dataset": dataset.name,
        "source": dataset.source,
        "training_images": len(dataset.train),
        "test_images": len(dataset.test),
        "test_accuracy": verdict.accuracy,
        "epochs": run.history,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
        "command": sys.argv,
        "device": str(dataset.train.images.device),
        "processes": run.processes.count,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "confusion": verdict.confusion(len(dataset.classes)).tolist(),
        "losses": run.costs,
    }
    write_whole(out / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False).encode())
    title = f"{dataset.name}, seed {run.seed}"
    accuracies = [epoch["test_accuracy"] for epoch in run.history]
    pictures.save(pictures.curves(run.costs, accuracies, title), out / "curves.png")
    pictures.save(pictures.confusion(verdict, dataset.classes, title), out / "confusion.png")
    pictures.save(pictures.kernels(run.model.conv0.weight, f"{title}: the first convolution"), out / "kernels.png")
    pictures.save(pictures.mistakes(verdict, dataset, title), out / "mistakes.png")
