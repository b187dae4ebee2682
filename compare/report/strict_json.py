"""report.json: everything as numbers, in JSON that any reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from numbers import Integral, Real
from typing import Any

from compare.report.headline import headline
from compare.sections import Section
from compare.stamp import Stamp


def as_json(sections: Sequence[Section], stamp: Stamp) -> str:
    """JSON has no NaN and no infinity: they are the strings "nan", "inf" and "-inf", which Python's float() reads.

    Raises:
        TypeError: something in a section's ``data`` is not a number, text, list or dict; the message says where.
    """
    whole = {
        "headline": headline(sections),
        "failures": [sentence for section in sections for sentence in section.failures],
        "stamp": asdict(stamp),
        "sections": {
            section.name: {
                "title": section.title,
                "compared": section.compared,
                "failures": section.failures,
                "data": section.data,
            }
            for section in sections
        },
    }
    return json.dumps(plain(whole, "report"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any, where: str) -> Any:
    """``value`` of what JSON knows; ``where`` is its place, for the message."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, Mapping):
        return {str(key): plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(entry, f"{where}[{n}]") for n, entry in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON does not know: {value!r}")
