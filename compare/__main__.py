"""Hand-written gradients beside PyTorch's own: a report in the terminal, and as Markdown, JSON and one HTML page.

python -m compare all --data-dir DIR           # gradients, training, speed, capabilities
python -m compare all --quick                  # a first look, in less than a minute
python -m compare gradients --cases my_file.py # anybody's Function: see docs/write-your-own.md
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

from compare import capabilities, equations_section, gradients_section
from compare.capabilities import section as capabilities_section
from compare.case import Case, CaseError
from compare.cases import every_case, networks, operations
from compare.gradients import compare
from compare.load_cases import load_cases
from compare.models import networks as model_networks
from compare.models import section as models_section
from compare.models.result import compare_models
from compare.report import as_text, write
from compare.report.headline import headline
from compare.sections import Section
from compare.speed import section as speed_section
from compare.speed.measuring import compare_speed
from compare.speed.networks import Network
from compare.stamp import make_stamp
from compare.training import section as training_section
from compare.training.side_by_side import compare_training
from compare.variants import DTYPES
from manualgrad import data

NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
PARTS = ("gradients", "training", "speed", "capabilities")


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    try:
        return run(options, sys.argv[1:] if argv is None else argv)
    except (CaseError, data.DataError) as error:
        return fail(error)
    except KeyboardInterrupt:
        print("\ncompare: interrupted before the report was complete", file=sys.stderr)
        return 130


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """The parts that were asked for, each told when it is there, then the report; 1 if anything is unexplained."""
    if options.device == "cuda" and not torch.cuda.is_available():
        return fail("--device cuda: PyTorch finds no CUDA device here; use --device cpu, or auto")
    asked = PARTS if options.part == "all" else (options.part,)
    if problem := misplaced(options, asked):
        return fail(problem)
    best = "cuda" if torch.cuda.is_available() and not options.model else "cpu"
    options.device = options.device.replace("auto", best)
    cases = load_cases(options.cases) if options.cases else None
    names = model_networks.chosen(options.model)
    if problem := unwritable(options.out):
        return fail(problem)
    dataset = load(options) if "training" in asked else None
    makers: dict[str, Callable[[Any], Section]] = {
        "gradients": lambda bar: whole_models(options, names, bar) if names else gradients(options, cases, bar),
        "training": lambda bar: training(options, dataset, bar),
        "speed": lambda bar: speed(options, bar),
        "capabilities": lambda bar: capability_matrix(options, cases, bar),
    }
    sections = []
    for part in asked:
        with tqdm(desc=part, leave=False, disable=None, dynamic_ncols=True) as bar:
            sections.append(makers[part](bar))
        print(as_text(sections[-1]))
    if not (options.cases or options.model):
        sections.append(equations_section.section())
    stamp = make_stamp(
        shlex.join(["python", "-m", "compare", *argv]),
        seeds=range(options.seeds),
        dataset=dataset and dataset.name,
        source=dataset and dataset.source,
        device=options.device,
    )
    written = write(sections, stamp, options.out)
    print(f"{headline(sections)}\n{written[-1]}")
    return 1 if any(section.failures for section in sections) else 0


def load(options: argparse.Namespace) -> data.Dataset:
    """A first look at MNIST is content with the bundled sample, unless a folder is named."""
    if options.quick and options.dataset == "mnist" and options.data_dir is None:
        return data.bundled_sample()
    return data.load(options.dataset, options.data_dir or "data")


def gradients(options: argparse.Namespace, cases: list[Case] | None, bar: Any) -> Section:
    chosen = cases or (operations() + networks()[:1] if options.quick else every_case())
    dtypes = [NAMES[name] for name in options.dtype] if options.dtype else DTYPES
    bar.total = len(chosen)
    comparisons = []
    for case in chosen:
        bar.set_description_str(f"gradients: {case.name}")
        comparisons.append(compare(case, dtypes=dtypes, device=options.device, progress=bar))
    return gradients_section.section(comparisons)


def whole_models(options: argparse.Namespace, names: list[str], bar: Any) -> Section:
    size = options.size or (64 if options.quick else 224)
    shape = model_networks.Shape(size, options.batch or 2, options.functional)
    return models_section.section(compare_models(names, shape, range(options.seeds), bar))


def training(options: argparse.Namespace, dataset: data.Dataset, bar: Any) -> Section:
    more = {"epochs": options.epochs} if options.epochs else {}
    if options.dtype and len(options.dtype) == 1:
        more["dtype"] = NAMES[options.dtype[0]]
    limit = 600 if options.quick else 40_000
    if options.quick:
        more.setdefault("epochs", 1)
    seeds = range(options.seeds)
    return training_section.section(
        compare_training(dataset, seeds=seeds, limit=limit, device=options.device, progress=bar, **more)
    )


def speed(options: argparse.Namespace, bar: Any) -> Section:
    quick = {
        "networks": (Network((16, 32), 64),), "curve": (1,), "rounds": 3, "compiled": False,
        "seconds_per_measurement": 0.01,
    } if options.quick else {}  # fmt: skip
    return speed_section.section(compare_speed(device=options.device, progress=bar, **quick))


def capability_matrix(options: argparse.Namespace, cases: list[Case] | None, bar: Any) -> Section:
    chosen = cases or [*operations(), networks()[0]]
    only = capabilities.QUICK if options.quick else tuple(capabilities.CAPABILITIES)
    rows = capabilities.compare_capabilities(chosen, device=options.device, only=only, progress=bar)
    # What anybody's Function cannot do is told, and no fault; ours must do what native does.
    return capabilities_section.section(rows, device=options.device, held=() if cases else None)


def misplaced(options: argparse.Namespace, asked: tuple[str, ...]) -> str | None:
    """What was asked for together and does not go together."""
    if options.cases and not {"gradients", "capabilities"} >= set(asked):
        return f"--cases goes with gradients and capabilities, not with {options.part}"
    if options.model and options.part != "gradients":
        return f"--model goes with gradients, not with {options.part}"
    if options.model and options.cases:
        return "--model and --cases are two comparisons; ask for one at a time"
    if options.model and options.dtype:
        return "--dtype goes with cases; --model measures float32 and float64"
    if options.model and options.device == "cuda":
        return "--model measures on the CPU; leave out --device cuda"
    for name in ("size", "batch", "functional"):
        if getattr(options, name) and not options.model:
            return f"--{name} goes with --model"
    return None


def unwritable(out: Path) -> str | None:
    """What is wrong with the folder for the report, before minutes are spent on it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return None
    except OSError as error:
        return f"--out {out} cannot be written to: {error.strerror}"


