"""The training command: load the data, make the model, train, evaluate after each epoch, and write the results.

``python train.py`` and ``python -m manualgrad train`` run :func:`main`.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

import torch

from manualgrad import extras
from manualgrad.training import allocator, run_state
from manualgrad.training.checkpoints import CheckpointStore
from manualgrad.training.cli_exit import EXIT_FAILURE, EXIT_USAGE, CliExit, to_cli_exit
from manualgrad.training.device_steps import DeviceSteps
from manualgrad.training.distributed import DistributedContext, init_distributed
from manualgrad.training.evaluation import EvalResult, evaluate
from manualgrad.training.metrics_logger import MetricsLogger
from manualgrad.training.options import parse_arguments
from manualgrad.training.output_folder import CHECKPOINTS, output_folder
from manualgrad.training.results import write_results
from manualgrad.training.run import TrainingRun
from manualgrad.training.run_setup import load_dataset, make_run, resume, select_device
from manualgrad.training.signals import SignalHandler, sigterm_as_before
from manualgrad.training.streams import print_error, usable_streams

CLOCK_NOTE = """\
clock   "s of training" includes, for every step: drawing the image order, gathering and normalizing the images,
        gradients, and the update. It does not include: loading files, compilation (one untimed warm-up step) and
        capture of CUDA graphs, logging, evaluation, and results"""


def main(argv: list[str] | None = None, prog: str = "train.py") -> int:
    """Run the command and return its exit code: 0, 1 failure, 2 wrong use, or 128 + the number of a signal.

    Args:
        argv: command line without the name of the command; None for that of the process.
        prog: name of the command in messages and in the help text.
    """
    with usable_streams(), sigterm_as_before():
        try:
            return run(parse_arguments(argv, prog), prog)
        except KeyboardInterrupt:
            print_error(f"\n{prog}: interrupted before all results were written")
            return 128 + signal.SIGINT


def run(options: argparse.Namespace, prog: str) -> int:
    """Run the command with its options, and return its exit code. A programming error keeps its traceback."""
    try:
        device = select_device(options.device)
        with init_distributed(cuda=device.type == "cuda") as distributed, output_folder(options.out, distributed):
            return train(options, device, distributed)
    except Exception as error:
        cli_exit = to_cli_exit(error)
        if cli_exit is None:
            raise
        report(cli_exit, prog, options.out)
        return cli_exit.code


def report(cli_exit: CliExit, prog: str, out: Path) -> None:
    """Print the message, if this rank has one, and after a failure the checkpoint from which to continue."""
    if cli_exit.message:
        print_error(f"{prog}: {cli_exit.message}")
        if cli_exit.code != EXIT_USAGE:
            for newest in CheckpointStore(out / CHECKPOINTS).newest_first()[:1]:
                print_error(f"{prog}: {newest} is complete: continue from it with --resume auto")


def train(options: argparse.Namespace, device: torch.device, distributed: DistributedContext) -> int:
    """Load the data, train, evaluate after each epoch, write the results, and return the exit code."""
    dataset = load_dataset(options, distributed).to(device)
    run = make_run(options, dataset, device, distributed)
    if no_plots := extras.find_import_problem(extras.PLOTS):
        distributed.print_rank0(f"plots   none: {no_plots}")
    if options.allocator_tuning and device.type == "cpu":
        distributed.print_rank0(f"memory  {allocator.tune().description}")
    store = CheckpointStore(options.out / CHECKPOINTS)
    resume(options.resume, run, store)
    if not run.is_finished:
        run.run_warmup_step()
        if run.device_steps:
            distributed.print_rank0(f"device  {describe_steps(run.device_steps)}")
        distributed.print_rank0(CLOCK_NOTE)

    result: EvalResult | None = None
    logger = MetricsLogger(options.out, options.log_dir, run)
    with logger, SignalHandler(silent=not distributed.is_rank0) as signals:
        while not run.is_finished:
            for metrics in run.train_steps(steps_to_checkpoint(run, options.checkpoint_every)):
                logger.log_step(metrics)
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
        write_results(options.out, run, result, vars(options))
    num_wrong = int((result.predicted != result.labels).sum())
    distributed.print_rank0(
        f"\ntest accuracy {result.accuracy:.2f} %: {num_wrong:,} of {len(dataset.test):,} test images are "
        f"misclassified after {run.seconds:.2f} s of training on {dataset.name}\n"
        f"weights.pt{' and metrics.json' if no_plots else ', metrics.json and plots'} are in {options.out}"
    )
    if options.target_accuracy is not None and result.accuracy < options.target_accuracy:
        if distributed.is_rank0:
            print_error(f"test accuracy {result.accuracy:.2f} % is below the target of {options.target_accuracy} %")
        return EXIT_FAILURE
    return 0


def describe_steps(device_steps: DeviceSteps | str) -> str:
    """Return one line about the steps on a CUDA device, or the reason why they are taken one by one."""
    if isinstance(device_steps, str):
        return f"steps one by one: {device_steps}"
    return f"steps on the device, {device_steps}; their metrics are written after them"


def steps_to_checkpoint(run: TrainingRun, checkpoint_every: int | None) -> int:
    """Return the number of steps until the next checkpoint is due or the run ends."""
    remaining = run.num_steps - run.step
    return remaining if checkpoint_every is None else min(remaining, checkpoint_every - run.step % checkpoint_every)


def is_checkpoint_due(run: TrainingRun, checkpoint_every: int | None) -> bool:
    """Return True after every ``checkpoint_every`` steps and after the last step; never if it is None."""
    return checkpoint_every is not None and (run.step % checkpoint_every == 0 or run.is_finished)
