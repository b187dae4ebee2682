"""Pictures of a training run: curves, confusion, kernels, and the images that it still gets wrong."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from manualgrad.data import Dataset
from manualgrad.training.steps import Verdict

BLUE, ORANGE, GREY = "#2166ac", "#d95f02", "#777777"


def curves(losses: list[float], accuracies: list[float], title: str) -> Figure:
    """The cost at every step, with its running mean, and the test accuracy (percent) after every epoch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(1, len(losses) + 1)
    left.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.6, label="each step")
    width = max(10, len(losses) // 50)
    running = [sum(losses[max(0, n - width) : n]) / min(n, width) for n in steps]
    left.plot(steps, running, color=BLUE, label=f"mean of {width}")
    left.set(xlabel="step", ylabel="cost J", yscale="log", title="training cost")
    left.legend(frameon=False)
    epochs = range(1, len(accuracies) + 1)
    right.plot(epochs, accuracies, "o-", color=ORANGE)
    for epoch, accuracy in zip(epochs, accuracies, strict=True):
        right.annotate(f"{accuracy:.2f}", (epoch, accuracy), textcoords="offset points", xytext=(0, 7), ha="center")
    right.margins(x=0.15, y=0.25)
    right.set(xlabel="epoch", ylabel="test accuracy, %", title="test accuracy", xticks=list(epochs))
    figure.suptitle(title)
    return figure


def confusion(verdict: Verdict, classes: tuple[str, ...], title: str) -> Figure:
    """Counts of true class by predicted class, coloured by the share of the true class; the diagonal left white."""
    counts = verdict.confusion(len(classes))
    n = len(classes)
    side = 2.6 + 0.42 * n
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    wrong = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    wrong.fill_diagonal_(0)
    axes.imshow(wrong.numpy(), cmap="Reds", vmin=0, vmax=max(wrong.max().item(), 1e-9) * 1.4)
    for row in range(n):
        for column in range(n):
            if counts[row, column]:
                colour = GREY if row == column else "black"
                axes.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    labels = [name.split(" - ")[0] for name in classes]
    axes.set_xticks(range(n), labels, rotation=0 if max(map(len, labels)) < 3 else 60)
    axes.set_yticks(range(n), labels)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def kernels(weight: Tensor, title: str) -> Figure:
    """Each kernel of the first convolution, (K, 1, rows, columns), red above 0 and blue below, on one scale."""
    weight = weight.detach().float().cpu()[:, 0]
    columns = min(8, len(weight))
    rows = math.ceil(len(weight) / columns)
    figure = Figure(figsize=(1.05 * columns, 1.05 * rows + 0.6), layout="constrained")
    limit = weight.abs().max().item()
    image = None
    for n, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if n < len(weight):
            image = axes.imshow(weight[n].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(image, ax=figure.axes, shrink=0.8)
    figure.suptitle(title)
    return figure


def mistakes(verdict: Verdict, dataset: Dataset, title: str, most: int = 60) -> Figure:
    """The first ``most`` test images that are predicted wrong, each with "true → predicted" above it."""
    wrong = (verdict.predicted != verdict.labels).nonzero().flatten().tolist()
    shown = wrong[:most]
    columns = 12
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(columns * 0.8, rows * 0.95 + 0.6), layout="constrained")
    names = [name.split(" - ")[0] for name in dataset.classes]
    for n, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if n < len(shown):
            index = shown[n]
            axes.imshow(dataset.test.images[index, 0].cpu().numpy(), cmap="gray_r")
            true, predicted = names[verdict.labels[index]], names[verdict.predicted[index]]
            axes.set_title(f"{true} → {predicted}", fontsize=8, pad=2)
    more = f", the first {most} of" if len(wrong) > most else ":"
    figure.suptitle(f"{title}{more} {len(wrong)} mistakes in {len(verdict.labels):,} (true → predicted)")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes ``figure`` as a PNG."""
    figure.savefig(path, dpi=130, facecolor="white")
