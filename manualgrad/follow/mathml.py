"""Formulas as MathML, which browsers typeset themselves: no network, no fonts, no script.

The subset of TeX is what ``equations.py`` needs: letters, numbers, scripts, \\frac, \\mathbf and the names in NAMES.
"""

from __future__ import annotations

import re
from html import escape

TOKEN = re.compile(r"\\[A-Za-z]+|\d+|\S")
NAMES = {
    r"\partial": "<mi>∂</mi>", r"\delta": "<mi>δ</mi>", r"\Delta": "<mi mathvariant='normal'>Δ</mi>",
    r"\eta": "<mi>η</mi>", r"\sigma": "<mi>σ</mi>", r"\geq": "<mo>≥</mo>", r"\log": "<mi>log</mi><mo>&#x2061;</mo>",
    r"\quad": "<mspace width='1em'/>", r"\qquad": "<mspace width='2em'/>",
    r"\sum": "<mo movablelimits='false'>∑</mo>", r"\max": "<mo movablelimits='false' lspace='0'>max</mo>",
}  # fmt: skip
WITH_LIMITS = {r"\sum", r"\max"}  # their subscript stands below them


def mathml(tex: str) -> str:
    """Return a display formula.

    Raises:
        ValueError: ``tex`` uses a command that is not in the subset.
    """
    return f'<math display="block">{_Parser(tex).row("")}</math>'


class _Parser:
    def __init__(self, tex: str) -> None:
        self._tex = tex
        self._tokens: list[str] = TOKEN.findall(tex)[::-1]

    def row(self, end: str) -> str:
        """Parse up to the token ``end``, or to the end of the text."""
        parts = []
        while self._tokens and self._tokens[-1] != end:
            parts.append(self._scripted())
        if end:
            self._next()
        return f"<mrow>{''.join(parts)}</mrow>"

    def _next(self) -> str:
        if not self._tokens:
            raise ValueError(f"the formula ends too early: {self._tex}")
        return self._tokens.pop()

    def _argument(self) -> str:
        if self._tokens and self._tokens[-1] == "{":
            self._next()
            return self.row("}")
        return self._atom(self._next())

    def _scripted(self) -> str:
        token = self._next()
        base, scripts = self._atom(token), dict[str, str]()
        while self._tokens and self._tokens[-1] in "_^":
            mark = self._next()
            scripts[mark] = self._argument()
        if token in WITH_LIMITS and "_" in scripts:
            return f"<munder>{base}{scripts['_']}</munder>"
        if len(scripts) == 2:
            return f"<msubsup>{base}{scripts['_']}{scripts['^']}</msubsup>"
        if "_" in scripts:
            return f"<msub>{base}{scripts['_']}</msub>"
        return f"<msup>{base}{scripts['^']}</msup>" if scripts else base

    def _atom(self, token: str) -> str:
        if token == r"\frac":
            numerator, denominator = self._argument(), self._argument()
            return f"<mfrac>{numerator}{denominator}</mfrac>"
        if token == r"\mathbf":
            self._next()
            letter = self._next()
            self._next()
            first, bold = ("a", 0x1D41A) if letter.islower() else ("A", 0x1D400)  # 𝐚 and 𝐀
            return f"<mi>{chr(bold + ord(letter) - ord(first))}</mi>"
        if token in NAMES:
            return NAMES[token]
        if token.startswith("\\"):
            raise ValueError(f"{token} in {self._tex} is not in the subset of TeX that this module converts")
        if token.isdigit():
            return f"<mn>{token}</mn>"
        if token.isalpha():
            return f"<mi>{token}</mi>"
        stretchy = " stretchy='false'" if token in "()" else ""
        return f"<mo{stretchy}>{'−' if token == '-' else escape(token)}</mo>"
