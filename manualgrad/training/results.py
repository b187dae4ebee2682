"""The output folder of a run, and the files that a finished run writes to it."""

from __future__ import annotations

import io
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from manualgrad import extras
from manualgrad.files import write_atomic
from manualgrad.training.cli_exit import usage_error
from manualgrad.training.evaluation import EvalResult
from manualgrad.training.metrics_logger import METRICS_FILE
from manualgrad.training.run import TrainingRun

RESULT_FILES = (
    "weights.pt",
    "metrics.json",
    METRICS_FILE,
    "curves.png",
    "confusion.png",
    "kernels.png",
    "mistakes.png",
)
CHECKPOINTS = "checkpoints"


def make_output_folder(path: Path) -> Path:
    """Create the output folder if needed, check that all results can be written to it, and return its path.

    A run does this first, so that no work is lost later. Raises CliExit with exit code 2.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        usage_error(f"--out {path} cannot be written to: {error.strerror}")
    for name in RESULT_FILES:
        if (path / name).is_dir():
            usage_error(f"--out {path} contains a folder named {name}: expected a file or nothing of that name")
    if (path / CHECKPOINTS).exists() and not (path / CHECKPOINTS).is_dir():
        usage_error(f"--out {path} contains a file named {CHECKPOINTS}: expected a folder or nothing of that name")
    return path


def write_results(out: Path, run: TrainingRun, result: EvalResult, options: dict[str, Any]) -> None:
    """Write weights.pt, metrics.json, and four plots whose titles name the dataset. Raises OSError.

    There are no plots if matplotlib, from the extra ``report``, cannot be imported.
    """
    dataset = run.dataset
    weights = io.BytesIO()
    torch.save(run.model.state_dict(), weights)
    write_atomic(out / "weights.pt", weights.getvalue())
    metrics = {
        "dataset": dataset.name,
        "source": dataset.source,
        "training_images": len(dataset.train),
        "test_images": len(dataset.test),
        "test_accuracy": result.accuracy,
        "epochs": run.history,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
        "command": sys.argv,
        "device": str(dataset.train.images.device),
        "processes": run.distributed.world_size,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "confusion": result.confusion_matrix(len(dataset.classes)).tolist(),
        "losses": run.losses,
    }
    write_atomic(out / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False).encode())
    if extras.find_import_problem(extras.PLOTS):
        return
    from manualgrad.training import plots

    title = f"{dataset.name}, seed {run.seed}"
    accuracies = [epoch["test_accuracy"] for epoch in run.history]
    first_weight = run.model.layers_with_weights()[0].weight
    plots.save_png(plots.training_curves(run.losses, accuracies, title), out / "curves.png")
    plots.save_png(plots.confusion_matrix(result, dataset.classes, title), out / "confusion.png")
    plots.save_png(plots.kernel_images(first_weight, f"{title}: the first convolution"), out / "kernels.png")
    plots.save_png(plots.misclassified_images(result, dataset, title), out / "mistakes.png")
