"""Stores past the caches, for results that do not fit into them.

The processor reads memory into a cache before a usual store writes to it. These stores write whole cache lines
without that, if all of a line is stored and nothing else of it is read or stored meanwhile.
"""

from __future__ import annotations

from manualgrad.cpu.ir.values import INT32, INT64, Value, constant
from manualgrad.cpu.ir.vectors import Emitter


def stream(emit: Emitter, vector: Value, address: Value) -> None:
    """Store a vector of floats past the caches if ``address`` is a multiple of its size in bytes, else into them."""
    nbytes = 4 * vector.raw.type.count
    is_aligned = Value(emit.builder, emit.builder.ptrtoint(address.raw, INT64)) & (nbytes - 1) == 0
    with emit.if_then(is_aligned):
        # without the fences, which no processor sees, LLVM would merge this store with that of the other branch
        emit.builder.fence("seq_cst", "singlethread")
        instruction = emit.builder.store(vector.raw, address.raw, align=nbytes)
        instruction.set_metadata("nontemporal", emit.module.add_metadata([constant(INT32, 1)]))
        emit.builder.fence("seq_cst", "singlethread")
    with emit.if_then(is_aligned == 0):
        emit.store(vector, address)


def end_streams(emit: Emitter) -> None:
    """Make what :func:`stream` stored visible to other threads before anything that follows."""
    emit.builder.fence("seq_cst")
