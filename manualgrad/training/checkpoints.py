"""The file of a checkpoint, and the folder where the last few are kept.

A file is a line of magic, a line with the SHA-256 of the rest, and the rest: what ``torch.save`` makes. The sum finds
damage. It does not find malice, since whoever changes a file can change the sum: so it is read with
``weights_only=True``, as an archive without compression, and what comes out is used only after
:func:`manualgrad.training.untrusted.require_alike` has compared it with what the run expects.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from manualgrad.files import clear_unfinished, write_whole
from manualgrad.training.untrusted import printable

MAGIC = b"manualgrad checkpoint 2\n"
SUM = hashlib.sha256().digest_size * 2 + 1  # hexadecimal, and the end of the line
MOST_BYTES = 1 << 30  # a file with a hole in it is of any size for nothing; ours have some hundred kilobytes
KEPT = 3


class CheckpointError(Exception):
    """A checkpoint cannot be used. The message is for people: a line or two, no traceback needed."""


class OtherRun(CheckpointError):
    """The checkpoint is sound, and belongs to a run with other settings."""


def seal(state: dict[str, Any]) -> bytes:
    """The content of a checkpoint file that holds ``state``: tensors, numbers, text, lists and dicts of them."""
    packed = io.BytesIO()
    torch.save(state, packed)
    return MAGIC + hashlib.sha256(packed.getvalue()).hexdigest().encode() + b"\n" + packed.getvalue()


def unseal(content: bytes, name: object) -> dict[str, Any]:
    """What :func:`seal` made ``content`` from; ``name`` is what messages call it.

    Raises:
        CheckpointError: another kind of file, a sum that does not fit, or contents other than tensors and plain
            values. Nothing that the file names is imported or called.
    """
    name = printable(name)
    if not content.startswith(MAGIC):
        raise CheckpointError(f"{name} is not a checkpoint: expected it to begin with {MAGIC.decode().strip()!r}")
    claimed, packed = content[len(MAGIC) : len(MAGIC) + SUM], content[len(MAGIC) + SUM :]
    if claimed != hashlib.sha256(packed).hexdigest().encode() + b"\n":
        raise CheckpointError(f"{name} is damaged: its contents do not have the SHA-256 that it states")
    try:
        _require_plain_archive(packed)
        state = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything for a file that is not its own: the reason stays the cause
        reason = printable((str(error).splitlines() or [type(error).__name__])[0])
        raise CheckpointError(f"{name} holds something other than tensors and plain values: {reason}") from error
    if type(state) is not dict:
        raise CheckpointError(f"{name}: expected a dict of what a run needs, found {type(state).__name__}")
    return state


def _require_plain_archive(packed: bytes) -> None:
    """Raise unless ``packed`` is a zip file that takes as much memory as it has bytes."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a compressed archive, which torch does not write")
    if sum(member.file_size for member in members) > len(packed):
        raise ValueError("an archive whose parts are larger than the whole")


def read(path: Path) -> bytes:
    """The content of a checkpoint file. CheckpointError where it cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a file; expected a checkpoint")
        if status.st_size > MOST_BYTES:
            raise CheckpointError(f"{path} has {status.st_size:,} bytes; expected at most {MOST_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


class Store:
    """The checkpoints of one run, in a folder of their own, which is made for the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last: Path | None = None  # the last that was written here, or taken up

    def newest_first(self) -> list[Path]:
        """Every checkpoint in the folder, by its step."""
        return sorted(self.folder.glob("step-*.checkpoint"), key=_step_of, reverse=True)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of ``step``, then remove all but the newest few. Raises OSError."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:09}.checkpoint"
        write_whole(path, seal(state))
        self.last = path
        for old in self.newest_first()[KEPT:]:
            if old != path:
                old.unlink()
        return path

    def take_up(self, restore: Callable[[bytes, Path], None], warn: Callable[[str], None]) -> bytes | None:
        """Give ``restore`` the newest checkpoint that it accepts; its content, or None where there is none at all.

        Raises:
            OtherRun: the newest sound checkpoint belongs to a run with other settings.
            CheckpointError: there are checkpoints, and not one of them is sound.
        """
        clear_unfinished(self.folder)
        paths = self.newest_first()
        for path in paths:
            try:
                content = self.take(path, restore)
            except OtherRun:
                raise
            except CheckpointError as fault:
                warn(f"{fault}; trying the one before it")
            else:
                return content
        if paths:
            raise CheckpointError(f"none of the {len(paths)} checkpoints in {self.folder} can be used")
        return None

    def take(self, path: Path, restore: Callable[[bytes, Path], None]) -> bytes:
        """Give ``restore`` this checkpoint and no other; its content. Raises CheckpointError."""
        content = read(path)
        restore(content, path)
        self.last = path
        return content


def _step_of(path: Path) -> int:
    digits = re.search(r"\d+", path.name)
    return int(digits[0]) if digits else -1
