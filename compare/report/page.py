"""report.html: one file that works from a disk, without a network, in the light and in the dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from compare.report.cells import FAILED, cells
from compare.report.document import as_html
from compare.report.figures import Drawn, draw
from compare.report.headline import differences, headline
from compare.sections import Document, Picture, Section, Table
from compare.stamp import Stamp


def as_page(sections: Sequence[Section], stamp: Stamp) -> str:
    """The page. It has no script, and its policy lets it load nothing; all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compare", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [_section(section) for section in sections]
    failures = [(section["id"], sentence) for section in shown for sentence in section["failures"]]
    return environment.get_template("report.html.jinja").render(
        headline=headline(sections), sections=shown, failures=failures, stamp=stamp.rows(), failed=FAILED
    )


def _section(section: Section) -> dict[str, Any]:
    name = f"section-{re.sub(r'[^a-z0-9]+', '-', section.name.lower())}"
    return {
        "id": name,
        "title": section.title,
        "text": section.text,
        "compared": section.compared,
        "failures": section.failures,
        "verdict": f"{differences(len(section.failures))}{':' if section.failures else '.'}",
        "parts": [_part(part, f"{name}-{n}") for n, part in enumerate(section.parts, 1)],
    }


def _part(part: Table | Picture | Document, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": name, "kind": type(part).__name__, "title": part.title}
    if isinstance(part, Table):
        return shown | {"cells": cells(part), "note": part.note, "marked": set(part.failed), "folded": part.detail}
    if isinstance(part, Picture):
        light, dark = draw(part, "light"), draw(part, "dark")
        drawn = {"light": _uri(light), "dark": _uri(dark), "width": light.width, "height": light.height}
        return shown | drawn | {"alt": part.alt, "caption": part.caption}
    return shown | {"source": part.source, "html": as_html(part, f"{name}-glyph-")}


def _uri(drawn: Drawn) -> str:
    return f"data:image/png;base64,{base64.b64encode(drawn.png).decode()}"
