"""Make the bundled sample of MNIST from the whole set.

    python scripts/make_sample.py --data-dir DIR --out FILE

10,000 training and 2,000 test images, each class in proportion to the whole set, in the order of the whole
set. No clock, no random generator and no file order enters: the same bytes come out each time.
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


def allot(counts: np.ndarray, total: int) -> np.ndarray:
    """Shares of `total` in proportion to `counts`, by largest remainder (the lower class first in a tie)."""
    shares, remainders = np.divmod(counts * total, counts.sum())
    shares[np.argsort(-remainders, kind="stable")[: total - shares.sum()]] += 1
    return shares


def draw(labels: np.ndarray, total: int, split: str) -> np.ndarray:
    """Indices, ascending, of `total` images: of each class those whose hashed index is smallest.

    A hash and not a random generator, since generators may change from one release of NumPy to the next.
    """

    def lot(index: int) -> bytes:
        return hashlib.sha256(f"{SEED} {split} {index}".encode()).digest()

    chosen = []
    for label, share in enumerate(allot(np.bincount(labels), total)):
        chosen += sorted(np.flatnonzero(labels == label).tolist(), key=lot)[:share]
    return np.sort(chosen)


def idx_files(whole: Split, total: int, split: str) -> dict[str, bytes]:
    """The drawn images and labels as the bytes of two IDX files, by name."""
    images, labels = whole.images[:, 0].numpy(), whole.labels.numpy().astype(np.uint8)
    chosen = draw(labels, total, split)
    return {
        f"{split}-{what}-idx{array.ndim}-ubyte": magic(UBYTE, array.ndim)
        + np.array(array.shape, dtype=">u4").tobytes()
        + array.tobytes()
        for what, array in (("images", images[chosen]), ("labels", labels[chosen]))
    }


def pack(files: dict[str, bytes]) -> bytes:
    """A .tar.xz of `files`. TarInfo's defaults have no time and no owner in them."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return lzma.compress(tar.getvalue(), preset=6 | lzma.PRESET_EXTREME)


def main() -> None:
    """Read the whole set, write the sample, and say whether it is the one that the package expects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with MNIST/raw, the whole set")
    parser.add_argument("--out", type=Path, required=True, help="the .tar.xz to write")
    arguments = parser.parse_args()

    mnist = SOURCES["mnist"]
    try:
        mnist.check(arguments.data_dir)
    except (DataError, OSError) as error:
        sys.exit(str(error))
    files = idx_files(mnist.read(arguments.data_dir, train=True), TRAIN, "train")
    files |= idx_files(mnist.read(arguments.data_dir, train=False), TEST, "t10k")
    packed = pack(files)
    arguments.out.write_bytes(packed)

    sha256 = hashlib.sha256(packed).hexdigest()
    verdict = "as" if sha256 == SHA256 else "NOT what"
    print(f"{arguments.out}: {len(packed):,} bytes, sha256 {sha256}, {verdict} sample.py expects")


if __name__ == "__main__":
    main()
