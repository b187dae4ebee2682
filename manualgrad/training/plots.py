"""Plots of a finished run: training curves, confusion matrix, first kernels, and misclassified images."""

from __future__ import annotations

import io
import math
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from manualgrad.data import Dataset
from manualgrad.files import write_atomic
from manualgrad.training.evaluation import EvalResult

BLUE, ORANGE, GREY = "#2166ac", "#d95f02", "#777777"


def default_style() -> AbstractContextManager[None]:
    """Context in which matplotlib's own defaults apply, since a person's settings may need LaTeX or missing fonts."""
    return style.context("default", after_reset=True)


def training_curves(losses: list[float], accuracies: list[float], title: str) -> Figure:
    """Plot the loss of every step with its running mean, and the test accuracy in percent of every epoch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(1, len(losses) + 1)
    left.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.6, label="each step")
    width = max(10, len(losses) // 50)
    running_mean = [sum(losses[max(0, n - width) : n]) / min(n, width) for n in steps]
    left.plot(steps, running_mean, color=BLUE, label=f"mean of {width}")
    left.set(xlabel="step", ylabel="loss", yscale="log", title="training loss")
    left.legend(frameon=False)
    epochs = range(1, len(accuracies) + 1)
    right.plot(epochs, accuracies, "o-", color=ORANGE)
    for epoch, accuracy in zip(epochs, accuracies, strict=True):
        right.annotate(f"{accuracy:.2f}", (epoch, accuracy), textcoords="offset points", xytext=(0, 7), ha="center")
    right.margins(x=0.15, y=0.25)
    right.set(xlabel="epoch", ylabel="test accuracy, %", title="test accuracy", xticks=list(epochs))
    figure.suptitle(title)
    return figure


def confusion_matrix(result: EvalResult, classes: tuple[str, ...], title: str) -> Figure:
    """Plot the confusion matrix. An error's colour is its fraction of the true class; the diagonal stays white."""
    n = len(classes)
    counts = result.confusion_matrix(n)
    side = 2.6 + 0.42 * n
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    error_fractions = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    error_fractions.fill_diagonal_(0)
    axes.imshow(error_fractions.numpy(), cmap="Reds", vmin=0, vmax=max(error_fractions.max().item(), 1e-9) * 1.4)
    for row in range(n):
        for column in range(n):
            if counts[row, column]:
                colour = GREY if row == column else "black"
                count = str(int(counts[row, column]))
                axes.text(column, row, count, ha="center", va="center", fontsize=8, color=colour)
    labels = [_short(name) for name in classes]
    axes.set_xticks(range(n), labels, rotation=0 if max(map(len, labels)) < 3 else 60)
    axes.set_yticks(range(n), labels)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def kernel_images(weight: Tensor, title: str) -> Figure:
    """Plot the kernels of a convolution, (C_out, C_in, kH, kW), for the first input channel.

    Positive values are red, negative values are blue, and all kernels share one scale.
    """
    weight = weight.detach().float().cpu()[:, 0]
    columns = min(8, len(weight))
    image, _ = _side_by_side(weight.numpy(), columns, gap=1, space_above=0)
    limit = weight.abs().max().item()
    figure = Figure(figsize=(1.05 * columns, 1.05 * math.ceil(len(weight) / columns) + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    figure.colorbar(axes.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit), shrink=0.8)
    figure.suptitle(title)
    return figure


def misclassified_images(result: EvalResult, dataset: Dataset, title: str, max_images: int = 60) -> Figure:
    """Plot the first ``max_images`` misclassified test images, each with "true → predicted" above it."""
    misclassified = (result.predicted != result.labels).nonzero().flatten().tolist()
    shown = misclassified[:max_images]
    columns = 12
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(columns * 0.8, rows * 0.95 + 0.6), layout="constrained")
    names = [_short(name) for name in dataset.classes]
    axes = figure.subplots()
    axes.axis("off")
    if shown:
        pixels = dataset.test.images[shown, 0].cpu().float().numpy()
        height, width = pixels.shape[1:]
        image, corners = _side_by_side(pixels, columns, gap=width // 8, space_above=height // 3)
        axes.imshow(image, cmap="gray_r")
        for index, (row, column) in zip(shown, corners, strict=True):
            true, predicted = names[result.labels[index]], names[result.predicted[index]]
            place = column + width / 2, row - height // 8
            axes.text(*place, f"{true} → {predicted}", fontsize=8, ha="center", va="bottom")
    limit = f", the first {max_images} of" if len(misclassified) > max_images else ":"
    figure.suptitle(
        f"{title}{limit} {len(misclassified)} misclassified images of {len(result.labels):,} (true → predicted)"
    )
    return figure


def _side_by_side(
    images: NDArray[np.float32], columns: int, gap: int, space_above: int
) -> tuple[NDArray[np.float32], list[tuple[int, int]]]:
    """One image of several, (N, H, W), in rows of ``columns``, with NaN between them; and their upper left corners.

    matplotlib takes ten times as long for sixty images in axes of their own.
    """
    count, height, width = images.shape
    step_down, step_right = space_above + height + gap, width + gap
    places = [divmod(n, columns) for n in range(count)]
    corners = [(space_above + row * step_down, column * step_right) for row, column in places]
    shape = math.ceil(count / columns) * step_down - gap, columns * step_right - gap
    image = np.full(shape, np.nan, np.float32)
    for values, (row, column) in zip(images, corners, strict=True):
        image[row : row + height, column : column + width] = values
    return image, corners


def save_png(figure: Figure, path: Path) -> None:
    """Write ``figure`` to a PNG file, atomically. Raises OSError."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, facecolor="white")
    write_atomic(path, content.getvalue())


def _short(class_name: str) -> str:
    """Class name up to " - ", for example "0" for "0 - zero"."""
    return class_name.split(" - ")[0]
