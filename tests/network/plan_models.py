"""Models with random or whole weights, and their gradients by kernels and by formulas, for the tests of plans."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from manualgrad import DocumentCNN, kernels, softmax_cross_entropy
from manualgrad.cpu import jit

ROOT = Path(__file__).parents[2]

INSTRUCTIONS = jit.instruction_sets() if kernels.available().instructions else ()
MARKS = [
    pytest.mark.skipif(not INSTRUCTIONS, reason=str(kernels.available())),
    pytest.mark.usefixtures("restore_kernels"),
]
every_instruction_set = pytest.mark.parametrize("instructions", INSTRUCTIONS)


def make_model(
    batch_size=4, whole_numbers=False, seed=0, **arguments
) -> tuple[DocumentCNN, torch.Tensor, torch.Tensor]:
    """A model, images and labels. With ``whole_numbers`` weights are −1, 0 and 1, so that every product is exact."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DocumentCNN(**arguments)
    size = arguments.get("image_size", 28)
    x = torch.randn(batch_size, arguments.get("in_channels", 1), *(size if isinstance(size, tuple) else (size, size)),
                    generator=generator)  # fmt: skip
    if whole_numbers:
        x = x.round()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
    return model, x, torch.randint(model.classes, (batch_size,), generator=generator)


def gradients(model: DocumentCNN, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    z = model(x)
    return [z.detach(), *torch.autograd.grad(z, list(model.parameters()), g)]


def gradients_by_formulas(
    model: DocumentCNN, x: torch.Tensor, g: torch.Tensor, dtype=torch.float32
) -> list[torch.Tensor]:
    instructions = kernels.available().instructions
    kernels.choose("off")
    try:
        return gradients(copy.deepcopy(model).to(dtype), x.to(dtype), g.to(dtype))
    finally:
        kernels.choose(instructions)


architectures = st.fixed_dictionaries(
    {
        "in_channels": st.sampled_from([1, 1, 2, 3, 5, 16]),
        "channels": st.lists(st.sampled_from([16, 32, 48]), min_size=1, max_size=2),
        "kernel_size": st.tuples(st.integers(1, 5), st.integers(1, 6)),
        "image_size": st.tuples(st.integers(18, 26), st.integers(20, 25)),
        "hidden": st.lists(st.integers(1, 40), max_size=3),
        "classes": st.integers(1, 12),
        "subgradient": st.sampled_from([0.0, 0.5, 1.0]),
    }
)
few_examples = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ------------------------------------------------------------------------------------------ where a plan runs


def cost_from_logits(model, x, labels):
    return softmax_cross_entropy(model(x), labels)


# --------------------------------------------------------------------------------------- regressions


def without_kernels(function):
    kernels.choose("off")
    try:
        return function()
    finally:
        kernels.choose("auto")
