"""A small training of both sides."""

from __future__ import annotations

from functools import partial

from manualgrad import DocumentCNN

SIZES = {"channels": (3, 4), "kernel_size": 3, "hidden": (6,)}


class Bar:
    """Part of tqdm's interface that compare_training uses."""

    total = count = 0
    description = ""

    def update(self, n):
        self.count += n

    def set_description_str(self, desc):
        self.description = desc


QUICK = {"epochs": 1, "batch_size": 16, "subgradients": ()}
MODEL = partial(DocumentCNN, **SIZES)
