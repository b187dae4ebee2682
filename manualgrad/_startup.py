"""Import path of ``python -m manualgrad``: without the current folder, as for an installed command.

For ``-m``, Python puts the current folder first on ``sys.path``: a person's ``torch.py`` there would be imported in
place of torch.
"""

from __future__ import annotations

import os
import sys


def runs_as_command() -> bool:
    """Return True while Python imports this package for ``python -m manualgrad``."""
    # For -m, argv is ["-m", *arguments] at that time, and the name of the module precedes the arguments in orig_argv.
    return sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] in ("manualgrad", "-mmanualgrad")


def remove_current_folder() -> None:
    """Remove from ``sys.path`` the current folder that ``-m`` has put there; an entry of PYTHONPATH stays."""
    if getattr(sys.flags, "safe_path", False):  # python -P, since 3.11: the folder is not there
        return
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # for a removed folder Python adds no entry
        return
    if sys.path[:1] == [folder]:
        del sys.path[0]
