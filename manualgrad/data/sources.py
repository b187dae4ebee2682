"""The datasets: their files, their checks, and the torchvision classes that read them."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchvision import datasets

from manualgrad.data.checksums import check_md5, check_unpacks_to
from manualgrad.data.dataset import DataError, Split
from manualgrad.data.idx import check_pair

# MD5s of the unpacked files. torchvision publishes only those of the archives.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass(frozen=True)
class Source:
    """Files of one dataset and the torchvision class that reads them.

    Attributes:
        reader: torchvision's class, called with `options`.
        files: names of the files of training images, training labels, test images and test labels.
        classes: name of each class.
        archives: MD5 of each archive that torchvision downloads, by name.
        md5: MD5 of each file, by name, if known.
        options: further arguments of `reader`.
        transposed: True if the images are stored column by column.
    """

    reader: type[datasets.MNIST]
    files: tuple[str, str, str, str]
    classes: tuple[str, ...]
    archives: Mapping[str, str]
    md5: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    transposed: bool = False

    def raw_folder(self, data_dir: Path) -> Path:
        """Folder in which torchvision expects the files, for its argument `root`."""
        return data_dir / self.reader.__name__ / "raw"

    def paths(self, data_dir: Path) -> list[Path]:
        """Paths of the four files. They need not exist."""
        return [self.raw_folder(data_dir) / name for name in self.files]

    def check(self, data_dir: Path) -> None:
        """Raise DataError at the first file that fails a check.

        The structure of each file is always checked. Its content is compared with the file's MD5 if one is known
        (MNIST). Otherwise, if the archive is in the same folder, the archive is compared with its MD5, and the file
        with the archive. Without either, as always for EMNIST, a change that keeps the structure is not detected.
        """
        train_images, train_labels, test_images, test_labels = self.paths(data_dir)
        check_pair(train_images, train_labels, len(self.classes))
        check_pair(test_images, test_labels, len(self.classes))
        for path in self.paths(data_dir):
            archive = path.with_name(path.name + ".gz")
            if path.name in self.md5:
                check_md5(path, self.md5[path.name])
            elif archive.name in self.archives and archive.is_file():
                check_md5(archive, self.archives[archive.name])
                check_unpacks_to(archive, path)

        for cache in sorted(self.raw_folder(data_dir).with_name("processed").glob("*.pt")):
            raise DataError(
                f"{cache}: remove this old cache, which torchvision would read in place of the checked files"
            )

    def open(self, data_dir: Path, *, train: bool, download: bool = False) -> datasets.MNIST:
        """Open one split as torchvision's dataset."""
        return self.reader(str(data_dir), train=train, download=download, **self.options)

    def read(self, data_dir: Path, *, train: bool) -> Split:
        """Read one split, with upright images and class indices as labels. Call :meth:`check` before."""
        raw = self.open(data_dir, train=train)
        images = raw.data.transpose(1, 2) if self.transposed else raw.data
        labels = raw.targets[:, 0] if raw.targets.ndim == 2 else raw.targets
        return Split(images.unsqueeze(1).contiguous(), labels.contiguous())


def _files(train: str, test: str, labels: str = "labels-idx1-ubyte") -> tuple[str, str, str, str]:
    images = "images-idx3-ubyte"
    return f"{train}-{images}", f"{train}-{labels}", f"{test}-{images}", f"{test}-{labels}"


def _like_mnist(reader: type[datasets.MNIST], md5: Mapping[str, str]) -> Source:
    return Source(reader, _files("train", "t10k"), tuple(reader.classes), dict(reader.resources), md5)


SOURCES = {
    "mnist": _like_mnist(datasets.MNIST, MNIST_MD5),
    "fashion-mnist": _like_mnist(datasets.FashionMNIST, {}),
    "kmnist": _like_mnist(datasets.KMNIST, {}),
    "qmnist": Source(
        datasets.QMNIST,
        _files("qmnist-train", "qmnist-test", "labels-idx2-int"),
        tuple(datasets.QMNIST.classes),
        {os.path.basename(url): md5 for split in ("train", "test") for url, md5 in datasets.QMNIST.resources[split]},
    ),
    "emnist": Source(
        datasets.EMNIST,
        _files("emnist-balanced-train", "emnist-balanced-test"),
        tuple(datasets.EMNIST.classes_split_dict["balanced"]),
        {os.path.basename(datasets.EMNIST.url): datasets.EMNIST.md5},
        options={"split": "balanced"},
        transposed=True,
    ),
}
NAMES = tuple(SOURCES)
