"""What stands around a kernel: a function for each thread of a team, and one for a thread alone.

Both are given a block of 8-byte numbers: the addresses of ``omp_get_thread_num`` and ``omp_get_num_threads``, the
number of slots, and then the kernel's arguments."""

from __future__ import annotations

from llvmlite import ir

from manualgrad.kernels.vectors import ADDRESS, BYTE, INT32, INT64, constant

HEADER = 3


def add_teams(module: ir.Module, name: str) -> None:
    """``name_team`` runs every slot whose number leaves this thread's when divided by the threads there are;
    ``name_alone`` runs all. OpenMP may grant fewer threads than were asked for: they are counted where they run."""
    for suffix in ("team", "alone"):
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ADDRESS]), f"{name}_{suffix}")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        block = function.args[0]

        def field(n: int, type_: ir.Type, builder=builder, block=block) -> ir.Value:
            return builder.load(builder.gep(block, [constant(INT64, 8 * n)], source_etype=BYTE), align=8, typ=type_)

        if suffix == "team":
            asked = ir.PointerType(ir.FunctionType(INT32, []))
            thread, threads = (builder.sext(builder.call(field(n, asked), []), INT64) for n in (0, 1))
        else:
            thread, threads = constant(INT64, 0), constant(INT64, 1)
        slots = field(2, INT64)
        arguments = builder.gep(block, [constant(INT64, 8 * HEADER)], source_etype=BYTE)
        loop, after = (function.append_basic_block(part) for part in ("loop", "after"))
        before = builder.block
        builder.cbranch(builder.icmp_signed("<", thread, slots), loop, after)
        builder.position_at_end(loop)
        slot = builder.phi(INT64)
        slot.add_incoming(thread, before)
        builder.call(module.globals[name], [arguments, slot])
        following = builder.add(slot, threads)
        slot.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, slots), loop, after)
        builder.position_at_end(after)
        builder.ret_void()
