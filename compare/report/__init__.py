"""The report: sections as text for a terminal, and as report.md, report.json and report.html in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compare.report.strict_json import as_json
from compare.report.terminal import as_text
from compare.run_info import RunInfo
from compare.sections import Picture, Section
from manualgrad.files import write_atomic

__all__ = ["as_text", "write_report"]


def write_report(sections: Sequence[Section], run_info: RunInfo, out: Path) -> list[Path]:
    """Write the report into the folder ``out``, which is created if needed; return the files, report.html last.

    report.json is written first: the numbers took minutes and are kept if drawing a picture fails. report.html
    contains its pictures. The pictures of report.md are in ``report-pictures/``, on white; PNG files of an earlier
    report in that folder are removed. Each file is replaced atomically, and no other file in ``out`` is touched.

    Raises:
        TypeError: a section's ``data`` has a value that JSON cannot represent; the message says where.
        OSError: the folder cannot be written to.
    """
    # These need the packages of the extra "report". The comparisons and their results do not.
    from compare.report.html_page import as_html
    from compare.report.markdown import PICTURES, as_markdown
    from compare.report.pictures import render

    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def write_file(name: str, content: bytes) -> None:
        write_atomic(out / name, content)
        written.append(out / name)

    write_file("report.json", as_json(sections, run_info).encode())
    pictures: dict[str, Picture] = {}
    text = as_markdown(sections, run_info, pictures)
    for path, picture in pictures.items():
        write_file(path, render(picture, "light").png)
    for earlier in set((out / PICTURES).glob("*.png")) - set(written):
        earlier.unlink()
    write_file("report.md", text.encode())
    write_file("report.html", as_html(sections, run_info).encode())
    return written
