"""Markdown as HTML that loads nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from compare.report.formulas import FormulaRenderer
from compare.sections import MarkdownPage

FORMULA = re.compile(r"\$\$(.+)\$\$")
FILE_LINK = re.compile(r"(?:\.\./)*(?P<file>[^#]+)(?:#L(?P<line>\d+))?")
HEADING_SHIFT = 2  # the first heading of the Markdown is <h3> in the report


def markdown_to_html(page: MarkdownPage, id_prefix: str) -> Markup:
    """Convert a page: formulas become pictures, raw HTML is shown as text, links to its own headings are kept.

    A link or picture with a target outside the page becomes its text and the target, because the report may be read
    anywhere. ``id_prefix`` begins the ids of the formulas' glyphs.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    formulas = FormulaRenderer(id_prefix)
    tokens = _replace_formulas(markdown.parse(page.markdown), formulas)
    for n, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", slug(tokens[n + 1].content))
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + HEADING_SHIFT)}"
        if token.children:
            token.children = _replace_outside_links(token.children)
    markdown.add_render_rule("raw_html", lambda renderer, tokens, n, *_: tokens[n].content)
    markdown.add_render_rule("table_open", lambda *_: '<div class="box" tabindex="0"><table>')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>")
    html = markdown.renderer.render(tokens, markdown.options, {})
    return Markup(formulas.glyph_definitions() + Markup(html))


def slug(heading: str) -> str:
    """Return a heading's id, as code-hosting sites make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _replace_formulas(tokens: Sequence[Token], formulas: FormulaRenderer) -> list[Token]:
    """Replace each paragraph that is a formula by its picture."""
    replaced: list[Token] = []
    for token in tokens:
        formula = FORMULA.fullmatch(token.content) if token.type == "inline" else None
        replaced.append(token)
        if formula:
            svg = formulas.svg(formula[1])
            replaced[-2:] = [_raw_html(f'<div class="formula" tabindex="0">{svg}</div>')]
        elif token.type == "paragraph_close" and replaced[-2].type == "raw_html":
            replaced.pop()
    return replaced


def _replace_outside_links(tokens: Sequence[Token]) -> list[Token]:
    """Replace each link with a target outside the page by its text and its target."""
    replaced, text, target = [], "", None
    for token in tokens:
        if token.type == "link_open" and not str(token.attrGet("href")).startswith("#"):
            target, text = str(token.attrGet("href")), ""
        elif token.type == "link_close" and target is not None:
            replaced.append(_raw_html(_target_html(target, text)))
            target = None
        else:
            text += token.content
            replaced.append(token)
    return replaced


def _target_html(target: str, text: str) -> str:
    """Return file and line of a link's target as HTML; nothing if the link's text ends with the line."""
    match = FILE_LINK.fullmatch(target)
    location = ":".join(piece for piece in (match["file"], match["line"]) if piece) if match else target
    return "" if match and match["line"] and text.endswith(match["line"]) else f" <code>{escape(location)}</code>"


def _raw_html(html: str) -> Token:
    return Token("raw_html", "", 0, content=html)
