"""Formulas as pictures within the page, by matplotlib's TeX: no network, no font, the colour of the text around."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextToPath

LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
POINTS = {Path.CURVE3: 2, Path.CURVE4: 3}
FONT = FontProperties(math_fontfamily="stix", size=TextToPath.FONT_SCALE)
EM = TextToPath.FONT_SCALE


class Formulas:
    """All formulas of one page: each glyph's outline is written once, and each formula is set once."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._setter = TextToPath()
        self._outlines: dict[str, tuple] = {}
        self._names: dict[str, str] = {}
        self._set: dict[str, Markup] = {}

    def svg(self, tex: str) -> Markup:
        """The formula as an inline SVG, which reads out its TeX.

        Raises:
            ValueError: matplotlib cannot set it; the message shows where.
        """
        if tex not in self._set:
            self._set[tex] = self._draw(tex)
        return self._set[tex]

    def outlines(self) -> Markup:
        """What the formulas refer to; it belongs into the same page, once."""
        paths = (
            f'<path id="{name}" d="{_path(*self._outlines[glyph])}"/>' for glyph, name in sorted(self._names.items())
        )
        return Markup(f'<svg class="outlines" aria-hidden="true"><defs>{"".join(paths)}</defs></svg>')

    def _draw(self, tex: str) -> Markup:
        text = f"${tex}$"
        glyphs, outlines, bars = self._setter.get_glyphs_mathtext(FONT, text, glyph_map=self._outlines)
        self._outlines.update(outlines)
        width, height, descent = self._setter.get_text_width_height_descent(text, FONT, ismath=True)
        drawn = [
            f'<use href="#{self._name(glyph)}" transform="translate({x:.1f} {y:.1f})'
            + (f' scale({scale:.3g})"/>' if scale != 1 else '"/>')
            for glyph, x, y, scale in glyphs
        ]
        drawn += [f'<path d="{_path(points, codes)}"/>' for points, codes in bars]
        pad = 4
        box = f"{-pad} {-height + descent - pad:.0f} {width + 2 * pad:.0f} {height + 2 * pad:.0f}"
        return Markup(
            f'<svg role="img" aria-label="{escape(tex)}" viewBox="{box}" fill="currentColor" '
            f'width="{(width + 2 * pad) / EM:.2f}em" height="{(height + 2 * pad) / EM:.2f}em">'
            f'<g transform="scale(1 -1)">{"".join(drawn)}</g></svg>'
        )

    def _name(self, glyph: str) -> str:
        return self._names.setdefault(glyph, f"{self._prefix}{len(self._names)}")


def _path(points: Sequence, codes: Sequence[int]) -> str:
    """A matplotlib path as SVG has it, in tenths of a hundredth of the letter's height."""
    parts, n = [], 0
    while n < len(codes):
        code = codes[n]
        count = POINTS.get(code, 1)
        where = " ".join(f"{x:.1f} {y:.1f}".replace(".0", "") for x, y in points[n : n + count])
        parts.append("Z" if code == Path.CLOSEPOLY else LETTERS[code] + where)
        n += count
    return "".join(parts)
