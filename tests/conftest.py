"""Fixtures and functions for all tests: devices, a fixed seed, a number of threads, a data set of digits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compare.random_state import set_seed
from manualgrad import kernels

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

if not torch.cuda.is_available():
    # Without a GPU Triton interprets the kernels of tests/cuda. It reads this where it is imported first.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# One thread under pytest-xdist, which runs tests in parallel processes: threads that wait for a core would spin.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests of forks run first: PyTorch refuses a backward in a fork once this process has compiled a model."""
    items.sort(key=lambda item: "backward_in_a_fork" not in getattr(item, "fixturenames", ()))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Device to test on: the CPU, and CUDA if there is a GPU."""
    return request.param


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for --data-dir, with 1,000 digits as --dataset fashion-mnist."""
    # Imported here, because it imports the training command, which most tests do not need.
    from tests.training.command_line import write_digits

    return write_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed torch before each test, so that no test depends on those that ran before it."""
    set_seed(0)


@pytest.fixture
def restore_kernels() -> Iterator[None]:
    """Restore the choice of kernels and the number of threads after the test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernels.choose(os.environ.get("MANUALGRAD_KERNELS", "auto"))  # other processes of a test make this choice too


def run_forward_backward(
    function: Callable[..., Any], inputs: Sequence[Tensor], gradient: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Run ``function`` forward and backward on copies of ``inputs``.

    cuDNN is off: its Winograd and FFT algorithms round where a plain sum of whole numbers is exact.

    Args:
        gradient: computes the gradient of the first output from that output.

    Returns:
        Outputs and gradients: "output", "output 1", ..., "gradient 0", "gradient 1", ...
    """
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    with torch.backends.cudnn.flags(enabled=False):
        output = function(*leaves)
        output, *others = output if isinstance(output, tuple) else (output,)
        if output.requires_grad:
            output.backward(gradient(output.detach()))
    results = {"output": output.detach()}
    results |= {f"output {n}": other for n, other in enumerate(others, 1)}
    return results | {f"gradient {n}": leaf.grad for n, leaf in enumerate(leaves) if leaf.grad is not None}
