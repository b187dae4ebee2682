"""Promise: a call with a missing, surplus or wrong argument names kernel and argument, and nothing runs."""

from __future__ import annotations

import ctypes

import pytest

from manualgrad import kernels
from manualgrad.cpu import instruction_set, team
from manualgrad.cpu.kernel_groups import group_kernels
from manualgrad.cpu.signature import BOOL, FLOAT32, INT, POINTER, BufferRef, Signature

SIGNATURE = Signature("toy", {"x": POINTER, "numel": INT, "factor": FLOAT32, "adds": BOOL})
RIGHT = {"x": 64, "numel": 3, "factor": 0.5, "adds": True}
WRONG = {
    "missing": ({"numel"}, {}, "argument numel is missing"),
    "surplus": (set(), {"share": 1}, "there is no argument share"),
    "misspelt": ({"numel"}, {"num": 3}, "argument numel is missing, there is no argument num"),
    "fraction for an integer": (set(), {"numel": 3.0}, r"argument numel must be an integer, got 3.0 \(float\)"),
    "bool for an integer": (set(), {"numel": True}, r"argument numel must be an integer, got True \(bool\)"),
    "integer for a bool": (set(), {"adds": 1}, r"argument adds must be True or False, got 1 \(int\)"),
    "string for a number": (set(), {"factor": "2"}, r"argument factor must be a number, got '2' \(str\)"),
    "None for an address": (set(), {"x": None}, r"argument x must be an address or a BufferRef, got None"),
}


@pytest.mark.parametrize("checked_before", [False, True])
@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_arguments_are_named(mistake, checked_before):
    left_out, wrong, message = WRONG[mistake]
    signature = Signature("toy", SIGNATURE.types)
    if checked_before:
        signature.encode(RIGHT)
    with pytest.raises(TypeError, match=f"^kernel toy: {message}"):
        signature.encode({name: value for name, value in RIGHT.items() if name not in left_out} | wrong)


def test_arguments_are_encoded_in_the_order_of_the_declaration():
    words = SIGNATURE.encode(dict(reversed(RIGHT.items())))
    assert words == [64, 3, ctypes.c_int32.from_buffer(ctypes.c_float(0.5)).value, 1]
    assert SIGNATURE.encode(RIGHT | {"x": BufferRef("g", 8), "factor": 1})[0] == BufferRef("g", 8)


@pytest.mark.skipif(not kernels.available().instructions, reason=str(kernels.available()))
def test_no_kernel_runs_with_wrong_arguments():
    module = instruction_set.current_module()
    assert module.signatures.keys() == module.addresses.keys() == group_kernels().keys()
    one = ctypes.c_float(1)
    arguments = {"z": ctypes.addressof(one), "out": ctypes.addressof(one), "numel": 1, "share": 1}
    for call in (module.call, lambda *names, **values: team.run(module, *names, 1, **values)):
        with pytest.raises(TypeError, match="kernel relu_forward: there is no argument rows"):
            call("relu_forward", **arguments, rows=1)
    team.run(module, "relu_forward", 1, **arguments)
    assert one.value == 1