def fail(message: object) -> int:
    """Says what is wrong with the command; exit code 2."""
    print(f"compare: error: {message}", file=sys.stderr)
    return 2


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse answers a mistake with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=(*PARTS, "all"))
    add("--quick", action="store_true", help="fewer cases, seeds and sizes: less than a minute for all")
    add("--cases", metavar="MODULE", help="your own compare.Cases: a module, or a .py file")
    add("--model", action="append", default=[], metavar="torchvision:NAME",
        help="a classification model of torchvision's in place of cases; may be given several times")  # fmt: skip
    add("--size", type=positive, help="rows and columns of a model's images (default: 224, quick: 64)")
    add("--batch", type=positive, help="images in a model's batch (default: 2)")
    add("--functional", action="store_true", help="replace functional calls in a model's forward too")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", nargs="+", choices=NAMES, metavar="DTYPE", help=f"of {', '.join(NAMES)} (default: all)")
    add(
        "--seeds",
        type=positive,
        help="training runs of each network, or batches of a model (default: 3, of a model 5, quick: 2)",
    )
    add("--epochs", type=positive, help="of training (default: 2, quick: 1)")
    add("--dataset", choices=data.NAMES, default="mnist")
    add("--data-dir", metavar="DIR",
        help="where the files are, or are downloaded to (default: data; with --quick, the sample)")  # fmt: skip
    add(
        "--out", type=Path, default=Path("runs/compare"), metavar="DIR", help="for the report (default: runs/compare)"
    )
    options = parser.parse_args(argv)
    options.seeds = options.seeds or (2 if options.quick else 5 if options.model else 3)
    return options


def positive(text: str) -> int:
    """A whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
