"""Two operations of native that use each other's operand in backward, such as weights of two neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from compare.gradients.diagnosis import changed_native as changed
from compare.gradients.diagnosis.changed_native import NativeChange
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_paths import NativePaths, Path
from compare.gradients.diagnosis.native_recording import Recording

MAX_PAIRS = 300


def find_exchanged_operands(search: NativePaths) -> Iterator[Finding]:
    """The operands of two calls of the same function are exchanged."""
    own = [
        (path, other, tensor)
        for path in search.paths
        for other, tensor in path.call.tensors
        if other != path.position and search.sites[path.call.site] == 1
    ]
    pairs = [
        (a, b)
        for a, b in itertools.combinations(own, 2)
        if a[0].call.operation == b[0].call.operation and a[0].call is not b[0].call and a[2].shape == b[2].shape
    ]
    for (a, other_a, tensor_a), (b, other_b, tensor_b) in pairs[:MAX_PAIRS]:
        exchange = ((a, other_a, b, other_b), (b, other_b, a, other_a))
        if all(
            _explains(mismatch, recording, exchange)
            for mismatch, recording in (
                (search.mismatch, search.recording), (search.second, search.second_recording)
            )
            if mismatch is not None
        ):  # fmt: skip
            names = [search.names.get(id(tensor), "an operand") for tensor in (tensor_a, tensor_b)]
            search.change = None
            statement = f"in the derivatives through {a.words} and through {b.words}, {names[0]} and {names[1]}"
            yield Finding("another operand", search.mismatch.quantity, f"{statement} are exchanged")


def _explains(mismatch: Mismatch, recording: Recording, exchange: tuple[tuple[Path, int, Path, int], ...]) -> bool:
    calls = {call.number: call for call in recording.calls}
    total = mismatch.oracle.clone()
    for path, other, source_path, source in exchange:
        call, from_call = calls.get(path.call.number), calls.get(source_path.call.number)
        if call is None or from_call is None:
            return False
        operand: Tensor = from_call.flat[source].detach()
        right = recording.derivative(call, NativeChange(call.site, path.position, changed.scaled(1.0)))
        change = changed.at_operand(other, lambda c, operand=operand: operand)
        wrong = recording.derivative(call, NativeChange(call.site, path.position, change))
        if right is None or wrong is None:
            return False
        total = total + wrong - right
    return mismatch.equals(total)
