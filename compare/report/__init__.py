"""From sections to a report: text for a terminal, and report.md, report.json and report.html in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compare.report.figures import draw
from compare.report.markdown import PICTURES, as_markdown
from compare.report.page import as_page
from compare.report.strict_json import as_json
from compare.report.terminal import as_text
from compare.sections import Picture, Section
from compare.stamp import Stamp
from manualgrad.files import write_whole

__all__ = ["as_text", "write"]


def write(sections: Sequence[Section], stamp: Stamp, out: Path) -> list[Path]:
    """Writes the report into the folder ``out``, which is made if need be; the files written, the page last.

    report.json comes first: numbers that took minutes are kept, whatever happens to a picture. report.html holds all
    that it shows. Markdown cannot hold a picture, so report.md has them beside it, in ``report-pictures/``, on white;
    those of an earlier report are removed from there. Each file is replaced as a whole or not at all, and nothing
    else in ``out`` is touched.

    Raises:
        TypeError: a section's ``data`` has something that JSON does not know; the message says where.
        OSError: the folder cannot be written to.
    """
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def put(name: str, content: bytes) -> None:
        write_whole(out / name, content)
        written.append(out / name)

    put("report.json", as_json(sections, stamp).encode())
    pictures: dict[str, Picture] = {}
    text = as_markdown(sections, stamp, pictures)
    for path, picture in pictures.items():
        put(path, draw(picture, "light").png)
    for earlier in set((out / PICTURES).glob("*.png")) - set(written):
        earlier.unlink()
    put("report.md", text.encode())
    put("report.html", as_page(sections, stamp).encode())
    return written
