"""The files that a finished run writes to its output folder."""

from __future__ import annotations

import io
import json
import logging
import platform
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from manualgrad import extras
from manualgrad.files import write_atomic
from manualgrad.training.evaluation import EvalResult
from manualgrad.training.run import TrainingRun


def write_results(out: Path, run: TrainingRun, result: EvalResult, options: dict[str, Any]) -> None:
    """Write weights.pt, metrics.json, and four plots whose titles name the dataset. Raises OSError.

    There are no plots if matplotlib, from the extra ``report``, cannot be imported.
    """
    dataset = run.dataset
    out.mkdir(parents=True, exist_ok=True)  # somebody may have removed it during the run
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
    if not extras.find_import_problem(extras.PLOTS):
        write_plots(out, run, result)


def import_plots() -> ModuleType:
    """Import the module of the plots, which needs matplotlib."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it warns that it builds a cache of fonts
    from manualgrad.training import plots

    return plots


def write_plots(out: Path, run: TrainingRun, result: EvalResult) -> None:
    """Write curves.png, confusion.png, kernels.png and mistakes.png. Raises OSError."""
    plots = import_plots()

    dataset, title = run.dataset, f"{run.dataset.name}, seed {run.seed}"
    accuracies = [epoch["test_accuracy"] for epoch in run.history]
    first_weight = run.model.layers_with_weights()[0].weight
    with plots.default_style():
        plots.save_png(plots.training_curves(run.losses, accuracies, title), out / "curves.png")
        plots.save_png(plots.confusion_matrix(result, dataset.classes, title), out / "confusion.png")
        plots.save_png(plots.kernel_images(first_weight, f"{title}: the first convolution"), out / "kernels.png")
        plots.save_png(plots.misclassified_images(result, dataset, title), out / "mistakes.png")
