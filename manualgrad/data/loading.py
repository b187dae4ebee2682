"""Which images to use: files that are there, a download, or the bundled sample, in this order."""

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
    """The dataset `name`, one of NAMES, as uint8 images and int64 labels.

    1. Files under `data_dir` as torchvision keeps them, e.g. MNIST/raw/train-images-idx3-ubyte. If some of
       the four are there and others not, that is an error, never a reason to use something else.
    2. Otherwise torchvision downloads them into `data_dir`, or unpacks archives that lie there. A silent
       server is given up after 5 seconds, and a download that fails leaves nothing behind.
    3. Where the network fails: for "mnist" a sample that comes with the package (`Dataset.is_sample`, named
       "mnist-sample"), for the others an error.

    Every file is checked to the byte before it is used. MNIST's md5 sums are known; the others have theirs
    only while the archives lie beside the files (a download leaves them there; EMNIST's are never kept), and
    without them a change that keeps the structure goes unnoticed.

    announce: called with a line of text for a download and for the sample; nothing else is printed but
    torchvision's progress bar. Raises DataError for an unknown name and for files that are missing, damaged,
    unreadable or not to be had.
    """
    if name not in SOURCES:
        raise DataError(f"there is no dataset {name!r}; known are {', '.join(NAMES)}")
    data_dir = Path(data_dir).expanduser()  # as torchvision does
    try:
        return _load(name, data_dir, announce)
    except OSError as error:
        raise DataError(f"{error.filename or data_dir} cannot be used: {error.strerror or error}") from error


def bundled_sample() -> Dataset:
    """The sample of MNIST that comes with the package, named "mnist-sample". DataError where it was altered."""
    return _dataset("mnist-sample", DESCRIPTION, True, SOURCES["mnist"], *load_sample())


def _load(name: str, data_dir: Path, announce: Callable[[str], object]) -> Dataset:
    source = SOURCES[name]
    if not _present(source, data_dir):
        raw = source.raw_folder(data_dir)
        archives = archives_present(source, data_dir)
        unpack = len(archives) == len(source.archives)
        announce(f"{name}: {'unpacking the archives in' if unpack else 'not there yet, downloading it to'} {raw}")
        try:
            fetch(source, data_dir)
        except DownloadError as reason:
            advice = f"put {', '.join(source.files)} into {raw}"
            if name != "mnist" or archives:
                raise DataError(
                    f"{name} could not be downloaded ({reason}).\nWithout a network: {advice}"
                ) from reason
            announce(f"mnist could not be downloaded ({reason}). Using {DESCRIPTION}.")
            announce(f"For the whole set: run this again with a network, or {advice}.")
            return bundled_sample()
        origin = "unpacked in" if unpack else "downloaded to"
    else:
        origin = "files under"
    source.check(data_dir)
    train, test = source.read(data_dir, train=True), source.read(data_dir, train=False)
    return _dataset(name, f"{origin} {data_dir}", False, source, train, test)


def _present(source: Source, data_dir: Path) -> bool:
    """Whether the four files are there: all or none, else DataError."""
    if data_dir.is_file():
        raise DataError(f"{data_dir} is a file; expected a folder for the data")
    raw = source.raw_folder(data_dir)
    # Listing raises where a folder cannot be read; asking whether a file exists would just say no.
    try:
        there = os.listdir(raw)
    except FileNotFoundError:
        there = []
    missing = [str(raw / name) for name in source.files if name not in there]
    if 0 < len(missing) < len(source.files):
        raise DataError(f"{raw} holds only a part of {source.reader.__name__}; missing: {', '.join(missing)}")
    return not missing


def _dataset(name: str, origin: str, is_sample: bool, source: Source, train: Split, test: Split) -> Dataset:
    mean, std = mean_and_std(train.images)
    if std == 0:
        raise DataError(f"{name} ({origin}): all pixels of all training images are the same")
    return Dataset(name, origin, is_sample, train, test, source.classes, mean, std)
