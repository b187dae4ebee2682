"""Options of the command line, and what is wrong with their combination."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from compare.gradients.variants import DTYPES
from manualgrad import data
from manualgrad.command_line import ArgumentParser

DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
COMPARISONS = ("gradients", "training", "speed", "capabilities")
CASE_COMPARISONS = ("gradients", "capabilities")
MODEL_COMPARISONS = ("gradients", "speed")
TIME_LIMIT = 120  # seconds for one case; the slowest of this project's takes a tenth of it


def find_option_conflict(options: argparse.Namespace, requested: Sequence[str]) -> str | None:
    """Return a message about options that cannot be used together, or None."""
    if options.cases and not set(CASE_COMPARISONS) >= set(requested):
        return f"--cases is for gradients and capabilities, not for {options.comparison}"
    if options.model and options.comparison not in MODEL_COMPARISONS:
        return f"--model is for gradients and speed, not for {options.comparison}"
    if options.model and options.cases:
        return "--model and --cases cannot be used together"
    if options.model and options.dtype:
        return "--dtype cannot be used with --model, which compares float32 and float64"
    if options.isolate and (options.model or not set(CASE_COMPARISONS) & set(requested)):
        return f"--isolate is for cases, not for {'--model' if options.model else options.comparison}"
    if options.time_limit and not options.isolate:
        return "--time-limit needs --isolate"
    for name in ("size", "batch", "functional"):
        if getattr(options, name) and not options.model:
            return f"--{name} needs --model"
    return None


def parse_arguments(argv: list[str] | None, description: str | None, prog: str) -> argparse.Namespace:
    """Parse the command line; for wrong use print two lines and exit with code 2."""
    parser = ArgumentParser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("comparison", choices=(*COMPARISONS, "all"), help="what to compare; all runs the four in turn")
    add("--quick", action="store_true", help="fewer cases, seeds and sizes; all takes a minute or two")
    add("--cases", metavar="MODULE", help="compare your own compare.Cases: a module, or a .py file")
    add("--isolate", action="store_true",
        help="run each case in a process of its own, for cases that hang or end the interpreter")  # fmt: skip
    add("--time-limit", type=positive_int, metavar="SECONDS",
        help=f"time for one case with --isolate (default: {TIME_LIMIT})")  # fmt: skip
    add("--model", action="append", default=[], metavar="torchvision:NAME",
        help="compare a classification model of torchvision instead of cases, or measure its speed on CUDA; can be "
             "repeated")  # fmt: skip
    add("--size", type=positive_int, help="height and width of a model's images (default: 224, quick: 64)")
    add("--batch", type=positive_int, help="images in a model's batch (default: 2, for speed 32)")
    add("--functional", action="store_true", help="also replace functional calls in a model's forward")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto is cuda if there is one (default: auto)",
    )
    add("--dtype", nargs="+", choices=DTYPE_NAMES, metavar="DTYPE",
        help=f"one or more of {', '.join(DTYPE_NAMES)} (default: all)")  # fmt: skip
    add("--seeds", type=positive_int,
        help="training runs per network (default: 3), or batches per model (default: 5); quick: 2")  # fmt: skip
    add("--epochs", type=positive_int, help="epochs of each training run (default: 2, quick: 1)")
    add("--dataset", choices=data.NAMES, default="mnist", help="dataset of the training runs (default: mnist)")
    add("--data-dir", metavar="DIR",
        help="folder of the dataset's files, to which missing ones are downloaded "
             "(default: data; with --quick, a sample in the package is used)")  # fmt: skip
    add("--out", type=Path, default=Path("runs/compare"), metavar="DIR",
        help="folder of the report (default: runs/compare)")  # fmt: skip
    options = parser.parse_args(argv)
    options.seeds = options.seeds or (2 if options.quick else 5 if options.model else 3)
    return options


def positive_int(text: str) -> int:
    """Parse a whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return value
