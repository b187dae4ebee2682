"""The panels of "Break it": one wrong equation each, its effect on the digit, and words about it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from manualgrad.data import Dataset
from manualgrad.follow import mistakes
from manualgrad.follow.mistakes import Effect
from manualgrad.follow.quantities import formulas_only
from manualgrad.follow.training import BATCH_SIZE, normalize
from manualgrad.models import DocumentCNN


@dataclass(frozen=True)
class Panel:
    """One mistake.

    Attributes:
        name: "flip", "ties", "half" or "mean", as ``compare`` names its verdicts.
        title: the heading.
        equation: the number of the equation that is replaced.
        wrong: its replacement in TeX, "" if the mistake is in P⁻¹, which has no number.
        text: paragraphs.
        quantities: names and captions of the pictures.
        effect: the numbers.
    """

    name: str
    title: str
    equation: int
    wrong: str
    text: tuple[str, ...]
    quantities: dict[str, str]
    effect: Effect


def make_panels(model: DocumentCNN, dataset: Dataset, index: int, eta: float) -> list[Panel]:
    """Make the four panels for the test image ``index``, at the present weights of ``model``."""
    label, image = int(dataset.test.labels[index]), dataset.test.images[index : index + 1]
    digit = normalize(image, dataset)
    batch = normalize(dataset.train.images[:BATCH_SIZE], dataset), dataset.train.labels[:BATCH_SIZE]
    without_bias = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in without_bias.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    with formulas_only():
        return [
            _flip(mistakes.effect_of_missing_flip(model, digit, label, eta)),
            _ties(mistakes.effect_of_all_ties(model, digit, label, eta)),
            _half(mistakes.effect_of_missing_half(without_bias, image.float() / 255, label, eta)),
            _mean(mistakes.effect_of_missing_mean(model, *batch, eta)),
        ]


def _flip(effect: Effect) -> Panel:
    text = (
        "Forward rotates the kernel, and this backward does not know of it: it sends δ¹ back through "
        "the kernel upside down. The shapes are right and no error is raised.",
        f"The mistake spoils everything before this layer: the wrong step Δw⁰ points {effect.facts['angle']:.0f}° "
        "away from the right one. (Forgotten in forward and in backward, it does no harm: the network learns the "
        "rotated kernel. That is PyTorch's conv2d.)",
    )
    wrong = r"\frac{\partial C_{ijk}}{\partial x_{tuv}} = w_{(t-s_1 i)(u-s_2 j)vk}"
    return Panel("flip", "The kernel is not flipped", 2, wrong, text, {"dx1": "δ¹ ∂C/∂x¹", "dw0": "Δw⁰"}, effect)


def _ties(effect: Effect) -> Panel:
    places = int(effect.facts["places"])
    count = f"Here {places:,} numbers of δ⁰ are wrong." if places else "This digit has none at these weights."
    text = (
        "Where several numbers of a window are equal and the largest, P⁻¹ sends δ to the first of them. This "
        "backward sends all of δ to each of them.",
        f"Ties are no rare accident: where the paper is blank, all pixels are equal, so all z⁰ are. {count}",
    )
    return Panel("ties", "δ goes to every tied place", 4, "", text, {"delta0": "δ⁰", "dw0": "Δw⁰"}, effect)


def _half(effect: Effect) -> Panel:
    facts = effect.facts
    weights = (
        "." if facts["weight change"] else ", and Δw⁰ not at all: where z⁰ is 0, all pixels of its window are 0."
    )
    text = (
        "With the numbers above this changes nothing: with normalised pixels or PyTorch's initial biases practically "
        "no z is exactly 0. So this panel is another experiment: raw pixels, of which blank paper is exactly 0, and "
        "all biases 0.",
        f"Now {facts['zeros']:.0f} % of z⁰ are exactly 0, and without the ½ they send nothing back. Δb⁰ changes by "
        f"{facts['change']:.0f} %{weights}",
    )
    wrong = (
        r"\frac{\partial R_i}{\partial z_j} = \delta_{ij} \quad (z_i > 0), \qquad "
        r"0 \quad (z_i = 0), \qquad 0 \quad (z_i < 0)"
    )
    return Panel("half", "The ½ at 0 is forgotten", 10, wrong, text, {"delta0": "δ⁰", "db0": "Δb⁰"}, effect)


def _mean(effect: Effect) -> Panel:
    factor = int(effect.facts["factor"])
    text = (
        f"For one digit B is 1, so this panel takes a batch of {factor}. Without 1/B every δ and every step is "
        f"{factor} times too long. The direction is right. The two pictures have one scale, on which the right step "
        "can hardly be seen.",
        f"It often goes unnoticed: training still works with a learning rate that is {factor} times smaller, and "
        "breaks when the batch size changes.",
    )
    return Panel("mean", "1/B is left out", 13, r"J = \sum_b J^b", text, {"dw0": "Δw⁰, a batch"}, effect)
