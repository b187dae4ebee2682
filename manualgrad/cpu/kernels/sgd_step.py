"""What a step of gradient descent needs besides the network: its images, what they were taken for, and the update.

x = (u − m) / s                   of bytes u, with m and s in the same units
S_label, and whether it is largest
w ← w − η ∂J/∂w                   unless something was not finite
"""

from __future__ import annotations

from manualgrad.cpu.ir.tiles import share
from manualgrad.cpu.ir.values import BYTE, FLOAT, INT32, INT64, Value
from manualgrad.cpu.ir.vectors import Emitter

GATHER = (
    "*images",  # bytes, of which each row lies dense
    "*chosen",  # [image], whole numbers of 8 bytes: which one is meant
    "*x",  # [image][row][column]
    "rows",  # images of x
    "share",  # how many of them a slot gathers
    "height",
    "width",
    "image_step",  # bytes from one image to the next
    "row_step",  # and from one row to the next
    "mean.0",
    "std.0",
)
ANSWERS = (
    "*s",  # [row][class]
    "*labels",  # [row], whole numbers of 8 bytes, each a class
    "*known",  # [row]: S at the label
    "*right",  # one whole number of 8 bytes: how many rows have the first of their largest there
    "rows",
    "classes",
)
DESCEND = (
    "*w",
    "*g",
    "rows",  # floats of both
    "share",  # how many of them a slot changes
    "*rate",  # η
    "*counts",  # nothing is changed if the second of these whole numbers is not 0,
    "*odd",  # or one of these floats is not finite
    "odds",
    "*cost",  # or this one
)


def gather(emit: Emitter) -> None:
    """A slot's images as numbers."""
    a = emit.named(GATHER)
    with emit.loop(*share(emit, a)) as n:
        image = a.images + emit.load(a.chosen + n * 8, INT64) * a.image_step
        x = a.x + n * a.height * a.width * 4
        whole = a.width - a.width % emit.lanes
        with emit.loop(0, a.height) as row:
            source, to = image + row * a.row_step, x + row * a.width * 4
            with emit.loop(0, whole, emit.lanes) as at:
                numbers = emit.float_of(emit.widened(emit.load(source + at, emit.bytes), emit.ints))
                emit.store((numbers - emit.every_lane(a.mean)) / emit.every_lane(a.std), to + at * 4)
            with emit.loop(whole, a.width) as at:
                number = emit.float_of(emit.widened(emit.load(source + at, BYTE), INT32))
                emit.store((number - a.mean) / a.std, to + at * 4)


def answers(emit: Emitter) -> None:
    """By the first slot."""
    a = emit.named(ANSWERS)
    with emit.when(a.slot == 0):
        right = emit.variable(emit.number(INT64, 0))
        with emit.loop(0, a.rows) as row:
            label, s = emit.load(a.labels + row * 8, INT64), a.s + row * a.classes * 4
            label = emit.select(label.below(a.classes), label, emit.number(INT64, 0))  # inside, whatever it says
            known = emit.load(s + label * 4, FLOAT)
            emit.store(known, a.known + row * 4)
            better = emit.variable(emit.number(INT64, 0))
            with emit.loop(0, a.classes) as c:
                other = emit.load(s + c * 4, FLOAT)
                comes_first = (other > known) | ((other == known) & (c < label))
                better.add(emit.widened(comes_first, INT64))
            right.add(emit.widened(better.get() == 0, INT64))
        emit.store(right.get(), a.right)


def descend(emit: Emitter) -> None:
    """A slot's share of one parameter."""
    a = emit.named(DESCEND)
    wrong = emit.variable(emit.load(a.cost, FLOAT) * 0)
    with emit.loop(0, a.odds) as n:
        wrong.add(emit.load(a.odd + n * 4, FLOAT) * 0)
    outside = emit.load(a.counts + 8, INT64)
    start, end = share(emit, a)
    with emit.when((wrong.get() == 0) & (outside == 0) & (start < end)):
        rate = emit.number(FLOAT, 0) - emit.load(a.rate, FLOAT)
        whole = start + (end - start) // emit.lanes * emit.lanes
        with emit.loop(start, whole, emit.lanes) as n:
            _move(emit, a.w + n * 4, emit.load(a.g + n * 4, emit.floats), emit.every_lane(rate))
        with emit.loop(whole, end) as n:
            _move(emit, a.w + n * 4, emit.load(a.g + n * 4, FLOAT), rate)


def _move(emit: Emitter, w: Value, g: Value, rate: Value) -> None:
    emit.store(emit.fma(rate, g, emit.load(w, g.raw.type)), w)
