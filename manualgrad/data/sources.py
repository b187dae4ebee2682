"""The datasets: which files each has, how they are checked, and how torchvision reads them."""

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

# torchvision publishes the sums of the archives alone; these are of what comes out of them.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass(frozen=True)
class Source:
    """One dataset.

    reader: torchvision's class, called with `options`. files: training images, training labels, test images,
    test labels, by the names under which torchvision reads them. archives: the md5 of each archive that
    torchvision downloads. md5: of the files, where known. transposed: are the images stored column by column?
    """

    reader: type[datasets.MNIST]
    files: tuple[str, str, str, str]
    classes: tuple[str, ...]
    archives: Mapping[str, str]
    md5: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    transposed: bool = False

    def raw_folder(self, data_dir: Path) -> Path:
        """Where torchvision looks for the files, given its `root`."""
        return data_dir / self.reader.__name__ / "raw"

    def paths(self, data_dir: Path) -> list[Path]:
        """The four files, whether they are there or not."""
        return [self.raw_folder(data_dir) / name for name in self.files]

    def check(self, data_dir: Path) -> None:
        """Raise DataError at the first file that is not what it should be.

        Structure always. Beyond it: the md5 of the file where one is known (MNIST); else, where the archive
        lies beside the file, the md5 of the archive and that it unpacks to this file. Without either, as
        always for EMNIST, a change that keeps the structure goes unnoticed.
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
            raise DataError(f"{cache}: torchvision would read this old cache instead of the checked files; remove it")

    def open(self, data_dir: Path, *, train: bool, download: bool = False) -> datasets.MNIST:
        """torchvision's own dataset."""
        return self.reader(str(data_dir), train=train, download=download, **self.options)

    def read(self, data_dir: Path, *, train: bool) -> Split:
        """One split, images upright, labels the class alone. For files that `check` has passed."""
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
