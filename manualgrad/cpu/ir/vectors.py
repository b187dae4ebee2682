"""A small language for loops over vectors of floats, written in Python and compiled by LLVM.

A kernel is a Python function that runs once, at compile time, with an :class:`Emitter` and with :class:`Value`
objects in place of numbers. Each operation appends LLVM instructions:

    with emit.loop(0, n) as i:
        total.set(emit.fma(emit.load(x + i * 4 * emit.lanes, emit.float_vector), factor, total.get()))

``values.py`` defines the operators of values. Nothing checks addresses: the caller of a kernel keeps it within its
tensors (``cpu/conv_pool.py``, ``cpu/small_kernels.py``, ``network/plan.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

from llvmlite import ir

from manualgrad.cpu.ir.values import (
    ADDRESS,
    BIT,
    BYTE,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    VOID,
    Number,
    Value,
    Variable,
    constant,
)
from manualgrad.cpu.signature import BOOL, FLOAT32, INT, POINTER, ArgumentType


class Arguments(SimpleNamespace):
    """A kernel's arguments by name, and values that the kernel derives from them."""

    if TYPE_CHECKING:

        def __getattribute__(self, name: str, /) -> Value: ...


class Emitter:
    """Emits one kernel ``name(arguments, task)``; vectors have ``lanes`` floats, 8 (AVX2) or 16 (AVX-512)."""

    def __init__(self, module: ir.Module, name: str, lanes: int) -> None:
        self.module, self.lanes = module, lanes
        self.float_vector, self.int_vector = ir.VectorType(FLOAT, lanes), ir.VectorType(INT32, lanes)
        self.byte_vector = ir.VectorType(BYTE, lanes)
        self.vector_bytes = lanes * 4
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ADDRESS, INT64]), name)
        self.entry = self.function.append_basic_block("entry")
        self.builder = ir.IRBuilder(self.function.append_basic_block("body"))
        self.arguments = self._value(self.function.args[0])

    def finish(self) -> None:
        """End the kernel. Call once, after its last instruction."""
        self.builder.ret_void()
        ir.IRBuilder(self.entry).branch(self.function.blocks[1])

    def load_arguments(self, types: Mapping[str, ArgumentType]) -> Arguments:
        """Load the kernel's arguments, 8 bytes each, in the order of ``types``; ``task`` is added to them.

        A BOOL is the 64-bit integer 0 or 1."""
        llvm_types = {POINTER: ADDRESS, INT: INT64, FLOAT32: FLOAT, BOOL: INT64}
        values = {
            name: self.load(self.arguments + 8 * n, llvm_types[type_])
            for n, (name, type_) in enumerate(types.items())
        }
        return Arguments(**values, task=self._value(self.function.args[1]))

    # ------------------------------------------------------------------------------ values and memory

    def _value(self, raw: ir.Value) -> Value:
        return Value(self.builder, raw)

    def constant(self, type_: ir.Type, number: Number | Sequence[int]) -> Value:
        return self._value(constant(type_, number))

    def variable(self, initial: Value) -> Variable:
        type_ = initial.raw.type
        variable = Variable(self.builder, ir.IRBuilder(self.entry).alloca(type_), type_)
        variable.set(initial)
        return variable

    def load(self, address: Value, type_: ir.Type) -> Value:
        return self._value(self.builder.load(address.raw, align=_alignment(type_), typ=type_))

    def store(self, value: Value, address: Value) -> None:
        self.builder.store(value.raw, address.raw, align=_alignment(value.raw.type))

    def masked_load(self, address: Value, mask: Value | None, fill: Number) -> Value:
        """Load a vector of floats where ``mask`` is true; other lanes are ``fill``, and their memory is not read.

        None is the mask of all lanes."""
        if mask is None:
            return self.load(address, self.float_vector)
        name = f"llvm.masked.load.v{self.lanes}f32.p0"
        alignment, other = self.constant(INT32, 4), self.constant(self.float_vector, fill)
        return self._intrinsic(name, self.float_vector, address, alignment, mask, other)

    def masked_store(self, vector: Value, address: Value, mask: Value | None) -> None:
        """Store the lanes of a vector of floats where ``mask`` is true, all of them for None."""
        if mask is None:
            self.store(vector, address)
        else:
            name = f"llvm.masked.store.v{self.lanes}f32.p0"
            self._intrinsic(name, VOID, vector, address, self.constant(INT32, 4), mask)

    def prefetch(self, address: Value) -> None:
        """Ask for the cache line at ``address``, which need not be readable."""
        read, keep, data = (self.constant(INT32, n) for n in (0, 2, 1))
        self._intrinsic("llvm.prefetch.p0", VOID, address, read, keep, data)

    def first_lanes(self, count: Value) -> Value:
        """Return the mask of the first ``count`` lanes."""
        return self.constant(self.int_vector, range(self.lanes)) < self.splat(self.trunc(count, INT32))

    def splat(self, value: Value, lanes: int | None = None) -> Value:
        """Return a vector with ``value`` in every lane, ``self.lanes`` of them by default."""
        lanes = lanes or self.lanes
        undefined = ir.Constant(ir.VectorType(value.raw.type, lanes), ir.Undefined)
        first_lane = self.builder.insert_element(undefined, value.raw, constant(INT32, 0))
        all_first = constant(ir.VectorType(INT32, lanes), 0)
        return self._value(self.builder.shuffle_vector(first_lane, undefined, all_first))

    def load_splat(self, address: Value) -> Value:
        """Return a vector with the float at ``address`` in every lane."""
        return self.splat(self.load(address, FLOAT))

    def splat_in_groups(self, vector: Value, group_size: int, position: int) -> Value:
        """Return a vector in which all lanes of each group of ``group_size`` lanes have the one at ``position``."""
        lanes = constant(
            ir.VectorType(INT32, self.lanes),
            [lane // group_size * group_size + position for lane in range(self.lanes)],
        )
        return self._value(self.builder.shuffle_vector(vector.raw, vector.raw, lanes))

    # ------------------------------------------------------------------------------------- arithmetic

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """Return a·b + c with one rounding, for vectors or single floats."""
        type_ = a.raw.type
        return self._intrinsic("llvm.fma.f32" if type_ == FLOAT else f"llvm.fma.v{self.lanes}f32", type_, a, b, c)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """Return a in lanes where ``condition`` is true, b in the others."""
        return self._value(self.builder.select(condition.raw, a.raw, b.raw))

    def zext(self, value: Value, type_: ir.Type) -> Value:
        """Extend unsigned integers, or conditions as 0 and 1, to a wider type."""
        return self._value(self.builder.zext(value.raw, type_))

    def trunc(self, value: Value, type_: ir.Type) -> Value:
        """Truncate integers to a narrower type."""
        return self._value(self.builder.trunc(value.raw, type_))

    def sitofp(self, value: Value) -> Value:
        """Convert a signed integer, or a vector of them, to float."""
        type_ = self.float_vector if isinstance(value.raw.type, ir.VectorType) else FLOAT
        return self._value(self.builder.sitofp(value.raw, type_))

    def fpext(self, value: Value) -> Value:
        """Convert a float to double."""
        return self._value(self.builder.fpext(value.raw, DOUBLE))

    def fptrunc(self, value: Value) -> Value:
        """Round a double to float."""
        return self._value(self.builder.fptrunc(value.raw, FLOAT))

    def bitcast(self, value: Value, type_: ir.Type) -> Value:
        """Return the bits of ``value`` as another type of the same size."""
        return self._value(self.builder.bitcast(value.raw, type_))

    def exp(self, value: Value) -> Value:
        return self._intrinsic("llvm.exp.f32", FLOAT, value)

    def log(self, value: Value) -> Value:
        return self._intrinsic("llvm.log.f32", FLOAT, value)

    def bitmask(self, condition: Value) -> Value:
        """Return the lanes of ``condition`` as bits of a 64-bit integer, lane 0 lowest."""
        packed = self.builder.bitcast(condition.raw, ir.IntType(self.lanes))
        return self._value(self.builder.zext(packed, INT64))

    def cttz(self, bits: Value) -> Value:
        """Return the number of trailing zeros of ``bits``, which must not be 0."""
        return self._intrinsic("llvm.cttz.i64", INT64, bits, self.constant(BIT, 1))

    def reduce_add(self, vector: Value) -> Value:
        """Return the sum of all lanes: the upper half is added to the lower half until one lane is left."""
        return self._reduce(vector, lambda low, high: low + high)

    def reduce_max(self, vector: Value) -> Value:
        """Return the largest of all lanes, none of them NaN."""
        return self._reduce(vector, lambda low, high: self.select(high > low, high, low))

    def _reduce(self, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
        raw, width = vector.raw, self.lanes
        while width > 1:
            width //= 2
            low, high = (
                self.builder.shuffle_vector(raw, raw, constant(ir.VectorType(INT32, width), range(n, n + width)))
                for n in (0, width)
            )
            raw = combine(self._value(low), self._value(high)).raw
        return self._value(self.builder.extract_element(raw, constant(INT32, 0)))

    def permute(self, low: Value, high: Value, index: Value, from_high: Value) -> Value:
        """Look up one float per lane in two tables of 8 floats, at the addresses ``low`` and ``high``.

        ``index`` (0 to 7) is the place in the table, ``from_high`` true in lanes that read the second table."""
        table_type = ir.VectorType(FLOAT, 8)
        low, high = self.load(low, table_type), self.load(high, table_type)
        if self.lanes == 16:
            table = self.builder.shuffle_vector(low.raw, high.raw, constant(self.int_vector, range(16)))
            index = index | self.select(
                from_high, self.constant(self.int_vector, 8), self.constant(self.int_vector, 0)
            )
            return self._intrinsic("llvm.x86.avx512.permvar.sf.512", self.float_vector, self._value(table), index)
        permuted = [self._intrinsic("llvm.x86.avx2.permps", table_type, table, index) for table in (high, low)]
        return self.select(from_high, *permuted)

    def _intrinsic(self, name: str, return_type: ir.Type, *arguments: Value) -> Value:
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(return_type, [a.raw.type for a in arguments]), name)
        return self._value(self.builder.call(function, [a.raw for a in arguments]))

    # ----------------------------------------------------------------------------------- control flow

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: Value | int = 1) -> Iterator[Value]:
        """Loop over ``range(start, stop, step)``, for a positive step."""
        start, stop, step = (n if isinstance(n, Value) else self.constant(INT64, n) for n in (start, stop, step))
        body, after = (self.function.append_basic_block(name) for name in ("loop", "after"))
        before = self.builder.block
        self.builder.cbranch((start < stop).raw, body, after)
        self.builder.position_at_end(body)
        index = self.builder.phi(INT64)
        index.add_incoming(start.raw, before)
        yield self._value(index)
        next_index = self.builder.add(index, step.raw)
        index.add_incoming(next_index, self.builder.block)
        self.builder.cbranch(self.builder.icmp_signed("<", next_index, stop.raw), body, after)
        self.builder.position_at_end(after)

    @contextmanager
    def block_loop(self, count: Value, size: Value | int) -> Iterator[tuple[Value, Value]]:
        """Loop over the blocks of ``range(count)``: (start, stop) of each. The last may be shorter than ``size``."""
        size = size if isinstance(size, Value) else self.constant(INT64, size)
        with self.loop(0, (count + size - 1) // size) as block:
            start = block * size
            yield start, self.select(start + size < count, start + size, count)

    @contextmanager
    def bit_loop(self, bits: Value) -> Iterator[Value]:
        """Loop over the positions of the 1 bits of ``bits``, from the lowest."""
        body, after = (self.function.append_basic_block(name) for name in ("bit", "after"))
        before = self.builder.block
        self.builder.cbranch((bits == 0).raw, after, body)
        self.builder.position_at_end(body)
        phi = self.builder.phi(INT64)
        phi.add_incoming(bits.raw, before)
        remaining = self._value(phi)
        yield self.cttz(remaining)
        remaining = remaining & (remaining - 1)
        phi.add_incoming(remaining.raw, self.builder.block)
        self.builder.cbranch((remaining == 0).raw, after, body)
        self.builder.position_at_end(after)

    @contextmanager
    def if_then(self, condition: Value) -> Iterator[None]:
        with self.builder.if_then(condition.raw):
            yield

    def call(self, function: Value, return_type: ir.Type, *arguments: Value) -> Value:
        """Call the function whose address is the integer ``function``; return its result."""
        type_ = ir.FunctionType(return_type, [a.raw.type for a in arguments])
        pointer = self.builder.inttoptr(function.raw, ir.PointerType(type_))
        return self._value(self.builder.call(pointer, [a.raw for a in arguments]))


def _alignment(type_: ir.Type) -> int:
    """Alignment of a load or store in bytes: the size of one element, since nothing guarantees more."""
    element = type_.element if isinstance(type_, ir.VectorType) else type_
    return {FLOAT: 4, BYTE: 1, INT32: 4, INT64: 8, ADDRESS: 8}[element]
