"""Parts of a run made from the options: device, dataset, model and optimizer, checkpoint to resume."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from manualgrad import data
from manualgrad.models import DocumentCNN
from manualgrad.training import recipes, run_state
from manualgrad.training.checkpoints import CheckpointError, CheckpointStore
from manualgrad.training.cli_exit import usage_error
from manualgrad.training.distributed import DistributedContext
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.optimizers import OPTIMIZERS, make_lr_scheduler
from manualgrad.training.run import TrainingRun
from manualgrad.training.streams import print_error


def select_device(name: str) -> torch.device:
    """Return the device for ``--device``, and on CUDA make torch's operators deterministic."""
    if name == "cuda" and not torch.cuda.is_available():
        usage_error("--device cuda: PyTorch finds no CUDA device; use --device cpu or --device auto")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes the sums of cuBLAS reproducible
        torch.use_deterministic_algorithms(True)
    return device


def load_dataset(options: argparse.Namespace, distributed: DistributedContext) -> data.Dataset:
    """Load the dataset with ``--crop`` and ``--limit`` applied. One process of each machine downloads it."""

    def load() -> data.Dataset:
        return data.load(options.dataset, options.data_dir, announce=distributed.print_rank0)

    try:
        dataset = distributed.run_local_rank0_first(load)
    except data.DataError as error:
        usage_error(error)
    try:
        dataset = dataset.center_crop(options.crop) if options.crop else dataset
    except ValueError as error:
        usage_error(f"--crop {options.crop}: {error}")
    return dataset.limited(options.limit) if options.limit else dataset


def make_run(
    options: argparse.Namespace, dataset: data.Dataset, device: torch.device, distributed: DistributedContext
) -> TrainingRun:
    """Make the model, the optimizer and the run at step 0, and print a summary of them."""
    torch.manual_seed(options.seed)
    rows, columns = dataset.train.images.shape[-2:]
    try:
        model = DocumentCNN(
            image_size=(rows, columns), channels=options.channels, hidden=options.hidden, classes=len(dataset.classes)
        ).to(device)
    except ValueError as error:
        usage_error(error)
    recipe = recipes.find_recipe(options.recipe, options.device)
    recipe_rate = recipe.learning_rate if options.optimizer == recipe.optimizer else None
    learning_rate = recipe_rate if options.learning_rate is None else options.learning_rate
    optimizer_options: dict[str, Any] = {} if learning_rate is None else {"lr": learning_rate}
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), **optimizer_options)
    epochs = EpochLayout(len(dataset.train), options.batch_size, options.epochs, tuple(options.shares))
    scheduler = make_lr_scheduler(options.schedule, optimizer, epochs.num_steps)
    average_last = round(options.average * epochs.num_steps)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    processes = f", on {distributed.world_size} processes" if distributed.world_size > 1 else ""
    distributed.print_rank0(f"""\
recipe  {recipes.describe(options)}
data    {dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images,
        {dataset.source}
model   DocumentCNN, {num_parameters:,} parameters, {device} with {torch.get_num_threads()} threads{processes}
steps   {epochs.num_steps:,}: {epochs}, batch size {options.batch_size}
        {options.optimizer}, {options.schedule} schedule, learning rate {optimizer.defaults["lr"]}\
{f", average of the weights of the last {average_last:,} step{'s' * (average_last > 1)}" if average_last else ""}""")
    return TrainingRun(
        model, optimizer, scheduler, dataset,
        epochs=epochs, seed=options.seed, average_last=average_last, engine=options.engine, distributed=distributed,
        cuda_graphs=options.cuda_graphs,
    )  # fmt: skip


def resume(checkpoint: str | None, run: TrainingRun, store: CheckpointStore) -> None:
    """Restore ``run`` as ``--resume`` says. Rank 0 reads the checkpoint and broadcasts its content."""

    def restore(content: bytes, name: Path) -> None:
        run_state.restore(run, content, name)

    def load() -> bytes | None:
        try:
            if checkpoint == "auto":
                return store.load_latest(restore, warn=lambda message: print_error(f"warning: {message}"))
            if checkpoint is not None:
                return store.load(Path(checkpoint), restore)
        except CheckpointError as error:
            usage_error(f"--resume {checkpoint}: {error}")
        if store.newest_first():
            usage_error(
                f"{store.folder} contains checkpoints of an earlier run: continue it with --resume auto, "
                f"remove the folder, or choose another --out"
            )
        return None

    content = run.distributed.run_on_rank0(load)
    if content is not None and not run.distributed.is_rank0:
        restore(content, Path("the checkpoint from rank 0"))
    if content is not None:
        run.distributed.print_rank0(f"resume  after step {run.step:,} of {run.num_steps:,}, from {store.last}")
    elif checkpoint:
        run.distributed.print_rank0(f"resume  no checkpoint in {store.folder}: starting at step 0")
