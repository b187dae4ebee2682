"""All that a run needs to go on, as tensors and plain values; and back, from a file that anybody may have written."""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from manualgrad.training import generators, nonfinite
from manualgrad.training.checkpoints import CheckpointError, OtherRun, unseal
from manualgrad.training.run import Run
from manualgrad.training.untrusted import printable, require_alike


def settings(run: Run) -> dict[str, Any]:
    """What decides the weights. Everything else may be another when a run is taken up: how many processes, which
    engine, which device, where the files lie."""
    digest = hashlib.sha256(run.dataset.train.images.cpu().contiguous().numpy())
    digest.update(run.dataset.train.labels.cpu().numpy())
    shapes = ((name, "x".join(map(str, parameter.shape))) for name, parameter in run.model.named_parameters())
    return {
        "architecture": ", ".join(f"{name} {shape}" for name, shape in shapes),
        "derivative of ReLU at 0": float(run.model.subgradient),
        "precision": str(next(run.model.parameters()).dtype).removeprefix("torch."),
        "dataset": run.dataset.name,
        "SHA-256 of the training images and labels": digest.hexdigest(),
        "seed": run.seed,
        "batch size": run.epochs.batch_size,
        "epochs": run.epochs.count,
        "shares": ", ".join(f"{share:g}" for share in run.epochs.shares),
        "averaged steps": run.averaged,
        "optimizer": type(run.optimizer).__name__,
        "learning rate": float(run.optimizer.defaults["lr"]),
        "schedule": type(run.schedule).__name__,
    }


def state(run: Run) -> dict[str, Any]:
    """What a Run with the same settings needs to go on from here.

    Raises NonFinite where a weight is not finite: such a state is worth nothing, and would push out a better one.
    """
    found = nonfinite.first_nonfinite(nonfinite.parameters(run.model))
    if found:
        raise nonfinite.NonFinite(f"after step {run.step:,}, not finite is first {found}")
    return _state(run)


def restore(run: Run, content: bytes, name: str | Path) -> None:
    """Go on from the checkpoint with this ``content``; ``name`` is what messages call it.

    Raises:
        OtherRun: its settings are others; the message names each difference.
        CheckpointError: it is damaged, or holds anything that this run could not have saved.
    """
    saved = unseal(content, name)
    try:
        _require_same_settings(saved.get("settings"), settings(run), name)
        step = saved.get("step")
        if type(step) is not int or not 0 <= step <= run.steps:
            raise ValueError(f"step: expected a number from 0 to {run.steps}, found {printable(repr(step))}")
        require_alike(saved, _expected(run, step), "checkpoint")
        _require_same_rules(saved, run, step)
        _require_finite(saved, run)
        _adopt(saved, run)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # also what torch says of a wrong generator
        raise CheckpointError(f"{printable(name)}: {printable(error)}") from error


def _state(run: Run) -> dict[str, Any]:
    return {
        "settings": settings(run),
        "step": run.step,
        "model": dict(run.model.state_dict()),
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.schedule.state_dict(),
        "mean": {} if run.mean is None else dict(run.mean.state_dict()),
        "order": run.order_before,
        "choice": {"before": run.choice.before, "seen": run.choice.seen} if run.epochs.choose else {},
        "generators": generators.states(),
        "costs": torch.tensor(run.costs, dtype=torch.float64),
        "history": run.history,
        "right": run.right,
        "seconds": run.seconds,
    }


def _expected(run: Run, step: int) -> dict[str, Any]:
    """A state that is built like the one after ``step``; only its numbers are others."""
    epoch = {"epoch": 0, "cost": 0.0, "accuracy": 0.0, "test_cost": 0.0, "test_accuracy": 0.0, "seconds": 0.0}
    seen = run.epochs.place(step) * run.epochs.batch_size
    choice = {"before": run.choice.before, "seen": torch.zeros(seen)} if run.epochs.choose else {}
    return _on_cpu(_state(run)) | {
        "choice": choice,
        "optimizer": _on_cpu(_after_a_step(run.optimizer).state_dict() if step else run.optimizer.state_dict()),
        "costs": torch.zeros(step, dtype=torch.float64),
        "history": [epoch] * run.epochs.epoch(step),
    }


def _after_a_step(optimizer: Optimizer) -> Optimizer:
    """A copy, with copies of the weights, that has what some optimisers make with their first step."""
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    return twin


def _require_same_settings(found: object, expected: dict[str, Any], name: str | Path) -> None:
    require_alike(found, expected, "settings")
    differences = [f"{key} is {printable(repr(found[key]))} there and {printable(repr(value))} here"
                   for key, value in expected.items() if found[key] != value]  # fmt: skip
    if differences:
        raise OtherRun(f"{printable(name)} belongs to another run: {'; '.join(differences)}")


def _require_same_rules(saved: dict[str, Any], run: Run, step: int) -> None:
    """How the optimiser and the schedule work comes from the settings; from the file come the numbers that move."""
    rules = run.optimizer.state_dict()["param_groups"]
    groups = saved["optimizer"]["param_groups"]
    unmoved = [{**group, "lr": rule["lr"]} for group, rule in zip(groups, rules, strict=True)]
    require_alike(unmoved, rules, "optimizer.param_groups", equal=True)
    for number, state in saved["optimizer"]["state"].items():
        if float(state.get("step", step)) != step:  # Adam and others raise numbers to its power
            found = printable(float(state["step"]))
            raise ValueError(f"optimizer.state.{number}.step: expected {step}, found {found}")
    if run.mean is not None:
        averaged, found = max(0, step - (run.steps - run.averaged)), int(saved["mean"]["n_averaged"])
        if found != averaged:
            raise ValueError(f"mean.n_averaged: expected {averaged}, found {found}")
    moving = {"last_epoch": step, "_step_count": step + 1, "_last_lr": [group["lr"] for group in groups]}
    require_alike(saved["schedule"], run.schedule.state_dict() | moving, "schedule", equal=True)


def _require_finite(saved: dict[str, Any], run: Run) -> None:
    """Numbers that results are written of, and that a run stops at rather than save, are in their range."""
    for name, weight in saved["model"].items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(f"model.{name}: expected finite numbers")
    numbers = {"costs": saved["costs"].tolist(), "seconds": [saved["seconds"]]}
    for n, epoch in enumerate(saved["history"]):
        numbers[f"history[{n}]"] = [value for value in epoch.values() if type(value) is float]
        if epoch["epoch"] != n + 1:
            raise ValueError(f"history[{n}].epoch: expected {n + 1}, found {printable(repr(epoch['epoch'])[:20])}")
    for name, values in numbers.items():
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name}: expected finite numbers")
    if not 0 <= saved["right"] <= run.epochs.images:
        raise ValueError(f"right: expected a number from 0 to {run.epochs.images}")


def _adopt(saved: dict[str, Any], run: Run) -> None:
    run.model.load_state_dict(saved["model"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.schedule.load_state_dict(saved["schedule"])
    if run.mean is not None:
        run.mean.load_state_dict(saved["mean"])
    generators.restore(saved["generators"])
    run.step, run.right, run.seconds = saved["step"], saved["right"], saved["seconds"]
    run.costs, run.history = saved["costs"].tolist(), saved["history"]
    run.order.set_state(saved["order"])
    if run.epochs.choose:
        run.choice.take_up(**saved["choice"])
    if not run.is_over:
        run.draw_order()


def _on_cpu(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return state.cpu() if isinstance(state, Tensor) else state
