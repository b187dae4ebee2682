"""A small language for loops over vectors of floats, written in Python and compiled by LLVM.

A kernel is a Python function that is run once, with an :class:`Emitter` and with :class:`Value` objects in place of
numbers. What it does with them is written down as LLVM instructions:

    with emit.loop(0, n) as i:
        total.set(emit.fma(emit.load(x + i * 4 * emit.lanes, emit.floats), factor, total.get()))

What values can do stands in ``values.py``. Where a kernel may read and write is for its caller to see to
(``cpu/conv_pool.py``, ``cpu/small_kernels.py``, ``network/plan.py``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

from llvmlite import ir

from manualgrad.cpu.ir.values import (
    ADDRESS,
    BIT,
    BYTE,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    Number,
    Value,
    Variable,
    constant,
)


class Emitter:
    """Writes one function ``name(address)``; vectors have ``lanes`` floats, 8 (AVX2) or 16 (AVX-512)."""

    def __init__(self, module: ir.Module, name: str, lanes: int) -> None:
        self.module, self.lanes = module, lanes
        self.floats, self.ints = ir.VectorType(FLOAT, lanes), ir.VectorType(INT32, lanes)
        self.bytes = ir.VectorType(BYTE, lanes)
        self.bytes_of_vector = lanes * 4
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ADDRESS, INT64]), name)
        self.entry = self.function.append_basic_block("entry")
        self.builder = ir.IRBuilder(self.function.append_basic_block("body"))
        self.arguments = self.value(self.function.args[0])

    def finish(self) -> None:
        """To be called once, at the end."""
        self.builder.ret_void()
        ir.IRBuilder(self.entry).branch(self.function.blocks[1])

    def named(self, names: Sequence[str]) -> SimpleNamespace:
        """The function's arguments, which lie one after the other at its address: whole numbers, or addresses where
        the name begins with ``*``, or floats where it ends with ``.0``."""
        found = {}
        for n, name in enumerate(names):
            type_ = ADDRESS if name.startswith("*") else FLOAT if name.endswith(".0") else INT64
            found[name.removeprefix("*").removesuffix(".0")] = self.load(self.arguments + 8 * n, type_)
        return SimpleNamespace(**found, slot=self.value(self.function.args[1]))

    # ------------------------------------------------------------------------------ values and memory

    def value(self, raw: ir.Value) -> Value:
        return Value(self.builder, raw)

    def number(self, type_: ir.Type, number: Number | Sequence[int]) -> Value:
        return self.value(constant(type_, number))

    def variable(self, first: Value) -> Variable:
        type_ = first.raw.type
        variable = Variable(self.builder, ir.IRBuilder(self.entry).alloca(type_), type_)
        variable.set(first)
        return variable

    def load(self, address: Value, type_: ir.Type) -> Value:
        return self.value(self.builder.load(address.raw, align=_alignment(type_), typ=type_))

    def store(self, value: Value, address: Value) -> None:
        self.builder.store(value.raw, address.raw, align=_alignment(value.raw.type))

    def every_lane(self, value: Value) -> Value:
        """A vector that holds ``value`` in every lane."""
        empty = ir.Constant(ir.VectorType(value.raw.type, self.lanes), ir.Undefined)
        one = self.builder.insert_element(empty, value.raw, constant(INT32, 0))
        return self.value(self.builder.shuffle_vector(one, empty, constant(self.ints, 0)))

    def broadcast(self, address: Value) -> Value:
        """The float that lies there, in every lane."""
        return self.every_lane(self.load(address, FLOAT))

    # ------------------------------------------------------------------------------------- arithmetic

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a·b + c, rounded once; of vectors or of single floats."""
        type_ = a.raw.type
        return self._intrinsic("llvm.fma.f32" if type_ == FLOAT else f"llvm.fma.v{self.lanes}f32", type_, a, b, c)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """a where ``condition`` holds, b elsewhere, lane by lane."""
        return self.value(self.builder.select(condition.raw, a.raw, b.raw))

    def widened(self, small: Value, type_: ir.Type) -> Value:
        """Whole numbers without a sign (or conditions, as 0 and 1) in a wider type."""
        return self.value(self.builder.zext(small.raw, type_))

    def narrowed(self, large: Value, type_: ir.Type) -> Value:
        return self.value(self.builder.trunc(large.raw, type_))

    def float_of(self, number: Value) -> Value:
        """Of one whole number, or of each in a vector."""
        type_ = self.floats if isinstance(number.raw.type, ir.VectorType) else FLOAT
        return self.value(self.builder.sitofp(number.raw, type_))

    def double_of(self, number: Value) -> Value:
        return self.value(self.builder.fpext(number.raw, DOUBLE))

    def rounded(self, number: Value) -> Value:
        """A double as a float."""
        return self.value(self.builder.fptrunc(number.raw, FLOAT))

    def exp(self, number: Value) -> Value:
        return self._intrinsic("llvm.exp.f32", FLOAT, number)

    def log(self, number: Value) -> Value:
        return self._intrinsic("llvm.log.f32", FLOAT, number)

    def bits(self, condition: Value) -> Value:
        """The lanes in which ``condition`` holds, as the bits of a whole number."""
        packed = self.builder.bitcast(condition.raw, ir.IntType(self.lanes))
        return self.value(self.builder.zext(packed, INT64))

    def lowest_bit(self, bits: Value) -> Value:
        """The place of the lowest 1 of ``bits``, which must have one."""
        return self._intrinsic("llvm.cttz.i64", INT64, bits, self.number(BIT, 1))

    def sum_lanes(self, value: Value) -> Value:
        """The sum of all lanes, halves first."""
        raw, width = value.raw, self.lanes
        while width > 1:
            width //= 2
            low, high = (
                self.builder.shuffle_vector(raw, raw, constant(ir.VectorType(INT32, width), range(n, n + width)))
                for n in (0, width)
            )
            raw = self.builder.fadd(low, high)
        return self.value(self.builder.extract_element(raw, constant(INT32, 0)))

    def pick(self, low: Value, high: Value, place: Value, from_high: Value) -> Value:
        """Lane by lane the element number ``place`` (0 to 7) of ``low``, or where ``from_high`` of ``high``; those
        two are the addresses of 8 floats each."""
        eight = ir.VectorType(FLOAT, 8)
        low, high = self.load(low, eight), self.load(high, eight)
        if self.lanes == 16:
            both = self.builder.shuffle_vector(low.raw, high.raw, constant(self.ints, range(16)))
            place = place | self.select(from_high, self.number(self.ints, 8), self.number(self.ints, 0))
            return self._intrinsic("llvm.x86.avx512.permvar.sf.512", self.floats, self.value(both), place)
        picked = (self._intrinsic("llvm.x86.avx2.permps", eight, table, place) for table in (high, low))
        return self.select(from_high, *picked)

    def _intrinsic(self, name: str, returned: ir.Type, *arguments: Value) -> Value:
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(returned, [a.raw.type for a in arguments]), name)
        return self.value(self.builder.call(function, [a.raw for a in arguments]))

    # ------------------------------------------------------------------------------------------- flow

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: Value | int = 1) -> Iterator[Value]:
        """For every number from ``start`` up to, but without, ``stop``."""
        start, stop, step = (n if isinstance(n, Value) else self.number(INT64, n) for n in (start, stop, step))
        body, after = (self.function.append_basic_block(name) for name in ("loop", "after"))
        before = self.builder.block
        self.builder.cbranch((start < stop).raw, body, after)
        self.builder.position_at_end(body)
        at = self.builder.phi(INT64)
        at.add_incoming(start.raw, before)
        yield self.value(at)
        following = self.builder.add(at, step.raw)
        at.add_incoming(following, self.builder.block)
        self.builder.cbranch(self.builder.icmp_signed("<", following, stop.raw), body, after)
        self.builder.position_at_end(after)

    @contextmanager
    def each_part(self, count: Value, size: Value | int) -> Iterator[tuple[Value, Value]]:
        """The numbers below ``count``, ``size`` at a time: the first of each part, and the first after it."""
        size = size if isinstance(size, Value) else self.number(INT64, size)
        with self.loop(0, (count + size - 1) // size) as part:
            start = part * size
            yield start, self.select(start + size < count, start + size, count)

    @contextmanager
    def each_bit(self, bits: Value) -> Iterator[Value]:
        """For the place of every 1 of ``bits``, from the lowest."""
        body, after = (self.function.append_basic_block(name) for name in ("bit", "after"))
        before = self.builder.block
        self.builder.cbranch((bits == 0).raw, after, body)
        self.builder.position_at_end(body)
        left = self.builder.phi(INT64)
        left.add_incoming(bits.raw, before)
        rest = self.value(left)
        yield self.lowest_bit(rest)
        rest = rest & (rest - 1)
        left.add_incoming(rest.raw, self.builder.block)
        self.builder.cbranch((rest == 0).raw, after, body)
        self.builder.position_at_end(after)

    def call(self, function: Value, returned: ir.Type, *arguments: Value) -> Value:
        """What the function at an address, given as a whole number, returns for ``arguments``."""
        type_ = ir.FunctionType(returned, [a.raw.type for a in arguments])
        pointer = self.builder.inttoptr(function.raw, ir.PointerType(type_))
        return self.value(self.builder.call(pointer, [a.raw for a in arguments]))

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        with self.builder.if_then(condition.raw):
            yield


def _alignment(type_: ir.Type) -> int:
    """Addresses are multiples of an element's size, no more."""
    element = type_.element if isinstance(type_, ir.VectorType) else type_
    return {FLOAT: 4, BYTE: 1, INT32: 4, INT64: 8, ADDRESS: 8}[element]
