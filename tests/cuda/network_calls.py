"""A plan's launches for ``kernel_calls.py``: forward, backward, and a step with its update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from manualgrad.cuda.launch import Launcher
from manualgrad.models import DocumentCNN
from manualgrad.network import cuda_plan, guards
from manualgrad.network.cuda_descent import CUDADescent
from manualgrad.network.cuda_tiles import tiles_for
from manualgrad.network.planners import PLANNERS


def network_calls(
    launch: Launcher, model: DocumentCNN, image_shape: tuple[int, int, int], batch_size: int, **tiles_changed: Any
) -> None:
    """Run the plan for ``model`` with a launcher that computes nothing, on tensors of the CPU."""
    tiles = replace(tiles_for(batch_size), **tiles_changed) if tiles_changed else None
    x, labels = torch.empty(batch_size, *image_shape), torch.zeros(batch_size, dtype=torch.int64)
    with (
        mock.patch.dict(PLANNERS, cpu=lambda network, size: cuda_plan.CUDAPlan(network, size, tiles)),
        mock.patch.object(cuda_plan, "unsupported_tensors", return_value=""),
        mock.patch.object(cuda_plan, "_launcher", return_value=launch),
    ):
        planned = guards.find_plan(list(model.children()), x)
        assert not isinstance(planned, str), planned
        plan, parameters = planned
        z, saved = plan.forward(x, parameters)
        plan.backward(z, x, saved, parameters[::2])
        result = plan.loss_and_grads(x, labels, parameters, -0.1, update=True)
        assert result is not None
        plan.new_step(x, labels, parameters, torch.zeros(()), update=True).run(launch)  # as in a CUDA graph
        plan.intermediates(result)


def descent_calls(launch: Launcher, model: DocumentCNN, image_shape: tuple[int, int, int], batch_size: int) -> None:
    """Launch a training step that stays on the device, with momentum and an average of the weights."""
    with (
        mock.patch.dict(PLANNERS, cpu=cuda_plan.get_plan),
        mock.patch.object(cuda_plan, "unsupported_tensors", return_value=""),
    ):
        planned = guards.find_plan(list(model.children()), torch.empty(batch_size, *image_shape))
        assert not isinstance(planned, str), planned
        images, labels = torch.empty(batch_size, *image_shape, dtype=torch.uint8), torch.zeros(batch_size).long()
        descent = CUDADescent(
            planned[0], images, labels, torch.zeros(256), momentum=0.9, averages=True, use_graphs=False
        )
        descent.launch_step(launch)
        CUDADescent(
            planned[0], images, labels, torch.zeros(256), use_graphs=False, all_reduce=lambda tensor: tensor
        ).launch_step(launch)
