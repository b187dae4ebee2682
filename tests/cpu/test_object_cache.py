"""Promise: object code is cached under its key; it is read only from files that nobody but
this user can change; what cannot be cached is compiled, and the reason is reported.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
from pathlib import Path

import pytest

from manualgrad import kernels
from manualgrad.cpu import instruction_set, private_folder
from manualgrad.cpu.jit import KernelModule
from manualgrad.cpu.object_cache import cached_object_code

pytestmark = pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="kernels, and their cache, need Linux")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)
OTHER_USER = 54321


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(key: str = "one") -> tuple[bool, str]:
    """Look up ``key``. Return True if it was compiled rather than read, and the reason why it is not cached."""
    compiled = []
    content, problem = cached_object_code(key, lambda: compiled.append(key) or key.encode())
    assert content == key.encode()
    return bool(compiled), problem


COMPILED, READ = (True, ""), (False, "")


def with_digest(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


# ------------------------------------------------------------------------------------------- the cache as a cache


def test_each_key_has_its_file(cache):
    assert [load("one"), load("one"), load("two"), load("two")] == [COMPILED, READ, COMPILED, READ]
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_file_is_compiled_again(cache):
    load()
    (path,) = cache.iterdir()
    intact = path.read_bytes()
    for damaged in (intact[:-1], intact[1:], b"", b"x" + intact[1:]):
        path.write_bytes(damaged)
        assert load() == COMPILED
        assert path.read_bytes() == intact


def test_no_more_is_read_than_object_code_has(cache):
    load()
    (path,) = cache.iterdir()
    os.truncate(path, 1 << 40)  # a sparse file, which no memory could hold
    assert load() == COMPILED
    assert path.read_bytes() == with_digest(b"one")


# ----------------------------------------------------------------------------------- files that others can change


def give_away(path: Path) -> None:
    os.chown(path, OTHER_USER, OTHER_USER)


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.rename(path.parents[1] / "target")
    path.symlink_to(path.parents[1] / "target")


def make_zero_device(path: Path) -> None:
    path.unlink()
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


UNSAFE_FILES = {
    "of another user": pytest.param(give_away, "belongs to user 54321, this is user 0", marks=needs_root),
    "writable by its group": pytest.param(lambda path: path.chmod(0o620), "other users can write to"),
    "writable by others": pytest.param(lambda path: path.chmod(0o602), "other users can write to"),
    "a pipe": pytest.param(make_fifo, "is not a regular file"),
    "a link": pytest.param(make_link, "is a symbolic link"),
    "a device": pytest.param(make_zero_device, "is not a regular file", marks=needs_root),
}


@pytest.mark.parametrize("make_unsafe, cause", UNSAFE_FILES.values(), ids=UNSAFE_FILES)
def test_an_unsafe_file_is_not_loaded_but_named_and_replaced(cache, make_unsafe, cause):
    load()
    (path,) = cache.iterdir()
    path.write_bytes(with_digest(b"planted"))  # another user can compute name and digest
    make_unsafe(path)
    with pytest.warns(RuntimeWarning, match=cause) as caught:
        assert load() == COMPILED
    assert str(path) in str(caught[0].message) and len(caught) == 1
    status = path.lstat()
    assert (stat.S_ISREG(status.st_mode), status.st_uid, stat.S_IMODE(status.st_mode)) == (True, os.geteuid(), 0o600)
    assert load() == READ
    if (target := path.parents[1] / "target").exists():
        assert target.read_bytes() == with_digest(b"planted"), "the target of a link is not written to"


def test_a_socket_or_folder_of_that_name_is_not_loaded(cache):
    load()
    (path,) = cache.iterdir()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        descriptor = os.open(cache, os.O_PATH)
        server.bind(f"/proc/self/fd/{descriptor}/{path.name}")  # the path itself may be too long
        os.close(descriptor)
        assert load() == COMPILED
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="not a regular file"):
        compiled, problem = load()
    assert compiled and "Is a directory" in problem
    assert list(cache.iterdir()) == [path]


UNSAFE_FOLDERS = {
    "of another user": pytest.param(lambda cache: give_away(cache), "belongs to user 54321", marks=needs_root),
    "writable by its group": pytest.param(lambda cache: cache.chmod(0o770), "other users can write to"),
    "writable by all, sticky": pytest.param(lambda cache: cache.chmod(0o1777), "other users can write to"),
    "below one of another user": pytest.param(
        lambda cache: give_away(cache.parent), "belongs to user 54321", marks=needs_root
    ),
    "below one that others can write to": pytest.param(
        lambda cache: cache.parent.chmod(0o777), "other users can write to"
    ),
    "a link of another user": pytest.param(
        lambda cache: (
            cache.rename(cache.with_name("moved")),
            cache.symlink_to("moved"),
            os.chown(cache, OTHER_USER, OTHER_USER, follow_symlinks=False),
        ),
        "belongs to user 54321",
        marks=needs_root,
    ),
    "a link to an unsafe one": pytest.param(
        lambda cache: (
            cache.rename(cache.with_name("moved")),
            cache.symlink_to(cache.with_name("moved")),
            cache.with_name("moved").chmod(0o777),
        ),
        "other users can write to",
    ),
}


@pytest.mark.parametrize("make_unsafe, cause", UNSAFE_FOLDERS.values(), ids=UNSAFE_FOLDERS)
def test_nothing_is_loaded_from_or_written_to_an_unsafe_folder(cache, make_unsafe, cause):
    load()
    (path,) = cache.iterdir()
    path.write_bytes(with_digest(b"planted"))
    make_unsafe(cache)
    with pytest.warns(RuntimeWarning, match=cause) as caught:
        compiled, problem = load()
    assert compiled and cause in problem and len(caught) == 1
    assert path.read_bytes() == with_digest(b"planted")
    assert list(cache.iterdir()) == [path]


def test_a_sticky_folder_above_and_links_of_this_user_are_safe(cache):
    cache.parent.chmod(0o1777)
    assert load() == COMPILED
    cache.rename(cache.with_name("moved"))
    cache.symlink_to("../" + cache.parent.name + "/moved")
    assert load() == READ
    cache.unlink()
    cache.symlink_to(cache.with_name("moved"))
    assert load() == READ


def test_a_link_to_itself_is_an_error_without_end(cache):
    cache.symlink_to(cache)
    compiled, problem = load()
    assert compiled and "Too many levels of symbolic links" in problem


def test_a_file_that_is_exchanged_after_the_check_is_not_read(cache, monkeypatch):
    load()
    (path,) = cache.iterdir()
    fstat = os.fstat

    def exchange(descriptor):
        status = fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            path.rename(cache / "checked")
            path.write_bytes(with_digest(b"planted"))
        return status

    monkeypatch.setattr(private_folder.os, "fstat", exchange)
    assert load() == READ


# --------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_files_and_folders_are_private_whatever_the_umask(cache, umask):
    before = os.umask(umask)
    try:
        load()
    finally:
        os.umask(before)
    (path,) = cache.iterdir()
    assert [stat.S_IMODE(p.stat().st_mode) for p in (cache, path)] == [0o700, 0o600]


@pytest.mark.parametrize("function", ["fchmod", "replace"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing_behind(cache, monkeypatch, function, fault):
    def fail(*_, **__):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(private_folder.os, function, fail)
        if isinstance(fault, OSError):
            assert load() == (True, "[Errno 28] No space left on device")
        else:
            with pytest.raises(KeyboardInterrupt):
                load()
    assert list(cache.iterdir()) == []
    assert load() == COMPILED


def test_a_file_size_limit_leaves_nothing_behind(cache):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
    try:
        assert load() == (True, "[Errno 27] File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(cache.iterdir()) == []


def test_without_a_writable_folder_kernels_are_compiled_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", str(tmp_path / "file" / "below"))
    for _ in range(2):
        compiled, problem = load()
        assert compiled and "Not a directory" in problem


# ------------------------------------------------------------------------------------------------- the folder


def test_the_folder_is_that_of_the_variables(monkeypatch):
    for name in ("MANUALGRAD_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert kernels.cache_folder() == Path("/somewhere/.cache/manualgrad")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert kernels.cache_folder() == Path("/elsewhere/manualgrad")
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", "/here")
    assert kernels.cache_folder() == Path("/here")


@pytest.mark.usefixtures("restore_kernels")
def test_a_user_without_home_gets_kernels_that_are_not_cached(monkeypatch):
    """As in a container whose user has no entry in the list of users."""
    import pwd

    for name in ("HOME", "MANUALGRAD_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_entry(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    assert kernels.cache_folder() is None
    compiled, problem = load()
    assert compiled and "no home folder" in problem
    module = KernelModule("avx2", 8, {}, {}, problem, engine=None)
    monkeypatch.setattr(instruction_set, "instruction_sets", lambda: ("avx2",))
    monkeypatch.setattr(instruction_set, "load_module", lambda _: module)
    kernels.choose("auto")
    assert str(kernels.available()).endswith(f", not cached: {problem}")
    monkeypatch.undo()
