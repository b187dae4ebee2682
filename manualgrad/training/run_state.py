"""The state of a run as tensors and plain values, and its restoration from the untrusted content of a checkpoint."""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from manualgrad._torch_compat import schedule_state
from manualgrad.training import nonfinite, rng_state
from manualgrad.training.checkpoints import CheckpointError, SettingsMismatchError, deserialize
from manualgrad.training.run import TrainingRun
from manualgrad.training.schema import printable, require_same_structure


def settings(run: TrainingRun) -> dict[str, Any]:
    """Settings that determine the weights, and must be the same when a run is resumed.

    Everything else may differ: the world size, the engine, the device, and the paths of data and results.
    """
    digest = hashlib.sha256(run.dataset.train.images.cpu().contiguous().numpy().data)
    digest.update(run.dataset.train.labels.cpu().numpy().data)
    shapes = ((name, "x".join(map(str, parameter.shape))) for name, parameter in run.model.named_parameters())
    return {
        "architecture": ", ".join(f"{name} {shape}" for name, shape in shapes),
        "derivative of ReLU at 0": float(run.model.subgradient),
        "precision": str(run.dtype).removeprefix("torch."),
        "dataset": run.dataset.name,
        "SHA-256 of the training images and labels": digest.hexdigest(),
        "seed": run.seed,
        "batch size": run.epochs.batch_size,
        "epochs": run.epochs.num_epochs,
        "shares": ", ".join(f"{fraction:g}" for fraction in run.epochs.fractions),
        "averaged steps": run.average_last,
        "optimizer": type(run.optimizer).__name__,
        "learning rate": float(run.optimizer.defaults["lr"]),
        "schedule": type(run.scheduler).__name__,
    }


def state(run: TrainingRun) -> dict[str, Any]:
    """Return the state that a run with the same settings needs to continue from here.

    Raises:
        NonFiniteError: a weight is not finite. Such a state must not replace an earlier checkpoint.
    """
    first = nonfinite.describe_first_nonfinite(nonfinite.named_parameters(run.model))
    if first:
        raise nonfinite.NonFiniteError(
            f"no checkpoint was saved after step {run.step:,}; the first non-finite tensor is {first}"
        )
    return _state(run)


def restore(run: TrainingRun, content: bytes, name: str | Path) -> None:
    """Load the content of a checkpoint file into ``run``. If this raises, the run must not be used.

    Args:
        run: a new run with the settings of the one that saved the checkpoint.
        content: content of the file.
        name: name of the file in messages.

    Raises:
        SettingsMismatchError: the settings differ; the message lists each difference.
        CheckpointError: the file is damaged, or holds something that no run with these settings saves.
    """
    saved = deserialize(content, name)
    try:
        _require_same_settings(saved.get("settings"), settings(run), name)
        step = saved.get("step")
        if type(step) is not int or not 0 <= step <= run.num_steps:
            raise ValueError(f"step: expected a number from 0 to {run.num_steps}, got {printable(repr(step))}")
        require_same_structure(saved, _template(run, step), "checkpoint")
        _require_same_hyperparameters(saved, run, step)
        _require_plausible_numbers(saved, run)
        _load(saved, run)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # torch may raise each of them
        raise CheckpointError(f"{printable(name)}: {printable(error)}") from error


def _state(run: TrainingRun) -> dict[str, Any]:
    sampler = {"before": run.sampler.label_probs, "seen": run.sampler.epoch_label_probs}
    return {
        "settings": settings(run),
        "step": run.step,
        "model": dict(run.model.state_dict()),
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.scheduler.state_dict(),
        "mean": {} if run.averaged_model is None else dict(run.averaged_model.state_dict()),
        "order": run.order_state,
        "choice": sampler if run.epochs.has_subsets else {},
        "generators": rng_state.get_rng_states(),
        "costs": torch.tensor(run.losses, dtype=torch.float64),
        "history": run.history,
        "right": run.num_correct,
        "seconds": run.seconds,
    }


