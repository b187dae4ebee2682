"""Promise: object code is cached under a key of all that it depends on, so an edit of any emitter compiles anew."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from manualgrad import kernels
from manualgrad.cpu import jit, team
from manualgrad.cpu.kernel_groups import (
    CONV2D,
    GROUPED_CONV,
    MAX_POOL_CHANNELS,
    MAX_POOL_ROWS,
    NETWORK,
    TRANSPOSE,
    group_kernels,
)
from manualgrad.cpu.signature import INT, POINTER, kernel

pytestmark = pytest.mark.skipif(not kernels.available().instructions, reason=str(kernels.available()))
pytest.importorskip("llvmlite")
from manualgrad.cpu import compilation  # noqa: E402
from manualgrad.cpu.emitter_key import emitter_key  # noqa: E402
from manualgrad.cpu.ir import values, vectors  # noqa: E402
from manualgrad.cpu.kernels import conv2d_tile, conv_pool_forward, relu, transpose  # noqa: E402

POOLINGS = [f"{group}{sizes}" for group in (MAX_POOL_CHANNELS, MAX_POOL_ROWS) for sizes in ("2x2x0", "3x2x1")]
GROUPS = [NETWORK, CONV2D, TRANSPOSE, *(f"{GROUPED_CONV}{size}" for size in (1, 4)), *POOLINGS]


def key_of(group: str = NETWORK) -> str | None:
    return emitter_key(group_kernels(group).values(), compilation)


def test_every_group_has_a_key_of_its_own():
    keys = [key_of(group) for group in GROUPS]
    assert None not in keys and len(set(keys)) == len(keys)
    assert keys == [key_of(group) for group in GROUPS]


@pytest.mark.slow  # it imports torch once more
def test_another_process_has_the_same_key():
    code = (
        "from manualgrad.cpu import compilation, emitter_key as e, kernel_groups as g\n"
        "g.group_kernels('conv2d'), print(e.emitter_key(g.group_kernels().values(), compilation))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert other.stdout.strip() == key_of()


def test_kernels_import_what_they_emit_with_at_the_top_of_a_module():
    """The key follows the variables of modules, so it would miss what a function imports."""
    for path in (*Path(values.__file__).parent.glob("*.py"), *Path(relu.__file__).parent.glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                assert not [n for n in ast.walk(function) if isinstance(n, (ast.Import, ast.ImportFrom))], path


def replaced(original: Callable) -> Callable:
    """Return ``original`` with one more constant in its code."""
    copy = type(original)(original.__code__, original.__globals__, original.__name__, original.__defaults__)
    copy.__code__ = copy.__code__.replace(co_consts=(*copy.__code__.co_consts, "edited"))
    copy.__kwdefaults__ = original.__kwdefaults__
    return copy


@pytest.mark.parametrize(
    "owner, name, replacement",
    [
        (conv_pool_forward, "INACTIVE", 77),
        (conv_pool_forward, "BLOCK_K", 64),
        (relu, "_grad_z", lambda emit, grad_out, *_: grad_out),
        (relu, "_grad_z", replaced(relu._grad_z)),
        (vectors, "_alignment", lambda _: 1),
        (vectors.Emitter, "select", replaced(vectors.Emitter.select)),
        (values.Value, "__rmul__", values.Value.__add__),
        (values, "FLOAT", values.DOUBLE),
        (vectors.Emitter.splat, "__defaults__", (8,)),
        (conv2d_tile, "minimum", replaced(conv2d_tile.minimum)),
        (compilation, "TARGET_CPU", {"avx2": "x86-64"}),
        (compilation.compile_kernels, "__code__", replaced(compilation.compile_kernels).__code__),
    ],
)
def test_a_change_of_any_emitter_changes_the_key(owner, name, replacement, monkeypatch):
    group = CONV2D if owner is conv2d_tile else NETWORK
    before = key_of(group)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement)
        assert key_of(group) != before
    assert key_of(group) == before


def load_edited(module: ModuleType, folder: Path, old: str, new: str) -> ModuleType:
    """Import an edited copy of a module's file under the module's name."""
    assert module.__file__ is not None
    source = Path(module.__file__).read_text()
    assert old in source
    path = folder / "edited.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(module.__name__, path)
    edited = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = edited  # the test restores it
    spec.loader.exec_module(edited)
    return edited


def test_an_edited_file_is_not_answered_with_the_old_object_code(monkeypatch, tmp_path):
    """One that changes a comment alone is."""
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, transpose.__name__, transpose)
    source, instructions = torch.arange(64.0).view(1, 8, 8), kernels.available().instructions
    results, files = [], []
    edits = [("", ""), ("# strips per task", "# another comment"), ("emit.store(vector,", "emit.store(vector + 1,")]
    for old, new in edits:
        edited = load_edited(transpose, tmp_path, old, new) if old else transpose
        others = {k: v for k, v in group_kernels(TRANSPOSE).items() if k != "transpose"}
        module = jit.load_kernels(instructions, {"transpose": edited.transpose, **others})
        target = torch.empty(1, 8, 8)
        team.run(
            module, "transpose", 1, source=source.data_ptr(), target=target.data_ptr(), matrices=1, rows=8, columns=8,
            share=1,
        )  # fmt: skip
        results.append(target)
        files.append(len(list((tmp_path / "cache").iterdir())))
    expected = source.transpose(1, 2)
    assert all(map(torch.equal, results, [expected, expected, expected + 1]))
    assert files == [1, 1, 2]


def test_kernels_of_other_packages_are_cached_under_their_instructions():
    @kernel(out=POINTER, count=INT)
    def clear(emit, a):
        emit.store(emit.constant(emit.int_vector, 0), a.out)

    assert emitter_key([clear], compilation) is None


def test_cached_kernels_are_not_emitted(monkeypatch, tmp_path):
    monkeypatch.setenv("MANUALGRAD_CACHE_DIR", str(tmp_path))
    instructions, transposes = kernels.available().instructions, group_kernels(TRANSPOSE)
    first = jit.load_kernels(instructions, transposes)
    monkeypatch.setattr(compilation.ir, "Module", lambda _: pytest.fail("the kernels were emitted"))
    assert jit.load_kernels(instructions, transposes).addresses.keys() == first.addresses.keys()
