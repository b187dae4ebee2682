"""Search for the four files of a dataset in a folder, under each name and in each place that people keep them."""

from __future__ import annotations

import os
from pathlib import Path

from manualgrad.data.dataset import DataError
from manualgrad.data.sources import Source

MAX_LISTED = 10  # entries of a folder that a message names


def find_files(source: Source, data_dir: Path) -> list[Path] | None:
    """Return the paths of training images, training labels, test images and test labels; None if there is none.

    The files are in torchvision's folder below `data_dir`, MNIST/raw or raw, or in `data_dir` itself. A file has
    torchvision's name, such as train-images-idx3-ubyte, or Kaggle's, train-images.idx3-ubyte. It may be packed by
    gzip, with ".gz" at the end of its name; the unpacked file is used if both exist.

    Raises:
        DataError: some of the four are missing in the first folder that has one, or `data_dir` is a file.
        OSError: a folder cannot be read.
    """
    if data_dir.is_file():
        raise DataError(f"{data_dir}: expected a folder for the data, got a file")
    for folder in (source.raw_folder(data_dir), data_dir / "raw", data_dir):
        names = _list(folder)
        paths = [_find(folder, name, names) for name in source.files]
        missing = [str(folder / name) for name, path in zip(source.files, paths, strict=True) if path is None]
        if not missing:
            return [path for path in paths if path is not None]
        if len(missing) < len(source.files):
            raise DataError(f"{folder} has only a part of {source.reader_name}; missing: {', '.join(missing)}")
    return None


def describe_folder(folder: Path) -> str:
    """Describe what is in a folder, for a message: "it has: a.csv, b.csv"."""
    if not folder.exists():
        return "it does not exist"
    names = sorted(_list(folder))
    more = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
    return f"it has: {', '.join(names[:MAX_LISTED])}{more}" if names else "it is empty"


def _find(folder: Path, name: str, names: set[str]) -> Path | None:
    """Return the path of one file under its first name that is a file, or else that exists."""
    kaggle_name = name.replace("-idx", ".idx")
    present = [folder / n for n in (name, kaggle_name, f"{name}.gz", f"{kaggle_name}.gz") if n in names]
    # Kaggle has folders with the names of the files beside the files.
    return next((path for path in present if path.is_file()), present[0] if present else None)


def _list(folder: Path) -> set[str]:
    # os.listdir raises for an unreadable folder, for which Path.exists would return False.
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