def _template(run: TrainingRun, step: int) -> dict[str, Any]:
    """State with the structure of the one after ``step``, and with other numbers."""
    epoch = {"epoch": 0, "cost": 0.0, "accuracy": 0.0, "test_cost": 0.0, "test_accuracy": 0.0, "seconds": 0.0}
    num_seen = run.epochs.step_in_epoch(step) * run.epochs.batch_size
    sampler = {"before": run.sampler.label_probs, "seen": torch.zeros(num_seen)} if run.epochs.has_subsets else {}
    optimizer = _with_initialized_state(run.optimizer) if step else run.optimizer
    template: dict[str, Any] = _to_cpu(_state(run))
    return template | {
        "choice": sampler,
        "optimizer": _to_cpu(optimizer.state_dict()),
        "costs": torch.zeros(step, dtype=torch.float64),
        "history": [epoch] * run.epochs.epoch_of(step),
    }


def _with_initialized_state(optimizer: Optimizer) -> Optimizer:
    """Copy of the optimizer and its weights after one step, since some optimizers create their state in that step."""
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    return twin


def _require_same_settings(saved: Any, expected: dict[str, Any], name: str | Path) -> None:
    require_same_structure(saved, expected, "settings")
    differences = [
        f"{key}: {printable(repr(saved[key]))} in the checkpoint, {printable(repr(value))} in this run"
        for key, value in expected.items()
        if saved[key] != value
    ]
    if differences:
        raise SettingsMismatchError(
            f"{printable(name)} was saved by a run with other settings: {'; '.join(differences)}"
        )


def _require_same_hyperparameters(saved: dict[str, Any], run: TrainingRun, step: int) -> None:
    """Require that only the numbers that change from step to step differ in the optimizer and the scheduler."""
    expected_groups = run.optimizer.state_dict()["param_groups"]
    groups = saved["optimizer"]["param_groups"]
    groups_without_lr = [
        {**group, "lr": expected["lr"]} for group, expected in zip(groups, expected_groups, strict=True)
    ]
    require_same_structure(groups_without_lr, expected_groups, "optimizer.param_groups", equal=True)
    for number, parameter_state in saved["optimizer"]["state"].items():
        optimizer_step = float(parameter_state.get("step", step))  # an exponent in Adam and others
        if optimizer_step != step:
            raise ValueError(f"optimizer.state.{number}.step: expected {step}, got {printable(optimizer_step)}")
    if run.averaged_model is not None:
        expected_count = max(0, step - (run.num_steps - run.average_last))
        count = int(saved["mean"]["n_averaged"])
        if count != expected_count:
            raise ValueError(f"mean.n_averaged: expected {expected_count}, got {count}")
    expected_schedule = run.scheduler.state_dict() | schedule_state(step, [group["lr"] for group in groups])
    require_same_structure(saved["schedule"], expected_schedule, "schedule", equal=True)


def _require_plausible_numbers(saved: dict[str, Any], run: TrainingRun) -> None:
    """Require finite weights and metrics, and counts in their range: a run saves no others."""
    for name, weight in saved["model"].items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(f"model.{name}: expected finite numbers")
    numbers = {"costs": saved["costs"].tolist(), "seconds": [saved["seconds"]]}
    for n, epoch in enumerate(saved["history"]):
        numbers[f"history[{n}]"] = [value for value in epoch.values() if type(value) is float]
        if epoch["epoch"] != n + 1:
            raise ValueError(f"history[{n}].epoch: expected {n + 1}, got {printable(repr(epoch['epoch'])[:20])}")
    for name, values in numbers.items():
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name}: expected finite numbers")
    if not 0 <= saved["right"] <= run.epochs.num_images:
        raise ValueError(f"right: expected a number from 0 to {run.epochs.num_images}")


def _load(saved: dict[str, Any], run: TrainingRun) -> None:
    run.model.load_state_dict(saved["model"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.scheduler.load_state_dict(saved["schedule"])
    if run.averaged_model is not None:
        run.averaged_model.load_state_dict(saved["mean"])
    rng_state.set_rng_states(saved["generators"])
    run.step, run.num_correct, run.seconds = saved["step"], saved["right"], saved["seconds"]
    run.losses, run.history = saved["costs"].tolist(), saved["history"]
    run.order_generator.set_state(saved["order"])
    if run.epochs.has_subsets:
        run.sampler.restore(saved["choice"]["before"], saved["choice"]["seen"])
    if not run.is_finished:
        run.draw_epoch_indices()


def _to_cpu(value: Any) -> Any:
    """Copy nested dicts with all tensors on the CPU."""
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    return value.cpu() if isinstance(value, Tensor) else value
