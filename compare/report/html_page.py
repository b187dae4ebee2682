"""report.html: one file that works from a disk, without a network, on light and dark displays."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from compare.report.headline import headline, summary
from compare.report.markdown_to_html import markdown_to_html
from compare.report.pictures import RenderedPicture, render
from compare.report.tables import FAILED, format_table
from compare.run_info import RunInfo
from compare.sections import MarkdownPage, Picture, Section, Table


def as_html(sections: Sequence[Section], run_info: RunInfo) -> str:
    """Return the page. It has no script, its content security policy forbids all loading, and all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compare", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values = [_section_values(section) for section in sections]
    failures = [(section["id"], sentence) for section in values for sentence in section["failures"]]
    return environment.get_template("report.html.jinja").render(
        headline=headline(sections), sections=values, failures=failures, run_info=run_info.rows(), failed=FAILED
    )


def _section_values(section: Section) -> dict[str, Any]:
    """Values of a section for the template."""
    section_id = f"section-{re.sub(r'[^a-z0-9]+', '-', section.name.lower())}"
    return {
        "id": section_id,
        "title": section.title,
        "text": section.text,
        "compared": section.compared,
        "failures": [*section.errors, *section.failures],
        "unexplained": len(section.failures),
        "verdict": f"{summary(section)}{':' if section.failures or section.errors else '.'}",
        "parts": [_part_values(part, f"{section_id}-{n}") for n, part in enumerate(section.parts, 1)],
    }


def _part_values(part: Table | Picture | MarkdownPage, part_id: str) -> dict[str, Any]:
    """Values of a table, picture or page for the template."""
    values: dict[str, Any] = {"id": part_id, "kind": type(part).__name__, "title": part.title}
    if isinstance(part, Table):
        return values | {
            "table": format_table(part),
            "note": part.note,
            "failed_rows": set(part.failed),
            "folded": part.detail,
        }
    if isinstance(part, Picture):
        light, dark = render(part, "light"), render(part, "dark")
        images = {"light": _data_uri(light), "dark": _data_uri(dark), "width": light.width, "height": light.height}
        return values | images | {"alt": part.alt, "caption": part.caption}
    return values | {"source": part.source, "html": markdown_to_html(part, f"{part_id}-glyph-")}


def _data_uri(picture: RenderedPicture) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
