"""MNIST and its relatives as tensors, checked before anything trains on them.

    from manualgrad.data import bundled_sample, load

    mnist = load("mnist", "data")
    mnist.train.images  # uint8, (60000, 1, 28, 28)

Files that are already there are used; otherwise torchvision downloads them; where there is no network,
a sample of MNIST that comes with the package takes its place, and says so. `load` tells the details.
"""

from manualgrad.data.dataset import DataError, Dataset, Split
from manualgrad.data.loading import bundled_sample, load
from manualgrad.data.sources import NAMES

__all__ = ["NAMES", "DataError", "Dataset", "Split", "bundled_sample", "load"]
