"""Promise: the wheel has every file of the two packages, and the source distribution every file of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import manualgrad
from manualgrad import extras

ROOT = Path(__file__).parents[2]
PACKAGES = ("manualgrad", "compare")
FOLDERS = (*PACKAGES, "docs", "examples", "scripts", "tests")
FILES = (
    ".ci/run",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "pyproject.toml",
    "train.py",
)
BUILD = "import setuptools.build_meta as backend; backend.build_sdist('dist'); backend.build_wheel('dist')"
NAME = f"manualgrad-{manualgrad.__version__}"


def files_in(*folders: str) -> set[str]:
    """Paths of all files in folders of the repository, without compiled ones and a built API reference."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ROOT / "docs/api/build" not in path.parents
    }


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Folder with a wheel and a source distribution, built from a copy: setuptools writes beside its sources."""
    copy = tmp_path_factory.mktemp("tree é")
    for name in sorted(files_in(*FOLDERS) | set(FILES)):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    result = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return copy / "dist"


def test_the_wheel_has_the_packages_and_nothing_else(dist):
    with zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = wheel.read(f"{NAME}.dist-info/METADATA").decode()
        commands = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert names == files_in(*PACKAGES)
    assert {"manualgrad/py.typed", "compare/report/report.html.jinja", "compare/report/style.css"} <= names
    page_files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "manualgrad/follow/page_files").iterdir()}
    assert page_files <= names
    assert any(name.startswith("manualgrad/data/mnist_sample/") and name.endswith(".tar.xz") for name in names)
    report = re.findall(r'Requires-Dist: (\S+?)[><=]\S+; extra == "report"', metadata)
    assert report == [name.replace("markdown_it", "markdown-it-py") for name in extras.REPORT]
    assert 'Requires-Dist: manualgrad[report]; extra == "test"' in metadata
    assert "manualgrad = manualgrad.__main__:main" in commands


def test_the_source_distribution_has_the_repository(dist):
    with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    generated = {"PKG-INFO", "setup.cfg", *(name for name in names if name.startswith("manualgrad.egg-info/"))}
    assert names - generated == files_in(*FOLDERS) | set(FILES)
