"""Promise: training and evaluation run on a device without float64, as Apple's MPS is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manualgrad.training.evaluation import evaluate
from manualgrad.training.run import ENGINES
from tests.training.test_epochs import make_run


class WithoutFloat64(TorchDispatchMode):
    """Raises the error of MPS for each operator that would make or read a float64 tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **kwargs or {})
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype: {func}")
        return result


def test_the_mode_refuses_float64() -> None:
    with WithoutFloat64(), pytest.raises(TypeError, match="float64"):
        torch.zeros(2).double()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_makes_no_float64_tensor(engine: str) -> None:
    run = make_run(engine, average_last=7, fractions=(1.0, 0.5))
    with WithoutFloat64():
        run.run_warmup_step()
        for _ in range(run.epochs.ends[0]):
            run.train_step()
        result = evaluate(run.model, run.dataset.test.first(20), run.dataset)
    assert 0 < run.end_epoch(result)["test_cost"] < 3  # the result is on the CPU
