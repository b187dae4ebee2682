"""Trains the document's network on MNIST, by gradients that were derived by hand.

python train.py                              # downloads MNIST, or uses the bundled sample
python train.py --data-dir DIR               # files in torchvision's layout under DIR
python train.py --optimizer adam --epochs 5
python train.py --recipe fast                # about 99 % in the least time on a CPU
python train.py --checkpoint-every 200       # killed or interrupted, it goes on with --resume auto
torchrun --nproc-per-node=2 train.py         # the same batches, shared by two processes
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA repeats its sums in one order only with this

import torch

from manualgrad import DocumentCNN, data
from manualgrad.training import allocator, run_state
from manualgrad.training.checkpoints import CheckpointError, Store
from manualgrad.training.commandline import at_least, percent
from manualgrad.training.distributed import Processes, joined
from manualgrad.training.endings import FAILED, WRONG_USE, Ended, explain, fail
from manualgrad.training.epochs import Epochs
from manualgrad.training.interruptions import Interruption
from manualgrad.training.recipes import RECIPES, STANDARD, described
from manualgrad.training.records import Records
from manualgrad.training.results import CHECKPOINTS, make_folder, write_results
from manualgrad.training.run import ENGINES, Run
from manualgrad.training.steps import OPTIMIZERS, SCHEDULES, examine, step_sizes

COUNTED = """\
clock   counts all of every step: the order of the images, gathering and normalising them, gradients, the update.
        It does not count: loading the files, compiling (a step was tried and forgotten), records, tests, results"""


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0; 1 for a missed target or a failure, 2 for wrong use, 130 or 143 for an interruption."""
    options = arguments(argv)
    try:
        device = pick_device(options.device)
        with joined(cuda=device.type == "cuda") as processes:
            return train(options, device, processes)
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted before its results were complete", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        ending = explain(error)
        if ending is None:
            raise
        if ending.message:
            print(f"train.py: {ending.message}", file=sys.stderr)
        newest = [] if ending.code == WRONG_USE else Store(options.out / CHECKPOINTS).newest_first()[:1]
        if ending.message and newest:
            print(f"train.py: {newest[0]} is safe; --resume auto goes on from there", file=sys.stderr)
        return ending.code


def train(options: argparse.Namespace, device: torch.device, processes: Processes) -> int:
    """From data to results."""
    out = processes.from_first(lambda: make_folder(options.out))
    dataset = load(options, processes).to(device)
    run = prepare(options, dataset, device, processes)
    if options.allocator_tuning and device.type == "cpu":
        processes.say(f"memory  {allocator.tune().what}")
    store = Store(out / CHECKPOINTS)
    resume(options.resume, run, store)
    if not run.is_over:
        run.warm_up()
        processes.say(COUNTED)

    verdict, every = None, options.checkpoint_every
    with Records(out, options.log_dir, run) as records, Interruption(silent=not processes.is_first) as interruption:
        while not run.is_over:
            records.step(run.take_step())
            if run.place == 0:
                verdict = examine(run.model, dataset.test, dataset, processes)
                records.epoch(run.close_epoch(verdict))
            asked = processes.largest(interruption.signal, device)
            if processes.is_first and (asked or (every and (run.step % every == 0 or run.is_over))):
                records.flush()
                store.save(run.step, run_state.state(run))
            if asked:
                stopped = f"{signal.Signals(asked).name}: stopped after step {run.step:,} of {run.steps:,}"
                raise Ended(128 + asked, stopped if processes.is_first else "")

    verdict = verdict or examine(run.model, dataset.test, dataset, processes)
    if processes.is_first:
        write_results(out, run, verdict, vars(options))
    wrong = int((verdict.predicted != verdict.labels).sum())
    processes.say(f"\n{verdict.accuracy:.2f} % of the {len(dataset.test):,} test images are right ({wrong} wrong), "
                  f"after {run.seconds:.2f} s of training on {dataset.name}.\n"
                  f"Weights, metrics.json and pictures are in {out}")  # fmt: skip
    if options.target_accuracy is not None and verdict.accuracy < options.target_accuracy:
        if processes.is_first:
            print(f"the target of {options.target_accuracy} % is missed", file=sys.stderr)
        return FAILED
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse answers a mistake with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipe", choices=RECIPES, default=STANDARD, help="settings under a name (default: %(default)s)")
    add("--dataset", choices=data.NAMES, default="mnist")
    add("--data-dir", default="data", metavar="DIR", help="where the files are, or are downloaded to (default: data)")
    add("--out", type=Path, default=Path("runs/latest"), metavar="DIR", help="for the results (default: runs/latest)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--optimizer", choices=OPTIMIZERS, default="sgd", help="sgd, the default, is plain gradient descent")
    add("--seed", type=at_least(int, 0, most=2**63 - 1), default=0, help="the same seed gives the same weights")
    add("--limit", type=at_least(int, 1), metavar="N", help="use the first N training images only")
    add("--target-accuracy", type=percent, metavar="%", help="exit with 1 unless the test accuracy reaches it")
    add("--checkpoint-every", type=at_least(int, 1), metavar="N",
        help="save what the run needs to go on in OUT/checkpoints, every N steps (else if interrupted)")  # fmt: skip
    add("--resume", metavar="auto|FILE", help="go on from the newest checkpoint in OUT if there is one, or from FILE")
    add("--log-dir", type=Path, metavar="DIR", help="write TensorBoard's events there")
    add("--no-allocator-tuning", dest="allocator_tuning", action="store_false",
        help="let the C library give freed memory back to the system, as it does by itself")  # fmt: skip
    add = parser.add_argument_group("what the recipe decides where it is not given").add_argument
    add("--channels", type=at_least(int, 1), nargs="+", metavar="K", help="outputs of each convolution")
    add("--hidden", type=at_least(int, 1), nargs="*", metavar="I", help="outputs of each dense layer but the last")
    add("--engine", choices=ENGINES,
        help="what chains the derivatives: torch's engine, or the document's recursion of δ")  # fmt: skip
    add("--epochs", type=at_least(int, 1))
    add("--shares", type=at_least(float, 0.001, most=1), nargs="+", metavar="S",
        help="of the images, that each epoch takes, the last for all that follow: those whose label had the least "
             "probability when they were last seen, and before them those that were not seen yet")  # fmt: skip
    add("--average", type=at_least(float, 0, most=1), metavar="S",
        help="the share of the steps, the last ones, whose weights' mean is the result ")  # fmt: skip
    add("--crop", type=at_least(int, 1), metavar="N", help="use N rows and columns in the middle of each image only")
    add("--batch-size", type=at_least(int, 1, most=10**9), help="of all processes together")
    add("--schedule", choices=SCHEDULES)
    add("--learning-rate", type=at_least(float, 0), metavar="η",
        help="the highest of the schedule; the recipe's is for sgd, others have torch's own default")  # fmt: skip
    parser.set_defaults(**RECIPES[parser.parse_args(argv).recipe].options())
    return parser.parse_args(argv)


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: PyTorch finds no CUDA device here; use --device cpu, or auto")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
    return device


