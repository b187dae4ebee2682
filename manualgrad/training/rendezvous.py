"""Rendezvous of the ranks of one start of torchrun.

torchrun keeps one store for all its restarts. The keys that a lost process wrote stay in it and look like those that
its successor is about to write. A rank that arrives early would therefore connect to a process that no longer exists,
and wait. So rank 0 publishes a new random session name, each other rank registers a random name of its own under that
session, and rank 0 answers with the list of the registered names.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

POLL_SECONDS = 0.05


def rendezvous(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """Return a store that only the ``world_size`` ranks of this start share.

    Raises:
        dist.DistStoreError: a rank did not arrive within ``timeout``.
    """
    own_name = uuid.uuid4().hex
    if rank == 0:
        store.set("meeting", own_name)
        names = [store.get(f"{own_name}/{other}").decode() for other in range(1, world_size)]
        store.set(f"{own_name}/complete", " ".join(names))
        return PrefixStore(own_name, store)
    deadline = time.monotonic() + timeout.total_seconds()
    joined_session = None
    while time.monotonic() < deadline:
        session = store.get("meeting").decode()
        if session != joined_session:
            store.set(f"{session}/{rank}", own_name)
            joined_session = session
        if store.check([f"{session}/complete"]) and own_name in store.get(f"{session}/complete").decode().split():
            return PrefixStore(session, store)
        time.sleep(POLL_SECONDS)  # the session is incomplete, or belongs to an earlier start
    raise dist.DistStoreError(f"rank {rank} of {world_size}: no answer from rank 0 within {timeout}")
