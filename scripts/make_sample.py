"""Make the bundled sample of MNIST from the whole dataset.

    python scripts/make_sample.py --data-dir DIR --out FILE

The sample has 10,000 training and 2,000 test images. The number of images of each class is proportional to that in
the whole dataset, and they keep its order. The result depends on no clock, no random generator and no order of files:
each run writes the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import sys
import tarfile
from pathlib import Path

import numpy as np

from manualgrad.data import DataError, Split
from manualgrad.data.idx import UBYTE, magic
from manualgrad.data.sample import SHA256, TEST, TRAIN
from manualgrad.data.sources import SOURCES

SEED = "manualgrad sample 1"


def apportion(counts: np.ndarray, total: int) -> np.ndarray:
    """Split `total` in proportion to `counts`, by largest remainder; the lower class wins a tie."""
    sizes, remainders = np.divmod(counts * total, counts.sum())
    sizes[np.argsort(-remainders, kind="stable")[: total - sizes.sum()]] += 1
    return sizes


def select_indices(labels: np.ndarray, total: int, split: str) -> np.ndarray:
    """Select the indices of `total` images, ascending: in each class those with the smallest hash.

    A hash is used since random generators may change from one release of NumPy to the next.
    """

    def hash_of(index: int) -> bytes:
        return hashlib.sha256(f"{SEED} {split} {index}".encode()).digest()

    selected = []
    for label, size in enumerate(apportion(np.bincount(labels), total)):
        selected += sorted(np.flatnonzero(labels == label).tolist(), key=hash_of)[:size]
    return np.sort(selected)


def idx_files(whole: Split, total: int, split: str) -> dict[str, bytes]:
    """Contents of two IDX files, by name, with the images and labels selected from a split."""
    images, labels = whole.images[:, 0].numpy(), whole.labels.numpy().astype(np.uint8)
    selected = select_indices(labels, total, split)
    return {
        f"{split}-{kind}-idx{array.ndim}-ubyte": magic(UBYTE, array.ndim)
        + np.array(array.shape, dtype=">u4").tobytes()
        + array.tobytes()
        for kind, array in (("images", images[selected]), ("labels", labels[selected]))
    }


def pack(files: dict[str, bytes]) -> bytes:
    """Pack `files` as .tar.xz, without times and owners, which TarInfo leaves out by default."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return lzma.compress(tar.getvalue(), preset=6 | lzma.PRESET_EXTREME)


def main() -> None:
    """Write the sample, and compare its SHA-256 with the one that the package expects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with MNIST/raw, the whole dataset")
    parser.add_argument("--out", type=Path, required=True, help="the .tar.xz file to write")
    options = parser.parse_args()

    mnist = SOURCES["mnist"]
    try:
        train, test = mnist.read(mnist.paths(options.data_dir))
    except (DataError, OSError) as error:
        sys.exit(str(error))
    files = idx_files(train, TRAIN, "train") | idx_files(test, TEST, "t10k")
    packed = pack(files)
    options.out.write_bytes(packed)

    sha256 = hashlib.sha256(packed).hexdigest()
    comparison = "as expected" if sha256 == SHA256 else f"NOT as expected: sample.py has {SHA256}"
    print(f"{options.out}: {len(packed):,} bytes, sha256 {sha256}, {comparison}")


if __name__ == "__main__":
    main()
