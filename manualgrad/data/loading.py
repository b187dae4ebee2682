"""Loading of a dataset from existing files, a download, or the bundled sample, in this order."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from manualgrad.data.dataset import DataError, Dataset, Split, mean_and_std
from manualgrad.data.download import DownloadError, archives_present, fetch
from manualgrad.data.find_files import describe_folder, find_files
from manualgrad.data.sample import CLASSES, DESCRIPTION, load_sample
from manualgrad.data.sources import SOURCES, Source

NAMES = ("mnist", "fashion-mnist", "kmnist", "qmnist", "emnist")

DEFAULT_FOLDER = "data"


def load(
    name: str = "mnist",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    announce: Callable[[str], object] = print,
) -> Dataset:
    """Load a dataset as uint8 images and int64 labels.

    1. Use the files in the folder `data_dir`: in torchvision's layout, such as MNIST/raw/train-images-idx3-ubyte, or
       in the folder itself, also under Kaggle's names, such as train-images.idx3-ubyte, and also packed (.gz). It is
       an error if only some of the four files exist.
    2. Otherwise torchvision downloads them to `data_dir`. A server that does not answer for 5 seconds counts as a
       failure of the network. A failed download leaves no files.
    3. If the network fails, it is an error, except for "mnist" without a `data_dir`: then return the bundled sample,
       named "mnist-sample", whose `Dataset.is_sample` is True.

    Each file is checked before it is used: its structure always, and its content by MD5 for MNIST. For the other
    datasets MD5s are known for the archives only, which torchvision checks when it downloads them. A file is compared
    with its archive if that is in the same folder. Without an archive a change that keeps the structure is not
    detected.

    Args:
        name: one of NAMES.
        data_dir: folder for the files; None for the folder "data", or the sample.
        announce: called with a line of text before a download and for the sample. Apart from that only torchvision
            prints: its progress bar.

    Raises:
        DataError: unknown name, or files that are missing, damaged, unreadable, or cannot be downloaded.
    """
    if name not in NAMES:
        raise DataError(f"unknown dataset {name!r}: expected one of {', '.join(NAMES)}")
    folder = Path(DEFAULT_FOLDER if data_dir is None else data_dir).expanduser()  # torchvision expands ~ as well
    try:
        return _load(name, SOURCES[name], folder, announce, may_use_sample=data_dir is None)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be used: {error.strerror or error}") from error


def bundled_sample() -> Dataset:
    """Load the sample of MNIST in the package, named "mnist-sample". Raises DataError if its file was altered."""
    return _make_dataset("mnist-sample", DESCRIPTION, True, CLASSES, *load_sample())


def _load(
    name: str, source: Source, folder: Path, announce: Callable[[str], object], *, may_use_sample: bool
) -> Dataset:
    origin = "files under"
    paths = find_files(source, folder)
    if paths is None:
        raw, archives = source.raw_folder(folder), archives_present(source, folder)
        origin = "unpacked in" if archives else "downloaded to"
        announce(f"{name}: {'unpacking the archives in' if archives else 'no files, downloading them to'} {raw}")
        try:
            fetch(source, folder)
        except DownloadError as reason:
            advice = f"copy {', '.join(source.files)} to {raw}"
            if name != "mnist" or not may_use_sample:
                raise DataError(
                    f"{name} is not in {folder} ({describe_folder(folder)}) and could not be downloaded ({reason}).\n"
                    f"Without a network: {advice}"
                ) from reason
            announce(f"mnist could not be downloaded ({reason}). Using {DESCRIPTION}.")
            announce(f"For the whole dataset: run this again with a network, or {advice}.")
            return bundled_sample()
        paths = source.paths(folder)
    return _make_dataset(name, f"{origin} {folder}", False, source.classes, *source.read(paths))


def _make_dataset(
    name: str, origin: str, is_sample: bool, classes: tuple[str, ...], train: Split, test: Split
) -> Dataset:
    mean, std = mean_and_std(train.images)
    if std == 0:
        raise DataError(f"{name} ({origin}): all pixels of all training images have the same value")
    return Dataset(name, origin, is_sample, train, test, classes, mean, std)
