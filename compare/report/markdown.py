"""report.md, for editors and code-hosting sites."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from compare.report.headline import headline, summary
from compare.report.tables import FAILED, format_table
from compare.run_info import RunInfo
from compare.sections import MarkdownPage, Picture, Section, Table

PICTURES = "report-pictures"  # a folder beside report.md, for these pictures only


def as_markdown(sections: Sequence[Section], run_info: RunInfo, pictures: dict[str, Picture]) -> str:
    """Return the report as Markdown, and put its pictures into ``pictures``, by the paths of its links."""
    blocks = ["# Comparison report", f"**{headline(sections)}**"]
    blocks += [_list(f"{FAILED} {s}" for section in sections for s in (*section.errors, *section.failures))]
    blocks.append(_table(["run", ""], run_info.rows(), [False, False]))
    for section in sections:
        blocks += [f"## {escape(section.title)}", *map(escape, section.text)]
        failures = [*section.errors, *section.failures]
        if failures or section.compared:
            blocks.append(summary(section) + (":" if failures else "."))
        blocks.append(_list(f"{FAILED} {sentence}" for sentence in failures))
        for n, part in enumerate(section.parts, 1):
            blocks += _part(part, f"{PICTURES}/{re.sub(r'[^a-z0-9]+', '-', section.name.lower())}-{n}.png", pictures)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _part(part: Table | Picture | MarkdownPage, path: str, pictures: dict[str, Picture]) -> list[str]:
    title = f"### {escape(part.title)}"
    if isinstance(part, Table):
        table = format_table(part)
        return [title, _table(table.columns, table.rows, table.right_aligned), escape(part.note)]
    if isinstance(part, Picture):
        pictures[path] = part
        return [title, f"![{escape(part.alt)}]({path})", escape(part.caption)]
    return [title, f"In {escape(part.source)}, and in report.html."]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right_aligned: Sequence[bool]) -> str:
    return tabulate(
        [[escape(cell) for cell in row] for row in rows],
        headers=[escape(column) for column in columns],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right" if right else "left" for right in right_aligned] if rows else None,
    )


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {escape(sentence)}" for sentence in sentences)


def escape(text: str) -> str:
    """Put ``text`` on one line and escape it, so that Markdown shows every character."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"([\\`*<>\[\]|~$])", r"\\\1", text.replace("&", "&amp;"))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text)  # an underscore inside a word is no emphasis
    return re.sub(r"^(#|[-+](?= )|\d+(?=[.)] ))", _escape_first, text)


def _escape_first(first: re.Match[str]) -> str:
    """Escape what would begin a heading or a list: "# ", "- " or "1. "."""
    return f"{first[0]}\u200b" if first[0].isdigit() else f"\\{first[0]}"
