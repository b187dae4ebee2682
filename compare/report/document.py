"""A page of Markdown as HTML that needs nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from compare.report.formulas import Formulas
from compare.sections import Document

FORMULA = re.compile(r"\$\$(.+)\$\$")
LINE = re.compile(r"(?:\.\./)*(?P<file>[^#]+)(?:#L(?P<line>\d+))?")
BELOW = 2  # the document's first heading is the page's third


def as_html(document: Document, name: str) -> Markup:
    """The document: formulas drawn, raw HTML shown and not obeyed, links to its own headings kept.

    A link that leads elsewhere becomes its text and its target: elsewhere is not where the report is. So does a
    picture. ``name`` begins the ids of what formulas are made of.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    formulas = Formulas(name)
    tokens = markdown.parse(document.markdown)
    tokens = _with_formulas(tokens, formulas)
    for n, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", slug(tokens[n + 1].content))
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + BELOW)}"
        if token.children:
            token.children = _without_links(token.children)
    markdown.add_render_rule("drawn", lambda renderer, tokens, n, *rest: tokens[n].content)
    markdown.add_render_rule("table_open", lambda *rest: '<div class="box" tabindex="0"><table>')
    markdown.add_render_rule("table_close", lambda *rest: "</table></div>")
    html = markdown.renderer.render(tokens, markdown.options, {})
    return Markup(formulas.outlines() + Markup(html))


def slug(heading: str) -> str:
    """A heading's id, as code-hosting sites make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _with_formulas(tokens: Sequence[Token], formulas: Formulas) -> list[Token]:
    """Paragraphs that are a formula, replaced by it."""
    kept: list[Token] = []
    for token in tokens:
        formula = FORMULA.fullmatch(token.content) if token.type == "inline" else None
        kept.append(token)
        if formula:
            svg = formulas.svg(formula[1])
            kept[-2:] = [_drawn(f'<div class="formula" tabindex="0">{svg}</div>')]
        elif token.type == "paragraph_close" and kept[-2].type == "drawn":
            kept.pop()
    return kept


def _without_links(tokens: Sequence[Token]) -> list[Token]:
    """An inline text in which links to elsewhere are text."""
    kept, words, left = [], "", None
    for token in tokens:
        if token.type == "link_open" and not str(token.attrGet("href")).startswith("#"):
            left, words = str(token.attrGet("href")), ""
        elif token.type == "link_close" and left is not None:
            kept.append(_drawn(_target(left, words)))
            left = None
        else:
            words += token.content
            kept.append(token)
    return kept


def _target(href: str, words: str) -> str:
    """What is written behind a link's words: file and line, unless the words say the line."""
    found = LINE.fullmatch(href)
    where = ":".join(part for part in (found["file"], found["line"]) if part) if found else href
    return "" if found and found["line"] and words.endswith(found["line"]) else f" <code>{escape(where)}</code>"


def _drawn(html: str) -> Token:
    return Token("drawn", "", 0, content=html)
