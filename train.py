"""Train the network of the formula sheet (docs/equations.md) on MNIST, by gradients that were derived by hand.

python train.py                              # downloads MNIST; without a network, uses the bundled sample
python train.py --data-dir DIR               # uses files in torchvision's layout under DIR
python train.py --optimizer adam --epochs 5
python train.py --recipe fast                # about 99 % in the least time on a CPU
python train.py --checkpoint-every 200       # after a kill or an interruption, continue with --resume auto
torchrun --nproc-per-node=2 train.py         # two processes share each batch

Exit codes: 0 finished, 1 failure or missed --target-accuracy, 2 wrong options or files, 130 SIGINT, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes the sums of cuBLAS reproducible

import torch

from manualgrad import DocumentCNN, data
from manualgrad.training import allocator, recipes, run_state
from manualgrad.training.argument_types import bounded, percentage
from manualgrad.training.checkpoints import CheckpointError, CheckpointStore
from manualgrad.training.cli_exit import EXIT_FAILURE, EXIT_USAGE, CliExit, to_cli_exit, usage_error
from manualgrad.training.distributed import DistributedContext, init_distributed
from manualgrad.training.epochs import EpochLayout
from manualgrad.training.evaluation import EvalResult, evaluate
from manualgrad.training.metrics_logger import MetricsLogger
from manualgrad.training.optimizers import OPTIMIZERS, SCHEDULES, make_lr_scheduler
from manualgrad.training.recipes import RECIPES, STANDARD
from manualgrad.training.results import CHECKPOINTS, make_output_folder, write_results
from manualgrad.training.run import ENGINES, TrainingRun
from manualgrad.training.signals import SignalHandler

CLOCK_NOTE = """\
clock   "s of training" includes, for every step: drawing the image order, gathering and normalizing the images,
        gradients, and the update. It does not include: loading files, compilation (one untimed warm-up step),
        logging, evaluation, and results"""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 failure, 2 wrong use, 130 SIGINT or 143 SIGTERM."""
    options = parse_arguments(argv)
    try:
        device = select_device(options.device)
        with init_distributed(cuda=device.type == "cuda") as distributed:
            return train(options, device, distributed)
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted before all results were written", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        cli_exit = to_cli_exit(error)
        if cli_exit is None:
            raise
        if cli_exit.message:
            print(f"train.py: {cli_exit.message}", file=sys.stderr)
            newest = CheckpointStore(options.out / CHECKPOINTS).newest_first()[:1]
            if newest and cli_exit.code != EXIT_USAGE:
                print(f"train.py: {newest[0]} is complete: continue from it with --resume auto", file=sys.stderr)
        return cli_exit.code


def train(options: argparse.Namespace, device: torch.device, distributed: DistributedContext) -> int:
    """Load the data, train, evaluate after each epoch, write the results, and return the exit code."""
    out = distributed.run_on_rank0(lambda: make_output_folder(options.out))
    dataset = load_dataset(options, distributed).to(device)
    run = make_run(options, dataset, device, distributed)
    if options.allocator_tuning and device.type == "cpu":
        distributed.print_rank0(f"memory  {allocator.tune().description}")
    store = CheckpointStore(out / CHECKPOINTS)
    resume(options.resume, run, store)
    if not run.is_finished:
        run.run_warmup_step()
        distributed.print_rank0(CLOCK_NOTE)

    result: EvalResult | None = None
    logger = MetricsLogger(out, options.log_dir, run)
    with logger, SignalHandler(silent=not distributed.is_rank0) as signals:
        while not run.is_finished:
            logger.log_step(run.train_step())
            if run.step_in_epoch == 0:
                result = evaluate(run.model, dataset.test, dataset, distributed)
                logger.log_epoch(run.end_epoch(result))
            received = distributed.all_reduce_max(signals.received, device)
            if distributed.is_rank0 and (received or is_checkpoint_due(run, options.checkpoint_every)):
                logger.flush()
                store.save(run.step, run_state.state(run))
            if received:
                stopped = f"{signal.Signals(received).name}: stopped after step {run.step:,} of {run.num_steps:,}"
                raise CliExit(128 + received, stopped if distributed.is_rank0 else "")

    if result is None:  # a finished run was resumed
        result = evaluate(run.model, dataset.test, dataset, distributed)
    if distributed.is_rank0:
        write_results(out, run, result, vars(options))
    num_wrong = int((result.predicted != result.labels).sum())
    distributed.print_rank0(
        f"\ntest accuracy {result.accuracy:.2f} %: {num_wrong} of {len(dataset.test):,} test images are misclassified"
        f" after {run.seconds:.2f} s of training on {dataset.name}\n"
        f"weights.pt, metrics.json and plots are in {out}"
    )
    if options.target_accuracy is not None and result.accuracy < options.target_accuracy:
        if distributed.is_rank0:
            print(
                f"test accuracy {result.accuracy:.2f} % is below the target of {options.target_accuracy} %",
                file=sys.stderr,
            )
        return EXIT_FAILURE
    return 0


