"""What all tests share: the devices there are, a fixed seed, a number of threads, digits, a run there and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manualgrad import kernels

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# Two alone; one where pytest-xdist runs tests side by side, since threads that wait for each other spin.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device there is, one after the other."""
    return request.param


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for --data-dir, with 1,000 digits as --dataset fashion-mnist."""
    from tests.training.command_line import (
        write_digits,  # which imports train.py: not for tests that have no use for it
    )

    return write_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers for a test, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def kernels_as_before() -> Iterator[None]:
    """After a test that chooses kernels or threads, those that were in use."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernels.choose("auto")


def there_and_back(
    function: Callable[..., Any], inputs: Sequence[Tensor], gradient: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Runs ``function`` forward and backward; ``gradient`` makes the output's gradient out of the output.

    cuDNN stays off: its Winograd and FFT algorithms round where a plain sum of whole numbers is exact.
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
