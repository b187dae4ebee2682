"""Promise: the steps of a training run on a GPU have all of their tensors there; seen without a GPU."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from manualgrad import DocumentCNN
from manualgrad.data.dataset import Dataset, Split
from manualgrad.training.distributed import DistributedContext
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.optimizers import GradientDescent, make_lr_scheduler
from manualgrad.training.run import TrainingRun
from tests.cuda.fake_gpu import fake_gpu

pytest.importorskip("triton", reason="kernels for CUDA are written in Triton")
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="other tests run on the GPU"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]
MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


class OneOfTwoRanks(DistributedContext):
    """The first of two ranks, which meets no other."""

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def ones(x: FakeTensor) -> list:
    """Numbers for ``x.tolist()``, by which a run reads its metrics: it waits for nothing else."""
    return np.ones(tuple(x.shape), "float32" if x.dtype.is_floating_point else "int64").tolist()


@pytest.mark.parametrize(
    ("optimizer", "cuda_graphs", "context"),
    [(MOMENTUM, True, DistributedContext()), (GradientDescent, False, OneOfTwoRanks(0, 2))],
    ids=["graphs", "two ranks"],
)
def test_a_run_stays_on_the_gpu(monkeypatch, optimizer, cuda_graphs, context):
    from manualgrad.network import cuda_descent

    model = DocumentCNN(image_size=20)
    with fake_gpu(monkeypatch) as gpu:
        launcher = cuda_descent.launch.current_launcher()
        monkeypatch.setattr(cuda_descent, "warm_up", lambda run, device: run(launcher))
        monkeypatch.setattr(
            cuda_descent, "capture", lambda run, device: SimpleNamespace(replay=lambda: run(launcher))
        )
        monkeypatch.setattr(FakeTensor, "tolist", ones, raising=False)
        with gpu:
            gpu.move(model)
            images = torch.empty(9, 1, 28, 28, dtype=torch.uint8, device="cuda")
            split = Split(images, torch.zeros(9, dtype=torch.int64, device="cuda")).center_crop(20)
            dataset = Dataset("digits", "nowhere", False, split, split, tuple("0123456789"), 0.1, 0.3)
            layout, sgd = EpochLayout(9, 4, 2), optimizer(model.parameters(), lr=0.1)
            run = TrainingRun(
                model, sgd, make_lr_scheduler("linear", sgd, layout.num_steps), dataset, epochs=layout, seed=0,
                average_last=2, engine="document", distributed=context, cuda_graphs=cuda_graphs,
            )  # fmt: skip
            run.run_warmup_step()
            gpu.launches.clear()
            while not run.is_finished:
                assert run.train_steps(100)
                if run.step_in_epoch == 0:
                    run.begin_epoch()
    assert gpu.launches.count("gather_batch") == gpu.launches.count("descend") == layout.num_steps
