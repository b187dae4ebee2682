"""Compare hand-written gradients with PyTorch's own. The report goes to the terminal, and to HTML, Markdown and JSON.

python -m compare all --data-dir DIR           # gradients, training, speed, capabilities
python -m compare all --quick                  # a first look, in less than a minute
python -m compare gradients --cases my_file.py # your own Function: see docs/write-your-own.md
python -m compare gradients --model torchvision:resnet18  # a whole model: see docs/any-model.md
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from compare import capabilities, equations
from compare.capabilities.section import section as format_capabilities
from compare.case import Case, CaseError
from compare.cases import all_cases, network_cases, operation_cases
from compare.gradients.comparison import compare
from compare.gradients.section import section as format_gradients
from compare.gradients.variants import DTYPES
from compare.load_cases import load_cases
from compare.models import torchvision_models
from compare.models.comparison import compare_models
from compare.models.section import section as format_models
from compare.report import as_text, write_report
from compare.report.headline import headline
from compare.run_info import collect_run_info
from compare.sections import Section
from compare.speed.benchmark import compare_speed
from compare.speed.contenders import Network
from compare.speed.section import section as format_speed
from compare.training.section import section as format_training
from compare.training.side_by_side import compare_training
from manualgrad import data, extras

DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
COMPARISONS = ("gradients", "training", "speed", "capabilities")
PROG = "python -m compare"


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    options = parse_arguments(argv, prog)
    if problem := extras.find_import_problem(extras.REPORT):
        return print_error(f"the report cannot be written: {problem}")
    try:
        return run(options, sys.argv[1:] if argv is None else argv, prog)
    except (CaseError, data.DataError) as error:
        return print_error(error)
    except KeyboardInterrupt:
        print("\ncompare: interrupted before the report was complete", file=sys.stderr)
        return 130


def run(options: argparse.Namespace, argv: list[str], prog: str = PROG) -> int:
    """Run the requested comparisons, print each section when it is complete, then write the report.

    Returns:
        The exit code: 0 if everything matches, 1 if there is an unexplained difference, 2 for wrong use.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        return print_error("--device cuda: PyTorch finds no CUDA device; use --device cpu or auto")
    requested = COMPARISONS if options.comparison == "all" else (options.comparison,)
    if problem := find_option_conflict(options, requested):
        return print_error(problem)
    auto_device = "cuda" if torch.cuda.is_available() and not options.model else "cpu"
    options.device = options.device.replace("auto", auto_device)
    cases = load_cases(options.cases) if options.cases else None
    model_names = torchvision_models.parse_model_names(options.model)
    if problem := find_write_problem(options.out):
        return print_error(problem)
    dataset = load_dataset(options) if "training" in requested else None
    make_section: dict[str, Callable[[Any], Section]] = {
        "gradients": lambda bar: (
            model_section(options, model_names, bar) if model_names else gradient_section(options, cases, bar)
        ),
        "training": lambda bar: training_section(options, dataset, bar),
        "speed": lambda bar: speed_section(options, bar),
        "capabilities": lambda bar: capability_section(options, cases, bar),
    }
    sections = []
    for name in requested:
        with tqdm(desc=name, leave=False, disable=None, dynamic_ncols=True) as bar:
            sections.append(make_section[name](bar))
        print(as_text(sections[-1]))
    if not (options.cases or options.model):
        sections.append(equations.section())
    run_info = collect_run_info(
        shlex.join([*prog.split(), *argv]),
        seeds=range(options.seeds),
        dataset=dataset and dataset.name,
        source=dataset and dataset.source,
        device=options.device,
    )
    written = write_report(sections, run_info, options.out)
    print(f"{headline(sections)}\n{written[-1]}")
    return 1 if any(section.failures for section in sections) else 0


def load_dataset(options: argparse.Namespace) -> data.Dataset:
    """Load the dataset; for --quick on MNIST without --data-dir, the bundled sample."""
    if options.quick and options.dataset == "mnist" and options.data_dir is None:
        return data.bundled_sample()
    return data.load(options.dataset, options.data_dir or "data")


