"""Formulas as inline SVG, typeset by matplotlib's TeX: without a network or fonts, in the colour of the text."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextToPath

SVG_COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
NUM_POINTS = {Path.CURVE3: 2, Path.CURVE4: 3}  # of a command; 1 for the others
FONT = FontProperties(math_fontfamily="stix", size=TextToPath.FONT_SCALE)
EM = TextToPath.FONT_SCALE
PADDING = 4


class FormulaRenderer:
    """Renderer of one page's formulas. Each glyph's outline is defined once, and each formula is typeset once."""

    def __init__(self, id_prefix: str) -> None:
        self._id_prefix = id_prefix
        self._typesetter = TextToPath()
        self._outlines: dict[str, tuple] = {}
        self._glyph_ids: dict[str, str] = {}
        self._rendered: dict[str, Markup] = {}

    def svg(self, tex: str) -> Markup:
        """Return the formula as an inline SVG, with its TeX as the label for screen readers.

        Raises:
            ValueError: matplotlib cannot typeset it; the message shows where.
        """
        if tex not in self._rendered:
            self._rendered[tex] = self._render(tex)
        return self._rendered[tex]

    def glyph_definitions(self) -> Markup:
        """Return the SVG with the glyphs that the formulas refer to; the page must contain it once."""
        paths = (
            f'<path id="{glyph_id}" d="{_svg_path(*self._outlines[glyph])}"/>'
            for glyph, glyph_id in sorted(self._glyph_ids.items())
        )
        return Markup(f'<svg class="outlines" aria-hidden="true"><defs>{"".join(paths)}</defs></svg>')

    def _render(self, tex: str) -> Markup:
        text = f"${tex}$"
        glyphs, outlines, bars = self._typesetter.get_glyphs_mathtext(FONT, text, glyph_map=self._outlines)
        self._outlines.update(outlines)
        width, height, descent = self._typesetter.get_text_width_height_descent(text, FONT, ismath=True)
        elements = [
            f'<use href="#{self._glyph_id(glyph)}" transform="translate({x:.1f} {y:.1f})'
            + (f' scale({scale:.3g})"/>' if scale != 1 else '"/>')
            for glyph, x, y, scale in glyphs
        ]
        elements += [f'<path d="{_svg_path(points, codes)}"/>' for points, codes in bars]
        total_width, total_height = width + 2 * PADDING, height + 2 * PADDING
        box = f"{-PADDING} {-height + descent - PADDING:.0f} {total_width:.0f} {total_height:.0f}"
        return Markup(
            f'<svg role="img" aria-label="{escape(tex)}" viewBox="{box}" fill="currentColor" '
            f'width="{total_width / EM:.2f}em" height="{total_height / EM:.2f}em">'
            f'<g transform="scale(1 -1)">{"".join(elements)}</g></svg>'
        )

    def _glyph_id(self, glyph: str) -> str:
        return self._glyph_ids.setdefault(glyph, f"{self._id_prefix}{len(self._glyph_ids)}")


def _svg_path(points: Sequence, codes: Sequence[int]) -> str:
    """Convert a matplotlib path to SVG, with one decimal; the letters are 100 units high."""
    commands, n = [], 0
    while n < len(codes):
        code = codes[n]
        count = NUM_POINTS.get(code, 1)
        coordinates = " ".join(f"{x:.1f} {y:.1f}".replace(".0", "") for x, y in points[n : n + count])
        commands.append("Z" if code == Path.CLOSEPOLY else SVG_COMMANDS[code] + coordinates)
        n += count
    return "".join(commands)
