"""Processes find each other, and only those of the same start.

torchrun keeps one store for all its restarts, and what a process left there before it was lost looks like what its
successor is about to write: whoever comes early connects to the dead, and waits. So process 0 calls a meeting under a
name that nobody has used, the others put their own names there, and it answers with the names of those who came.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch import distributed as dist

PAUSE_SECONDS = 0.05


def meet(store: dist.Store, rank: int, count: int, patience: timedelta) -> dist.Store:
    """A part of ``store`` for the ``count`` processes that are here now, for this one and those it meets.

    Raises dist.DistStoreError where not all have come after ``patience``.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("meeting", me)
        names = [store.get(f"{me}/{other}").decode() for other in range(1, count)]
        store.set(f"{me}/complete", " ".join(names))
        return dist.PrefixStore(me, store)
    deadline = time.monotonic() + patience.total_seconds()
    answered = None
    while time.monotonic() < deadline:
        meeting = store.get("meeting").decode()
        if meeting != answered:
            store.set(f"{meeting}/{rank}", me)
            answered = meeting
        if store.check([f"{meeting}/complete"]) and me in store.get(f"{meeting}/complete").decode().split():
            return dist.PrefixStore(meeting, store)
        time.sleep(PAUSE_SECONDS)  # not complete yet, or the meeting of an earlier start
    raise dist.DistStoreError(f"process {rank} of {count} met no process 0 within {patience}")