def gradient_section(options: argparse.Namespace, cases: list[Case] | None, bar: Any) -> Section:
    chosen_cases = cases or (operation_cases() + network_cases()[:1] if options.quick else all_cases())
    dtypes = [DTYPE_NAMES[name] for name in options.dtype] if options.dtype else DTYPES
    bar.total = len(chosen_cases)
    comparisons = []
    for case in chosen_cases:
        bar.set_description_str(f"gradients: {case.name}")
        comparisons.append(compare(case, dtypes=dtypes, device=options.device, progress=bar))
    return format_gradients(comparisons)


def model_section(options: argparse.Namespace, names: list[str], bar: Any) -> Section:
    size = options.size or (64 if options.quick else 224)
    model_options = torchvision_models.ModelOptions(size, options.batch or 2, options.functional)
    return format_models(compare_models(names, model_options, range(options.seeds), bar))


def training_section(options: argparse.Namespace, dataset: data.Dataset, bar: Any) -> Section:
    settings = {"epochs": options.epochs} if options.epochs else {}
    if options.dtype and len(options.dtype) == 1:
        settings["dtype"] = DTYPE_NAMES[options.dtype[0]]
    limit = 600 if options.quick else 40_000
    if options.quick:
        settings.setdefault("epochs", 1)
    seeds = range(options.seeds)
    return format_training(
        compare_training(dataset, seeds=seeds, limit=limit, device=options.device, progress=bar, **settings)
    )


def speed_section(options: argparse.Namespace, bar: Any) -> Section:
    quick = {
        "networks": (Network((16, 32), 64),), "curve": (1,), "rounds": 3, "compiled": False,
        "seconds_per_measurement": 0.01,
    } if options.quick else {}  # fmt: skip
    return format_speed(compare_speed(device=options.device, progress=bar, **quick))


def capability_section(options: argparse.Namespace, cases: list[Case] | None, bar: Any) -> Section:
    chosen_cases = cases or [*operation_cases(), network_cases()[0]]
    only = capabilities.QUICK if options.quick else tuple(capabilities.CAPABILITIES)
    rows = capabilities.compare_capabilities(chosen_cases, device=options.device, only=only, progress=bar)
    # A user's Function may lack capabilities: the report lists them and does not fail. Ours must have native's.
    return format_capabilities(rows, device=options.device, held=() if cases else None)


def find_option_conflict(options: argparse.Namespace, requested: tuple[str, ...]) -> str | None:
    """Return a message about options that cannot be used together, or None."""
    if options.cases and not {"gradients", "capabilities"} >= set(requested):
        return f"--cases is for gradients and capabilities, not for {options.comparison}"
    if options.model and options.comparison != "gradients":
        return f"--model is for gradients, not for {options.comparison}"
    if options.model and options.cases:
        return "--model and --cases cannot be used together"
    if options.model and options.dtype:
        return "--dtype cannot be used with --model, which compares float32 and float64"
    if options.model and options.device == "cuda":
        return "--device cuda cannot be used with --model, which runs on the CPU"
    for name in ("size", "batch", "functional"):
        if getattr(options, name) and not options.model:
            return f"--{name} needs --model"
    return None


def find_write_problem(out: Path) -> str | None:
    """Return a message if the report's folder cannot be written to, before minutes are spent on the report."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return None
    except OSError as error:
        return f"--out {out} cannot be written to: {error.strerror}"


def print_error(message: object) -> int:
    """Print an error to stderr, and return exit code 2."""
    print(f"compare: error: {message}", file=sys.stderr)
    return 2


def parse_arguments(argv: list[str] | None, prog: str = PROG) -> argparse.Namespace:
    """Parse the command line; for wrong use argparse prints one line and exits with code 2."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("comparison", choices=(*COMPARISONS, "all"), help="what to compare; all runs the four in turn")
    add("--quick", action="store_true", help="fewer cases, seeds and sizes; all takes less than a minute")
    add("--cases", metavar="MODULE", help="compare your own compare.Cases: a module, or a .py file")
    add("--model", action="append", default=[], metavar="torchvision:NAME",
        help="compare a classification model of torchvision instead of cases; can be repeated")  # fmt: skip
    add("--size", type=positive_int, help="height and width of a model's images (default: 224, quick: 64)")
    add("--batch", type=positive_int, help="images in a model's batch (default: 2)")
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


if __name__ == "__main__":
    raise SystemExit(main())
