"""Side effects that a function must not have, and in-place changes that it must notice."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from compare.capabilities.assertions import CheckFailed, NotApplicable, assert_bitwise_equal, assert_close
from compare.capabilities.function_under_test import (
    FunctionUnderTest,
    input_grads,
    output_names,
    random_grad_outputs,
    run_forward_backward,
)
from compare.capabilities.storage_tracker import StorageTracker

RUNS = 3
THREADS, RUNS_PER_THREAD = 4, 6
SWITCH_INTERVAL = 1e-5  # seconds, 1/500 of Python's default, so that a short run meets races between threads


def in_place_changes(tested: FunctionUnderTest, native: None) -> None:
    """Every input and every output is changed in place between forward and backward; backward must raise, or give
    the right gradients because it does not need that tensor."""
    for name in [*tested.inputs, *output_names(tested.baseline[0])]:
        leaves = tested.leaves()
        inputs = dict(zip(tested.inputs, (leaf.clone() for leaf in leaves), strict=True))  # leaves must not change
        outputs = tested(*inputs.values())
        named_outputs = dict(zip(output_names(outputs), outputs, strict=True))
        try:
            if name in named_outputs:
                _change(named_outputs[name])  # with its graph, as a following layer would
            else:
                with torch.no_grad():
                    _change(inputs[name])
        except RuntimeError:  # the tensor refuses the change, so no change can go unnoticed
            continue
        try:
            grads = input_grads(outputs, leaves, random_grad_outputs(outputs))
        except RuntimeError as error:
            if "inplace" in str(error) or "in-place" in str(error):
                continue
            raise
        assert_close(grads, tested.baseline[1], tested.gradient_names(), f"{name} changed before backward")


def _change(tensor: Tensor) -> None:
    """Add 1 in place; reverse the order of integers, so that indices stay valid."""
    if tensor.is_floating_point():
        tensor.add_(1)
    elif tensor.dim():
        tensor.copy_(tensor.flip(tuple(range(tensor.dim()))))


def arguments_unchanged(tested: FunctionUnderTest, native: None) -> None:
    """Inputs and incoming gradients have the same bits before and after a run, outputs before and after backward."""
    leaves = tested.leaves()
    inputs = [leaf.clone() for leaf in leaves]
    outputs = tested(*inputs)
    incoming = random_grad_outputs(outputs)
    outputs_before = [output.detach().clone() for output in outputs]
    input_grads(outputs, leaves, incoming)
    assert_bitwise_equal(inputs, list(tested.inputs.values()), list(tested.inputs), "was modified")
    incoming_names = [f"the gradient of {n}" for n in output_names(outputs)]
    assert_bitwise_equal(incoming, random_grad_outputs(outputs), incoming_names, "was modified")
    assert_bitwise_equal(outputs, outputs_before, output_names(outputs), "was modified by backward")


def deterministic(tested: FunctionUnderTest, native: None) -> None:
    """Three runs on the same inputs give the same bits, outputs and gradients."""
    first = run_forward_backward(tested, tested.leaves())
    for _ in range(RUNS - 1):
        again = run_forward_backward(tested, tested.leaves())
        assert_bitwise_equal(again[0], first[0], output_names(again[0]), "has other bits in another run")
        assert_bitwise_equal(again[1], first[1], tested.gradient_names(), "has other bits in another run")


def no_memory_leaks(tested: FunctionUnderTest, native: None) -> None:
    """Memory of a run is freed when its results are dropped, with backward and without, with Python's garbage
    collection off; memory left by each of three runs is a leak, memory left by the first run alone is a cache."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for backward in (True, False):
            trackers = [_run_and_drop(tested, backward) for _ in range(RUNS)]
            leaked = min(tracker.live_bytes() for tracker in trackers)
            if leaked:
                phase = "backward" if backward else "forward without backward"
                raise CheckFailed(f"{leaked} bytes are still held after {phase}")
    finally:
        if was_enabled:
            gc.enable()


def _run_and_drop(tested: FunctionUnderTest, backward: bool) -> StorageTracker:
    leaves = tested.leaves()
    with StorageTracker() as tracker:
        inputs = [leaf.clone() for leaf in leaves]
        outputs = tested(*inputs)
        if backward:
            input_grads(outputs, leaves, random_grad_outputs(outputs))
    return tracker


def threads(tested: FunctionUnderTest, native: None) -> None:
    """Four Python threads run forward and backward at once, each on its own inputs; outputs and gradients must be
    those of the same runs one after another."""
    if _swaps_parameters(tested):
        raise NotApplicable("functional_call puts the inputs into a module, which only one thread at a time can use")
    inputs_of_thread = [tested.draw_inputs(seed) for seed in range(THREADS)]
    sequential = [run_forward_backward(tested, tested.leaves(inputs)) for inputs in inputs_of_thread]
    start = threading.Barrier(THREADS)

    def run(n: int) -> list[tuple[list[Tensor], list[Tensor]]]:
        start.wait()
        return [run_forward_backward(tested, tested.leaves(inputs_of_thread[n])) for _ in range(RUNS_PER_THREAD)]

    default_interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            concurrent = list(pool.map(run, range(THREADS)))
    finally:
        sys.setswitchinterval(default_interval)
    for expected, runs in zip(sequential, concurrent, strict=True):
        for outputs, grads in runs:
            assert_close(outputs, expected[0], output_names(outputs), "while other threads run")
            assert_close(grads, expected[1], tested.gradient_names(), "while other threads run")


def _swaps_parameters(tested: FunctionUnderTest) -> bool:
    """Return True if the function calls a module with other tensors in place of its parameters."""
    swapped = False

    def inspect_parameters(module: nn.Module, _: object) -> None:
        nonlocal swapped
        parameters = [p for p in module._parameters.values() if p is not None]
        swapped = swapped or not all(isinstance(p, nn.Parameter) for p in parameters)

    hook = register_module_forward_pre_hook(inspect_parameters)
    try:
        tested(*tested.leaves())
    finally:
        hook.remove()
    return swapped
