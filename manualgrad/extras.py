"""Optional packages: the extra ``report`` installs what plots, tables and the HTML report need."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

PLOTS = ("matplotlib",)
REPORT = (*PLOTS, "jinja2", "markdown_it", "tabulate")
INSTALL_REPORT = 'pip install "manualgrad[report]"'


def find_import_problem(modules: Sequence[str]) -> str | None:
    """Import ``modules``; return a sentence with the reasons why some cannot be imported, or None."""
    reasons = []
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            reasons.append(str(error))
        except ValueError as error:  # matplotlib, for an environment variable MPLBACKEND that names no backend
            reasons.append(f"{name} refuses its settings: {error}")
    return f"{', '.join(reasons)}. Install what is missing with: {INSTALL_REPORT}" if reasons else None
