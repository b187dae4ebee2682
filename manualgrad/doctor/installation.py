"""Facts about the installation: versions, kernels, their cache, and data."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import manualgrad
from manualgrad import extras, kernels
from manualgrad.cpu import jit
from manualgrad.data import NAMES, DataError
from manualgrad.data.find_files import find_files
from manualgrad.data.sources import SOURCES

REQUIRED = ("torch", "torchvision", "numpy", "llvmlite", "tqdm")


def versions() -> list[tuple[str, str]]:
    """Versions of Python, of this package and of what it needs, with their locations."""
    lines = [
        ("manualgrad", f"{manualgrad.__version__}, {Path(manualgrad.__file__).parent}"),
        ("python", f"{platform.python_version()}, {sys.executable}"),
        *((name, _version(name)) for name in REQUIRED),
    ]
    problem = extras.find_import_problem(extras.REPORT)
    lines.append(("report", problem or "plots, tables and HTML: " + ", ".join(map(_named_version, extras.REPORT))))
    return lines


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _named_version(module: str) -> str:
    package = module.replace("markdown_it", "markdown-it-py")
    return f"{package} {_version(package)}"


def kernel_facts() -> list[tuple[str, str]]:
    """The kernels in use, the reasons for not using faster ones, and the cache of their object code."""
    try:
        available = kernels.available()
    except ValueError as error:  # MANUALGRAD_KERNELS asks for kernels that this machine lacks
        return [("kernels", f"none: {error}")]
    lines = [("kernels", str(available)), ("kernels", f"on CUDA: {available.cuda}")]
    if available.instructions is None:
        return [*lines, ("cache", "not used, there are no kernels")]
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    for name, required in jit.REQUIRED_FEATURES.items():
        if missing := [feature for feature in required if not features.get(feature)]:
            lines.append(("", f"not {name}: the processor lacks {', '.join(missing)}"))
    return [*lines, ("cache", _cache_state(available.cache_problem))]


def _cache_state(problem: str) -> str:
    folder = kernels.cache_folder()
    if problem or folder is None:
        return f"not used, so that each process compiles the kernels: {problem}"
    sizes = [path.stat().st_size for path in folder.glob("*.o")]
    return f"{folder} has {len(sizes)} files, {sum(sizes) / 2**20:.2f} MiB"


def data_facts(data_dir: str) -> list[tuple[str, str]]:
    """The datasets in the folder ``data_dir``, each with the result of the checks that loading makes."""
    folder = Path(data_dir).expanduser()
    lines = []
    read: list[list[Path]] = []  # some datasets have files of the same names
    for name in NAMES:
        source = SOURCES[name]
        try:
            paths = find_files(source, folder)
            if paths is None or paths in read:
                continue
            source.read(paths)
        except (DataError, OSError) as error:
            lines.append(("data", f"{name} is not usable: {error}"))
            continue
        read.append(paths)
        lines.append(("data", f"{name}, complete, in {paths[0].parent}"))
    if not lines:
        lines.append(("data", f"none in {folder}: training downloads MNIST, or uses the sample in the package"))
    return lines
