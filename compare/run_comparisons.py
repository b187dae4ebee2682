"""The comparisons that a command line asks for, one after another, and their report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from compare import equations
from compare.capabilities.section import section as format_capabilities
from compare.gradients.section import section as format_gradients
from compare.models import torchvision_models
from compare.models.comparison import compare_models
from compare.models.section import section as format_models
from compare.options import COMPARISONS, DTYPE_NAMES, find_option_conflict
from compare.printable import printable
from compare.report import as_text, write_report
from compare.report.headline import headline
from compare.run_cases import CaseRun, run_cases
from compare.run_info import collect_run_info
from compare.sections import Section
from compare.speed import cuda_network, cuda_subjects
from compare.speed.benchmark import compare_speed
from compare.speed.contenders import Network
from compare.speed.cuda_benchmark import compare_cuda_speed
from compare.speed.cuda_section import section as format_cuda_speed
from compare.speed.section import section as format_speed
from compare.speed.timer import CudaEventTimer
from compare.training.section import section as format_training
from compare.training.side_by_side import compare_training
from manualgrad import data
from manualgrad.files import find_write_problem


class UsageError(Exception):
    """The options cannot be used; the message says why."""


def run_comparisons(options: argparse.Namespace, command: list[str]) -> int:
    """Run the requested comparisons, print each section when it is complete, then write the report.

    Returns:
        The exit code: 2 if a case could not be compared, else 1 if there is an unexplained difference, else 0.

    Raises:
        UsageError: the options cannot be used; raised before anything is compared.
        CaseError: the cases cannot be loaded.
        data.DataError: the dataset cannot be loaded.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device; use --device cpu or auto")
    requested = COMPARISONS if options.comparison == "all" else (options.comparison,)
    if problem := find_option_conflict(options, requested):
        raise UsageError(problem)
    auto_device = "cuda" if torch.cuda.is_available() else "cpu"
    options.device = options.device.replace("auto", auto_device)
    if options.model and options.comparison == "speed" and options.device != "cuda":
        raise UsageError("--model is for speed on CUDA only; on the CPU use --model with gradients")
    case_run = CaseRun.from_options(options)
    model_names = torchvision_models.parse_model_names(options.model)
    if problem := find_write_problem(options.out):
        raise UsageError(f"--out {options.out} cannot be written to: {problem}")
    dataset = load_dataset(options) if "training" in requested else None
    make_section: dict[str, Callable[[Any], Section]] = {
        "gradients": lambda bar: (
            model_section(options, model_names, bar) if model_names else gradient_section(case_run, bar)
        ),
        "training": lambda bar: training_section(options, dataset, bar),
        "speed": lambda bar: speed_section(options, model_names, bar),
        "capabilities": lambda bar: capability_section(case_run, bar),
    }
    sections = []
    for name in requested:
        with tqdm(desc=name, leave=False, disable=None, dynamic_ncols=True) as bar:
            sections.append(make_section[name](bar))
        print(as_text(sections[-1]))
        for error in sections[-1].errors:
            print(f"compare: error: {error}", file=sys.stderr)
    if not (options.cases or options.model):
        sections.append(equations.section())
    run_info = collect_run_info(
        shlex.join(command),
        seeds=range(options.seeds),
        dataset=dataset and dataset.name,
        source=dataset and dataset.source,
        device=options.device,
    )
    written = write_report(sections, run_info, options.out)
    print(f"{headline(sections)}\n{printable(str(written[-1]))}")
    if any(section.errors for section in sections):
        return 2
    return 1 if any(section.failures for section in sections) else 0


def load_dataset(options: argparse.Namespace) -> data.Dataset:
    """Load the dataset; for --quick on MNIST without --data-dir, the bundled sample."""
    if options.quick and options.dataset == "mnist" and options.data_dir is None:
        return data.bundled_sample()
    return data.load(options.dataset, options.data_dir)


def gradient_section(case_run: CaseRun, bar: Any) -> Section:
    """Compare the gradients of cases."""
    return format_gradients(*run_cases("gradients", case_run, bar))


def model_section(options: argparse.Namespace, names: list[str], bar: Any) -> Section:
    """Compare the gradients of torchvision's models."""
    size = options.size or (64 if options.quick else 224)
    model_options = torchvision_models.ModelOptions(size, options.batch or 2, options.functional, options.device)
    return format_models(compare_models(names, model_options, range(options.seeds), bar))


def training_section(options: argparse.Namespace, dataset: data.Dataset, bar: Any) -> Section:
    """Train ours and native side by side."""
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


def speed_section(options: argparse.Namespace, model_names: list[str], bar: Any) -> Section:
    """Measure time and memory, on the CPU or on CUDA."""
    if options.device == "cuda":
        return cuda_speed_section(options, model_names, bar)
    quick = {
        "networks": (Network((16, 32), 64),), "curve": (1,), "rounds": 3, "compiled": False,
        "seconds_per_measurement": 0.01,
    } if options.quick else {}  # fmt: skip
    return format_speed(compare_speed(device=options.device, progress=bar, **quick))


def cuda_speed_section(options: argparse.Namespace, model_names: list[str], bar: Any) -> Section:
    """Operations, ``DocumentCNN`` and the models of ``--model``, or resnet18."""
    size, batch = options.size or (64 if options.quick else 224), options.batch or 32
    model_options = torchvision_models.ModelOptions(size, batch, options.functional, "cuda")
    subjects = [cuda_subjects.operation_subject(name, "cuda") for name in cuda_subjects.OPERATIONS]
    subjects += [cuda_network.network_subject(batch, "cuda") for batch in cuda_network.BATCHES]
    subjects += [cuda_subjects.model_subject(name, model_options) for name in model_names or ["resnet18"]]
    quick = {"rounds": 3, "seconds": 0.02} if options.quick else {}
    return format_cuda_speed(compare_cuda_speed(subjects, CudaEventTimer(), progress=bar, **quick))


def capability_section(case_run: CaseRun, bar: Any) -> Section:
    """Try other uses of the cases, such as ``vmap``."""
    results, failures = run_cases("capabilities", case_run, bar)
    rows = [row for result in results for row in result]
    # A user's Function may lack capabilities: the report lists them and does not fail. Ours must have native's.
    held = () if case_run.file else None
    return format_capabilities(rows, device=case_run.device, held=held, failures=failures)
