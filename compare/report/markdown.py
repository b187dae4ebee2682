"""report.md: what a code-hosting site or an editor shows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tabulate import tabulate

from compare.report.cells import FAILED, cells
from compare.report.headline import differences, headline
from compare.sections import Document, Picture, Section, Table
from compare.stamp import Stamp

PICTURES = "report-pictures"  # a folder beside report.md, for nothing else


def as_markdown(sections: Sequence[Section], stamp: Stamp, pictures: dict[str, Picture]) -> str:
    """The report; ``pictures`` is filled with what it links, under the paths that it links them by."""
    blocks = ["# Comparison report", f"**{headline(sections)}**"]
    blocks += [_list(f"{FAILED} {sentence}" for section in sections for sentence in section.failures)]
    blocks.append(_grid(["made with", ""], stamp.rows(), [False, False]))
    for section in sections:
        blocks += [f"## {escaped(section.title)}", *map(escaped, section.text)]
        if section.failures or section.compared:
            blocks.append(f"{differences(len(section.failures))}" + (":" if section.failures else "."))
        blocks.append(_list(f"{FAILED} {sentence}" for sentence in section.failures))
        for n, part in enumerate(section.parts, 1):
            blocks += _part(part, f"{PICTURES}/{re.sub(r'[^a-z0-9]+', '-', section.name.lower())}-{n}.png", pictures)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _part(part: Table | Picture | Document, path: str, pictures: dict[str, Picture]) -> list[str]:
    title = f"### {escaped(part.title)}"
    if isinstance(part, Table):
        content = cells(part)
        return [title, _grid(content.columns, content.rows, content.right), escaped(part.note)]
    if isinstance(part, Picture):
        pictures[path] = part
        return [title, f"![{escaped(part.alt)}]({path})", escaped(part.caption)]
    return [title, f"In {escaped(part.source)}, and in report.html."]


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    return tabulate(
        [[escaped(cell) for cell in row] for row in rows],
        headers=[escaped(column) for column in columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right" if r else "left" for r in right] if rows else None,
    )


def _list(sentences) -> str:
    return "\n".join(f"- {escaped(sentence)}" for sentence in sentences)


def escaped(text: str) -> str:
    """``text`` on one line, such that Markdown shows every character of it."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"([\\`*<>\[\]|~$])", r"\\\1", text.replace("&", "&amp;"))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text)  # within a word it is no emphasis
    return re.sub(r"^(#|[-+](?= )|\d+(?=[.)] ))", _unlisted, text)


def _unlisted(start: re.Match[str]) -> str:
    """A heading or a list is not begun by chance: "1. " at the start of a sentence."""
    return f"{start[0]}\u200b" if start[0].isdigit() else f"\\{start[0]}"
