"""The checkpoint file format, and the folder that keeps the newest checkpoints of a run.

A file is a line of magic, a line with the SHA-256 of the rest, and the rest: an archive from ``torch.save``. The
SHA-256 detects damage. It does not detect manipulation, since whoever changes a file can also change the SHA-256.
Therefore the archive must be uncompressed and is read with ``weights_only=True``, and its content is compared with
what the run expects (:func:`manualgrad.training.schema.require_same_structure`) before anything uses it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from manualgrad.files import remove_unfinished, write_atomic
from manualgrad.training.schema import printable

KIND, VERSION = b"manualgrad checkpoint", 2
MAGIC = KIND + b" %d\n" % VERSION
DIGEST_BYTES = hashlib.sha256().digest_size * 2 + 1  # hexadecimal digits and the end of the line
MAX_BYTES = 1 << 30  # a sparse file can claim any size; our checkpoints have some hundred kilobytes
NUM_KEPT = 3


class CheckpointError(Exception):
    """A checkpoint cannot be used. The message is one or two lines for a person; no traceback is needed."""


class SettingsMismatchError(CheckpointError):
    """The checkpoint is intact, but was saved by a run with other settings."""


def serialize(state: dict[str, Any]) -> bytes:
    """Return the content of a checkpoint file. ``state`` has tensors, numbers, text, and lists and dicts of them."""
    packed = io.BytesIO()
    torch.save(state, packed)
    return MAGIC + hashlib.sha256(packed.getvalue()).hexdigest().encode() + b"\n" + packed.getvalue()


def deserialize(content: bytes, name: object) -> dict[str, Any]:
    """Return the state from the content of a checkpoint file; the inverse of :func:`serialize`.

    Nothing that the file names is imported or called.

    Args:
        content: the bytes of the file.
        name: name of the file in messages.

    Raises:
        CheckpointError: another kind of file, a wrong SHA-256, or contents other than tensors and plain values.
    """
    name = printable(name)
    if other := re.match(KIND + rb" (\d{1,9})\n", content):
        if int(other[1]) != VERSION:
            raise CheckpointError(
                f"{name} is a checkpoint of version {int(other[1])}; this program reads version {VERSION}"
            )
    else:
        raise CheckpointError(
            f"{name} is not a checkpoint: expected a file that begins with {MAGIC.decode().strip()!r}, "
            f"got {content[: len(MAGIC)]!r}"
        )
    digest_line, packed = content[len(MAGIC) : len(MAGIC) + DIGEST_BYTES], content[len(MAGIC) + DIGEST_BYTES :]
    if digest_line != hashlib.sha256(packed).hexdigest().encode() + b"\n":
        raise CheckpointError(f"{name} is damaged: the SHA-256 in its second line is not that of its content")
    try:
        _require_plain_archive(packed)
        state = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of any type for a foreign file
        raise CheckpointError(f"{name} could not be read as tensors and plain values: {_reason(error)}") from error
    if type(state) is not dict:
        raise CheckpointError(f"{name}: expected a dict with the state of a run, got {type(state).__name__}")
    return state


def _reason(error: Exception) -> str:
    """One line about ``error``. It leaves out torch's advice to load the file in a way that runs the file's code."""
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it refers to {printable(named[1])}, and a checkpoint has no code"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return f"torch.load raised {type(error).__name__}"
    return printable((str(error).splitlines() or [type(error).__name__])[0])


def _require_plain_archive(packed: bytes) -> None:
    """Raise ValueError unless ``packed`` is a zip file whose members take no more memory than it has bytes."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("expected an uncompressed archive, as torch.save writes it, got a compressed archive")
    if sum(member.file_size for member in members) > len(packed):
        raise ValueError("the members of the archive are larger than the archive")


def read(path: Path) -> bytes:
    """Read a checkpoint file. Raises CheckpointError for anything but a readable regular file of plausible size."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a regular file: expected a checkpoint")
        if status.st_size > MAX_BYTES:
            raise CheckpointError(f"{path}: expected at most {MAX_BYTES:,} bytes, got {status.st_size:,}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


class CheckpointStore:
    """Folder with the newest checkpoints of one run. The first :meth:`save` creates it.

    Attributes:
        folder: path of the folder.
        last: path of the checkpoint that was saved or loaded last, or None.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last: Path | None = None

    def newest_first(self) -> list[Path]:
        """Paths of all checkpoints in the folder, by descending step."""
        return sorted(self.folder.glob("step-*.checkpoint"), key=_step_of, reverse=True)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of ``step`` and delete all but the newest ``NUM_KEPT``. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:09}.checkpoint"
        write_atomic(path, serialize(state))
        self.last = path
        for old in self.newest_first()[NUM_KEPT:]:
            if old != path:
                old.unlink()
        return path

    def load_latest(self, restore: Callable[[bytes, Path], None], warn: Callable[[str], None]) -> bytes | None:
        """Pass the newest checkpoint that ``restore`` accepts to it, and return the content of that checkpoint.

        Return None if the folder has no checkpoint. ``warn`` is called with a message for each that is damaged.

        Raises:
            SettingsMismatchError: the newest intact checkpoint was saved by a run with other settings.
            CheckpointError: there are checkpoints, and all are damaged.
        """
        remove_unfinished(self.folder)
        paths = self.newest_first()
        for path in paths:
            try:
                content = self.load(path, restore)
            except SettingsMismatchError:
                raise
            except CheckpointError as error:
                warn(f"{error}; trying the previous checkpoint")
            else:
                return content
        if paths:
            raise CheckpointError(f"none of the {len(paths)} checkpoints in {self.folder} can be used")
        return None

    def load(self, path: Path, restore: Callable[[bytes, Path], None]) -> bytes:
        """Pass the content of one checkpoint to ``restore``, and return it. Raises CheckpointError."""
        content = read(path)
        restore(content, path)
        self.last = path
        return content


def _step_of(path: Path) -> int:
    digits = re.search(r"\d+", path.name)
    return int(digits[0]) if digits else -1
