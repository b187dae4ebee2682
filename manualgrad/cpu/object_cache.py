"""A cache of the kernels' object code, so that only the first process compiles.

The name of a file is a hash of all that the object code depends on, and a file ends with the SHA-256 digest of its
content. Anybody can compute both, and the content is executed: it is read only from a :class:`PrivateFolder`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from manualgrad.cpu.private_folder import NotPrivateError, PrivateFolder

MAX_BYTES = 1 << 24  # the object code has some ten thousand bytes
_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder() -> Path | None:
    """Return the folder that compiled kernels are cached in; it need not exist.

    It is MANUALGRAD_CACHE_DIR, or ``manualgrad`` in XDG_CACHE_HOME, which is ``~/.cache`` by default. None if this
    user has no home folder: HOME is not set, and the user has no entry in the system's list of users."""
    if folder := os.environ.get("MANUALGRAD_CACHE_DIR"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "manualgrad"
    try:
        return Path.home() / ".cache" / "manualgrad"
    except RuntimeError:
        return None


def cached_object_code(key: str, compile_object_code: Callable[[], bytes]) -> tuple[bytes, str]:
    """Return the object code that is cached under ``key``, or compile it and cache it for the next time.

    Returns:
        The object code, and the reason why it is not cached, "" if it is.

    Warns:
        RuntimeWarning: files are there, but other users can change them: they are not loaded.
    """
    path = cache_folder()
    if path is None:
        return compile_object_code(), "this user has no home folder, and MANUALGRAD_CACHE_DIR is not set"
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.o"
    content = b""
    try:
        with PrivateFolder(path) as folder:
            content = _read(folder, name)
    except NotPrivateError as error:
        _warn(error)
        return compile_object_code(), str(error)
    except OSError as error:
        return compile_object_code(), str(error)
    if content:
        return content, ""
    content = compile_object_code()
    try:
        with PrivateFolder(path) as folder:
            folder.write(name, content + hashlib.sha256(content).digest())
    except (NotPrivateError, OSError) as error:
        return content, str(error)
    return content, ""


def _read(folder: PrivateFolder, name: str) -> bytes:
    """Return the object code in the file ``name``; b"" if it is missing, damaged, unreadable or not private."""
    try:
        cached = folder.read(name, MAX_BYTES)
    except NotPrivateError as error:
        _warn(error)
        return b""
    except OSError:
        return b""
    content, digest = cached[:-_DIGEST_BYTES], cached[-_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else b""


def _warn(error: NotPrivateError) -> None:
    warnings.warn(
        f"manualgrad: cached kernels are not loaded, but compiled anew: {error}", RuntimeWarning, stacklevel=3
    )