def load(options: argparse.Namespace, processes: Processes) -> data.Dataset:
    def load_here() -> data.Dataset:
        return data.load(options.dataset, options.data_dir, announce=processes.say)

    try:
        dataset = processes.one_after_the_other(load_here)
    except data.DataError as error:
        fail(error)
    try:
        dataset = dataset.middle(options.crop) if options.crop else dataset
    except ValueError as error:
        fail(f"--crop {options.crop}: {error}")
    return dataset.limited(options.limit) if options.limit else dataset


def prepare(options: argparse.Namespace, dataset: data.Dataset, device: torch.device, processes: Processes) -> Run:
    """The run before its first step, and a few lines about it."""
    torch.manual_seed(options.seed)
    rows_columns = tuple(dataset.train.images.shape[-2:])
    try:
        model = DocumentCNN(
            image_size=rows_columns, channels=options.channels, hidden=options.hidden, classes=len(dataset.classes)
        ).to(device)
    except ValueError as error:
        fail(error)
    default = RECIPES[options.recipe].learning_rate if options.optimizer == "sgd" else None
    rate = default if options.learning_rate is None else options.learning_rate
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), **({} if rate is None else {"lr": rate}))
    epochs = Epochs(len(dataset.train), options.batch_size, options.epochs, tuple(options.shares))
    schedule = step_sizes(options.schedule, optimizer, epochs.steps)
    averaged = round(options.average * epochs.steps)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shared = f", shared by {processes.count} processes" if processes.count > 1 else ""
    processes.say(f"""\
recipe  {described(options)}
data    {dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images,
        {dataset.source}
model   DocumentCNN, {parameters:,} parameters, on {device} with {torch.get_num_threads()} threads{shared}
steps   {epochs.steps:,}: {epochs}, batch {options.batch_size}
        {options.optimizer}, {options.schedule} schedule, learning rate {optimizer.defaults["lr"]}\
{f", mean of the last {averaged:,} weights" if averaged else ""}""")
    return Run(
        model, optimizer, schedule, dataset,
        epochs=epochs, seed=options.seed, averaged=averaged, engine=options.engine, processes=processes,
    )  # fmt: skip


def resume(wanted: str | None, run: Run, store: Store) -> None:
    """Go on where a checkpoint is; process 0 reads it, and the others get it from there."""

    def restore(content: bytes, name: Path) -> None:
        run_state.restore(run, content, name)

    def find() -> bytes | None:
        try:
            if wanted == "auto":
                return store.take_up(restore, warn=lambda fault: print(f"train.py: {fault}", file=sys.stderr))
            if wanted is not None:
                return store.take(Path(wanted), restore)
        except CheckpointError as error:
            fail(f"--resume {wanted}: {error}")
        if store.newest_first():
            fail(f"{store.folder} holds checkpoints of an earlier run: go on from them with --resume auto, or remove "
                 f"the folder, or choose another --out")  # fmt: skip
        return None

    content = run.processes.from_first(find)
    if content is not None and not run.processes.is_first:
        restore(content, Path("the first process's checkpoint"))
    if content is not None:
        run.processes.say(f"resume  after step {run.step:,} of {run.steps:,}, from {store.last}")
    elif wanted:
        run.processes.say(f"resume  no checkpoint in {store.folder}: from the start")


if __name__ == "__main__":
    raise SystemExit(main())
