"""The datasets: their files, how these are read, and the torchvision classes that download them.

torchvision is imported only where it is needed: its import takes longer than a short training run.
"""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from manualgrad.data.checksums import check_unpacks_to
from manualgrad.data.dataset import DataError, Split
from manualgrad.data.idx import UBYTE, magic, read_images, read_labels
from manualgrad.data.sample import CLASSES

if TYPE_CHECKING:
    from torchvision import datasets

# MD5s of the unpacked files. torchvision publishes only those of the archives.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def _published_archives(reader: type[datasets.MNIST]) -> dict[str, str]:
    return dict(reader.resources)


def _qmnist_archives(reader: Any) -> dict[str, str]:
    return {os.path.basename(url): md5 for split in ("train", "test") for url, md5 in reader.resources[split]}


def _emnist_archive(reader: Any) -> dict[str, str]:
    return {os.path.basename(reader.url): reader.md5}


@dataclass(frozen=True)
class Source:
    """Files of one dataset and the torchvision class that downloads them.

    Attributes:
        reader_name: name of torchvision's class, which is called with `options`.
        files: names of the files of training images, training labels, test images and test labels.
        classes: name of each class.
        md5: MD5 of each file, by name, if known.
        options: further arguments of `reader`.
        transposed: True if the images are stored column by column.
        list_archives: returns the MD5 of each archive that torchvision's class downloads, by name.
    """

    reader_name: str
    files: tuple[str, str, str, str]
    classes: tuple[str, ...]
    md5: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    transposed: bool = False
    list_archives: Callable[[type[datasets.MNIST]], dict[str, str]] = _published_archives

    @property
    def reader(self) -> type[datasets.MNIST]:
        """torchvision's class."""
        from torchvision import datasets

        reader: type[datasets.MNIST] = getattr(datasets, self.reader_name)
        return reader

    @property
    def archives(self) -> dict[str, str]:
        """MD5 of each archive that torchvision downloads, by name."""
        return self.list_archives(self.reader)

    def raw_folder(self, data_dir: Path) -> Path:
        """Folder in which torchvision expects the files, for its argument `root`."""
        return data_dir / self.reader_name / "raw"

    def paths(self, data_dir: Path) -> list[Path]:
        """Paths of the four files. They need not exist."""
        return [self.raw_folder(data_dir) / name for name in self.files]

    def download(self, data_dir: Path) -> None:
        """Download the files by torchvision, and unpack them."""
        for train in (True, False):
            self.reader(str(data_dir), train=train, download=True, **self.options)

    def read(self, paths: Sequence[Path]) -> tuple[Split, Split]:
        """Read the training and the test split from the four files, with upright images and class indices as labels.

        The structure of each file is checked. Its content is compared with the MD5 if it is known (MNIST), and
        otherwise with the file's own archive if that is in the same folder. Without either, as always for EMNIST, a
        change that keeps the structure is not detected.

        Raises:
            DataError: a file is damaged.
            OSError: a file cannot be read.
        """
        for name, path in zip(self.files, paths, strict=True):
            archive = path.with_name(path.name + ".gz")
            if name not in self.md5 and archive.is_file():
                check_unpacks_to(archive, path)
        train_images, train_labels, test_images, test_labels = range(4)
        train = self._read_split(paths, train_images, train_labels)
        if self.files == MNIST_FILES and not self.md5:
            self._refuse_mnist(train.labels, paths[train_labels])
        return train, self._read_split(paths, test_images, test_labels)

    def _refuse_mnist(self, labels: Tensor, path: Path) -> None:
        """Raise DataError for the labels of MNIST, whose files have the same names as those of this dataset."""
        content = magic(UBYTE, 1) + len(labels).to_bytes(4, "big") + labels.byte().numpy().tobytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == MNIST_MD5["train-labels-idx1-ubyte"]:
            raise DataError(f"{path} is a file of MNIST: expected one of {self.reader_name}")

    def _read_split(self, paths: Sequence[Path], images_index: int, labels_index: int) -> Split:
        images_name, labels_name = self.files[images_index], self.files[labels_index]
        images = read_images(paths[images_index], self.md5.get(images_name))
        labels = read_labels(
            paths[labels_index], len(images), len(self.classes),
            qmnist=labels_name.endswith("-idx2-int"), md5=self.md5.get(labels_name),
        )  # fmt: skip
        if self.transposed:
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels))


def _files(train: str, test: str, labels: str = "labels-idx1-ubyte") -> tuple[str, str, str, str]:
    images = "images-idx3-ubyte"
    return f"{train}-{images}", f"{train}-{labels}", f"{test}-{images}", f"{test}-{labels}"


MNIST_FILES = _files("train", "t10k")


CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SYLLABLES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
DIGITS_AND_LETTERS = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")

SOURCES = {
    "mnist": Source("MNIST", MNIST_FILES, CLASSES, MNIST_MD5),
    "fashion-mnist": Source("FashionMNIST", MNIST_FILES, CLOTHES),
    "kmnist": Source("KMNIST", MNIST_FILES, SYLLABLES),
    "qmnist": Source(
        "QMNIST",
        _files("qmnist-train", "qmnist-test", "labels-idx2-int"),
        CLASSES,
        list_archives=_qmnist_archives,
    ),
    "emnist": Source(
        "EMNIST",
        _files("emnist-balanced-train", "emnist-balanced-test"),
        DIGITS_AND_LETTERS,
        options={"split": "balanced"},
        transposed=True,
        list_archives=_emnist_archive,
    ),
}
