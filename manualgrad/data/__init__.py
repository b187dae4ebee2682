"""MNIST and related datasets as tensors, checked before use.

    from manualgrad.data import bundled_sample, load

    mnist = load("mnist", "DIR")
    mnist.train.images  # uint8, (60000, 1, 28, 28)

:func:`load` uses the files in the folder if they exist. Otherwise torchvision downloads them. Without a folder and
without a network it returns a sample of MNIST that is part of the package, and says so.
"""

from manualgrad.data.dataset import DataError, Dataset, Split
from manualgrad.data.loading import NAMES, bundled_sample, load

__all__ = ["NAMES", "DataError", "Dataset", "Split", "bundled_sample", "load"]
