"""The training command: load the data, make the model, train, evaluate after each epoch, and write the results.

``python train.py`` and ``python -m manualgrad train`` run :func:`main`.
"""

from __future__ import annotations

import argparse
import signal
import sys

import torch

from manualgrad import extras
from manualgrad.training import allocator, run_state
from manualgrad.training.checkpoints import CheckpointStore
from manualgrad.training.cli_exit import EXIT_FAILURE, EXIT_USAGE, CliExit, to_cli_exit
from manualgrad.training.distributed import DistributedContext, init_distributed
from manualgrad.training.evaluation import EvalResult, evaluate
from manualgrad.training.metrics_logger import MetricsLogger
from manualgrad.training.options import parse_arguments
from manualgrad.training.results import CHECKPOINTS, make_output_folder, write_results
from manualgrad.training.run import TrainingRun
from manualgrad.training.run_setup import load_dataset, make_run, resume, select_device
from manualgrad.training.signals import SignalHandler

CLOCK_NOTE = """\
clock   "s of training" includes, for every step: drawing the image order, gathering and normalizing the images,
        gradients, and the update. It does not include: loading files, compilation (one untimed warm-up step),
        logging, evaluation, and results"""


def main(argv: list[str] | None = None, prog: str = "train.py") -> int:
    """Run the command and return its exit code: 0, 1 failure, 2 wrong use, 130 SIGINT or 143 SIGTERM.

    Args:
        argv: command line without the name of the command; None for that of the process.
        prog: name of the command in messages and in the help text.
    """
    options = parse_arguments(argv, prog)
    try:
        device = select_device(options.device)
        with init_distributed(cuda=device.type == "cuda") as distributed:
            return train(options, device, distributed)
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted before all results were written", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        cli_exit = to_cli_exit(error)
        if cli_exit is None:
            raise
        if cli_exit.message:
            print(f"{prog}: {cli_exit.message}", file=sys.stderr)
            newest = CheckpointStore(options.out / CHECKPOINTS).newest_first()[:1]
            if newest and cli_exit.code != EXIT_USAGE:
                print(f"{prog}: {newest[0]} is complete: continue from it with --resume auto", file=sys.stderr)
        return cli_exit.code


def train(options: argparse.Namespace, device: torch.device, distributed: DistributedContext) -> int:
    """Load the data, train, evaluate after each epoch, write the results, and return the exit code."""
    out = distributed.run_on_rank0(lambda: make_output_folder(options.out))
    dataset = load_dataset(options, distributed).to(device)
    run = make_run(options, dataset, device, distributed)
    if no_plots := extras.find_import_problem(extras.PLOTS):
        distributed.print_rank0(f"plots   none: {no_plots}")
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
        f"weights.pt{' and metrics.json' if no_plots else ', metrics.json and plots'} are in {out}"
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