def is_checkpoint_due(run: TrainingRun, checkpoint_every: int | None) -> bool:
    """Return True after every ``checkpoint_every`` steps and after the last step; never if it is None."""
    return checkpoint_every is not None and (run.step % checkpoint_every == 0 or run.is_finished)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line. For a mistake argparse prints one message and exits with code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipe", choices=RECIPES, default=STANDARD,
        help="named set of defaults for the options of the last group (default: %(default)s)")  # fmt: skip
    add("--dataset", choices=data.NAMES, default="mnist", help="default: %(default)s")
    add("--data-dir", default="data", metavar="DIR",
        help="folder with the data files; missing ones are downloaded to it (default: %(default)s)")  # fmt: skip
    add("--out", type=Path, default=Path("runs/latest"), metavar="DIR",
        help="folder for results and checkpoints, OUT below (default: %(default)s)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if available (default: auto)")
    add("--optimizer", choices=OPTIMIZERS, default="sgd",
        help="sgd is plain gradient descent without momentum (default: %(default)s)")  # fmt: skip
    add("--seed", type=bounded(int, 0, 2**63 - 1), default=0,
        help="seed of the initial weights and of the image order (default: %(default)s)")  # fmt: skip
    add("--limit", type=bounded(int, 1), metavar="N", help="use only the first N training images")
    add("--target-accuracy", type=percentage, metavar="%",
        help="exit with code 1 if the test accuracy is below this percentage")  # fmt: skip
    add("--checkpoint-every", type=bounded(int, 1), metavar="N",
        help="save a checkpoint in OUT/checkpoints every N steps, after the last step, and on SIGINT or SIGTERM "
             "(default: on SIGINT or SIGTERM only)")  # fmt: skip
    add("--resume", metavar="auto|FILE",
        help="auto: continue from the newest checkpoint in OUT, or start a run if OUT has none; "
             "FILE: continue from this checkpoint")  # fmt: skip
    add("--log-dir", type=Path, metavar="DIR", help="write TensorBoard events to this folder")
    add("--no-allocator-tuning", dest="allocator_tuning", action="store_false",
        help="let the C library return freed memory to the system, which is its default")  # fmt: skip
    add = parser.add_argument_group("options whose defaults come from the recipe").add_argument
    add("--channels", type=bounded(int, 1), nargs="+", metavar="C", help="output channels of each convolution")
    add("--hidden", type=bounded(int, 1), nargs="*", metavar="N", help="output features of each hidden dense layer")
    add("--engine", choices=ENGINES,
        help="computation of the gradients: autograd, torch's engine over our Functions; or document, the formula "
             "sheet's recursion of δ without autograd. Both give the same numbers")  # fmt: skip
    add("--epochs", type=bounded(int, 1), metavar="N", help="number of epochs")
    add("--shares", type=bounded(float, 0.001, 1), nargs="+", metavar="S",
        help="fraction of the images used in each epoch, such as 1 0.5; the last value repeats. An epoch uses "
             "unseen images first, then those whose label had the lowest probability when last used")  # fmt: skip
    add("--average", type=bounded(float, 0, 1), metavar="S",
        help="fraction of the steps, counted from the end, over which the weights are averaged; "
             "the average is the result (0: no averaging)")  # fmt: skip
    add("--crop", type=bounded(int, 1), metavar="N", help="use only the N x N pixels in the middle of each image")
    add("--batch-size", type=bounded(int, 1, 10**9), metavar="N", help="images in a batch, over all processes")
    add("--schedule", choices=SCHEDULES, help="schedule of the learning rate")
    add("--learning-rate", type=bounded(float, 0), metavar="LR",
        help="peak learning rate (default: the recipe's for sgd, torch's for other optimizers)")  # fmt: skip
    parser.set_defaults(**RECIPES[parser.parse_args(argv).recipe].option_defaults())
    return parser.parse_args(argv)


def select_device(name: str) -> torch.device:
    """Return the device for ``--device``, and on CUDA make torch's operators deterministic."""
    if name == "cuda" and not torch.cuda.is_available():
        usage_error("--device cuda: PyTorch finds no CUDA device; use --device cpu or --device auto")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
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
    recipe_rate = RECIPES[options.recipe].learning_rate if options.optimizer == "sgd" else None
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
    )  # fmt: skip


def resume(checkpoint: str | None, run: TrainingRun, store: CheckpointStore) -> None:
    """Restore ``run`` as ``--resume`` says. Rank 0 reads the checkpoint and broadcasts its content."""

    def restore(content: bytes, name: Path) -> None:
        run_state.restore(run, content, name)

    def load() -> bytes | None:
        try:
            if checkpoint == "auto":
                return store.load_latest(restore, warn=lambda message: print(f"train.py: {message}", file=sys.stderr))
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


if __name__ == "__main__":
    raise SystemExit(main())
