"""Source text of the call at a place of native's code, such as `a[t + 1]`."""

from __future__ import annotations

import itertools
import linecache
from typing import Any

MAX_TEXT = 60  # characters of code in a statement


def source_text(site: Any) -> str:
    """The text of one call; "" if Python does not know it (before 3.11), it has several lines, or is long.

    Args:
        site: a :class:`compare.gradients.diagnosis.native_calls.Site`.
    """
    positions = getattr(site.code, "co_positions", None)
    if positions is None:
        return ""
    at = next(itertools.islice(positions(), site.instruction // 2, None), None)
    if at is None or None in at or at[0] != at[1]:
        return ""
    line = linecache.getline(site.code.co_filename, at[0]).encode()
    text = line[at[2] : at[3]].decode(errors="replace").strip()
    return text if len(text) <= MAX_TEXT else ""
