"""report.json: all results as numbers, in strict JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from numbers import Integral, Real
from typing import Any

from compare.printable import printable
from compare.report.headline import headline
from compare.run_info import RunInfo
from compare.sections import Section


def as_json(sections: Sequence[Section], run_info: RunInfo) -> str:
    """Return the report as JSON.

    NaN and infinity, which JSON does not have, are the strings "nan", "inf" and "-inf", which Python's float() reads.
    Control characters and lone surrogates are escaped, as on the pages.

    Raises:
        TypeError: a section's ``data`` has a value that is no number, text, list or dict; the message says where.
    """
    report = {
        "headline": headline(sections),
        "failures": [sentence for section in sections for sentence in section.failures],
        "errors": [sentence for section in sections for sentence in section.errors],
        "stamp": asdict(run_info),
        "sections": {
            section.name: {
                "title": section.title,
                "compared": section.compared,
                "failures": section.failures,
                "errors": section.errors,
                "data": section.data,
            }
            for section in sections
        },
    }
    return json.dumps(to_json_types(report, "report"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_json_types(value: Any, location: str) -> Any:
    """Convert ``value`` to types that JSON has; ``location`` is its place in the report, for the error message."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, Mapping):
        return {printable(str(key)): to_json_types(item, f"{location}[{key!r}]") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [to_json_types(item, f"{location}[{n}]") for n, item in enumerate(value)]
    raise TypeError(f"{location} is a {type(value).__name__}, which JSON cannot represent: {value!r}")
