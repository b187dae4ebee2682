"""Loading of a dataset from existing files, a download, or the bundled sample, in this order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from manualgrad.data.dataset import DataError, Dataset, Split, mean_and_std
from manualgrad.data.download import DownloadError, archives_present, fetch
from manualgrad.data.sample import DESCRIPTION, load_sample
from manualgrad.data.sources import NAMES, SOURCES, Source


def load(
    name: str = "mnist",
    data_dir: str | os.PathLike[str] = "data",
    *,
    announce: Callable[[str], object] = print,
) -> Dataset:
    """Load a dataset as uint8 images and int64 labels.

    1. Use the files under `data_dir` in torchvision's layout, such as MNIST/raw/train-images-idx3-ubyte. It is an
       error if only some of the four files exist.
    2. Otherwise torchvision downloads them to `data_dir`, or unpacks archives that are there. A server that does not
       answer for 5 seconds counts as a failure of the network. A failed download leaves no files.
    3. If the network fails, return the bundled sample for "mnist" (named "mnist-sample", `Dataset.is_sample` is
       True), and raise an error for the other names.

    Each file is checked before it is used: its structure always, and its content by MD5 if one is known. The MD5s of
    MNIST's files are known. Those of the other datasets are known for the archives only, which a download keeps next
    to the files, except for EMNIST. Without an archive a change that keeps the structure is not detected.

    Args:
        name: one of NAMES.
        data_dir: folder for the files.
        announce: called with a line of text before a download and for the sample. Apart from that only torchvision
            prints: its progress bar.

    Raises:
        DataError: unknown name, or files that are missing, damaged, unreadable, or cannot be downloaded.
    """
    if name not in SOURCES:
        raise DataError(f"unknown dataset {name!r}: expected one of {', '.join(NAMES)}")
    data_dir = Path(data_dir).expanduser()  # torchvision expands ~ as well
    try:
        return _load(name, data_dir, announce)
    except OSError as error:
        raise DataError(f"{error.filename or data_dir} cannot be used: {error.strerror or error}") from error


def bundled_sample() -> Dataset:
    """Load the sample of MNIST in the package, named "mnist-sample". Raises DataError if its file was altered."""
    return _make_dataset("mnist-sample", DESCRIPTION, True, SOURCES["mnist"], *load_sample())


def _load(name: str, data_dir: Path, announce: Callable[[str], object]) -> Dataset:
    source = SOURCES[name]
    if not _has_files(source, data_dir):
        raw = source.raw_folder(data_dir)
        archives = archives_present(source, data_dir)
        unpack = len(archives) == len(source.archives)
        announce(f"{name}: {'unpacking the archives in' if unpack else 'no files, downloading them to'} {raw}")
        try:
            fetch(source, data_dir)
        except DownloadError as reason:
            advice = f"copy {', '.join(source.files)} to {raw}"
            if name != "mnist" or archives:
                raise DataError(
                    f"{name} could not be downloaded ({reason}).\nWithout a network: {advice}"
                ) from reason
            announce(f"mnist could not be downloaded ({reason}). Using {DESCRIPTION}.")
            announce(f"For the whole dataset: run this again with a network, or {advice}.")
            return bundled_sample()
        origin = "unpacked in" if unpack else "downloaded to"
    else:
        origin = "files under"
    source.check(data_dir)
    train, test = source.read(data_dir, train=True), source.read(data_dir, train=False)
    return _make_dataset(name, f"{origin} {data_dir}", False, source, train, test)


def _has_files(source: Source, data_dir: Path) -> bool:
    """Return True if all four files exist, False if none does. Raises DataError if some are missing."""
    if data_dir.is_file():
        raise DataError(f"{data_dir}: expected a folder for the data, got a file")
    raw = source.raw_folder(data_dir)
    # os.listdir raises for an unreadable folder, for which Path.exists would return False.
    try:
        names = os.listdir(raw)
    except FileNotFoundError:
        names = []
    missing = [str(raw / name) for name in source.files if name not in names]
    if 0 < len(missing) < len(source.files):
        raise DataError(f"{raw} has only a part of {source.reader.__name__}; missing: {', '.join(missing)}")
    return not missing


def _make_dataset(name: str, origin: str, is_sample: bool, source: Source, train: Split, test: Split) -> Dataset:
    mean, std = mean_and_std(train.images)
    if std == 0:
        raise DataError(f"{name} ({origin}): all pixels of all training images have the same value")
    return Dataset(name, origin, is_sample, train, test, source.classes, mean, std)
