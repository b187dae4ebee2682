"""train.py in the process of the tests, options of a quick run, and a small dataset that needs no network."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import torch

from manualgrad import data
from manualgrad.training import command

QUICK = ("--limit", "640", "--epochs", "2", "--batch-size", "32")


def idx(values: torch.Tensor, kind: bytes) -> bytes:
    """Content of an IDX file of unsigned bytes; ``kind`` is the number of dimensions as a byte."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return b"\0\0\x08" + kind + sizes + values.to(torch.uint8).numpy().tobytes()


def write_digits(folder: Path) -> Path:
    """Write a part of the bundled sample as files of Fashion-MNIST, whose raw files have no published MD5."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    sample = data.bundled_sample()
    for name, split in (("train", sample.train.first(1000)), ("t10k", sample.test.first(300))):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(split.images[:, 0], b"\x03"))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(split.labels, b"\x01"))
    return folder


def train(*arguments: object, allocator_tuning: bool = False) -> SimpleNamespace:
    """Run train.py in this process, since starting another process takes seconds.

    The allocator is not tuned by default: that cannot be undone, and other tests measure this process's memory.
    """
    if not allocator_tuning:
        arguments = (*arguments, "--no-allocator-tuning")
    stdout, stderr = StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = command.main([str(argument) for argument in arguments])
        except SystemExit as system_exit:
            code = system_exit.code
    return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())
