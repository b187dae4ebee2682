"""What a function must not do: miss a change in place, write into its arguments, leak, or mix up runs."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from compare.capabilities.agreement import Fails, NotApplicable, must_agree, must_be_the_same
from compare.capabilities.storages import Storages
from compare.capabilities.trial import Trial, output_names, pull, there_and_back, upstream

RUNS = 3
THREADS, ROUNDS = 4, 6
SWITCH = 1e-5  # seconds between two threads' turns: 500 times as often as usual, so that races are met in a short run


def in_place_changes(trial: Trial, native: None) -> None:
    """Every input, and every output, is changed in place between forward and backward: backward must notice and
    raise, or not have needed it and be right."""
    for name in [*trial.inputs, *output_names(trial.plain[0])]:
        leaves = trial.leaves()
        inputs = dict(zip(trial.inputs, (leaf.clone() for leaf in leaves), strict=True))  # a leaf may not be changed
        outputs = trial(*inputs.values())
        results = dict(zip(output_names(outputs), outputs, strict=True))
        try:
            if name in results:
                _change(results[name])  # with its graph, as a following layer would
            else:
                with torch.no_grad():
                    _change(inputs[name])
        except RuntimeError:  # it cannot be changed: nothing can go wrong unnoticed
            continue
        try:
            found = pull(outputs, leaves, upstream(outputs))
        except RuntimeError as error:
            if "inplace" in str(error) or "in-place" in str(error):
                continue
            raise
        must_agree(found, trial.plain[1], trial.gradient_names(), f"{name} changed before backward")


def _change(tensor: Tensor) -> None:
    """Adds 1; indices are turned around, so that they remain indices."""
    if tensor.is_floating_point():
        tensor.add_(1)
    elif tensor.dim():
        tensor.copy_(tensor.flip(tuple(range(tensor.dim()))))


def arguments_unchanged(trial: Trial, native: None) -> None:
    """Inputs and incoming gradients are after a run, to the bit, what they were before, and so are outputs after
    backward."""
    leaves = trial.leaves()
    inputs = [leaf.clone() for leaf in leaves]
    outputs = trial(*inputs)
    incoming = upstream(outputs)
    before = [output.detach().clone() for output in outputs]
    pull(outputs, leaves, incoming)
    must_be_the_same(inputs, list(trial.inputs.values()), list(trial.inputs), "was written into")
    must_be_the_same(
        incoming, upstream(outputs), [f"the gradient of {n}" for n in output_names(outputs)], "was written into"
    )
    must_be_the_same(outputs, before, output_names(outputs), "was written into by backward")


def deterministic(trial: Trial, native: None) -> None:
    """Three runs on the same inputs give the same bits, outputs and gradients."""
    first = there_and_back(trial, trial.leaves())
    for _ in range(RUNS - 1):
        again = there_and_back(trial, trial.leaves())
        must_be_the_same(again[0], first[0], output_names(again[0]), "has other bits in another run")
        must_be_the_same(again[1], first[1], trial.gradient_names(), "has other bits in another run")


def no_leaks(trial: Trial, native: None) -> None:
    """With Python's collector of cycles off, all memory of a run is given back when its results are dropped, with
    backward and without; what every one of three runs leaves behind is a leak, what only the first does is a
    cache."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        for backward in (True, False):
            left = [_left_behind(trial, backward) for _ in range(RUNS)]
            held = min(made.alive() for made in left)
            if held:
                raise Fails(
                    f"{held} bytes are still held after {'backward' if backward else 'forward without backward'}"
                )
    finally:
        if collecting:
            gc.enable()


def _left_behind(trial: Trial, backward: bool) -> Storages:
    leaves = trial.leaves()
    with Storages() as made:
        inputs = [leaf.clone() for leaf in leaves]
        outputs = trial(*inputs)
        if backward:
            pull(outputs, leaves, upstream(outputs))
    return made


def threads(trial: Trial, native: None) -> None:
    """Four Python threads run there and back at once, each on inputs of its own; outputs and gradients must be
    those of one after the other."""
    if _shares_a_module(trial):
        raise NotApplicable("functional_call puts the inputs into a module, which one thread at a time can use")
    draws = [trial.draw(seed) for seed in range(THREADS)]
    alone = [there_and_back(trial, trial.leaves(inputs)) for inputs in draws]
    start = threading.Barrier(THREADS)

    def run(n: int) -> list[tuple[list[Tensor], list[Tensor]]]:
        start.wait()
        return [there_and_back(trial, trial.leaves(draws[n])) for _ in range(ROUNDS)]

    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            together = list(pool.map(run, range(THREADS)))
    finally:
        sys.setswitchinterval(usual)
    for expected, rounds in zip(alone, together, strict=True):
        for found in rounds:
            must_agree(found[0], expected[0], output_names(found[0]), "beside other threads")
            must_agree(found[1], expected[1], trial.gradient_names(), "beside other threads")


def _shares_a_module(trial: Trial) -> bool:
    """Whether a module is called in which something other than its own parameters stands for them."""
    swapped = False

    def look(module: nn.Module, _: object) -> None:
        nonlocal swapped
        own = [p for p in module._parameters.values() if p is not None]
        swapped = swapped or not all(isinstance(p, nn.Parameter) for p in own)

    hook = register_module_forward_pre_hook(look)
    try:
        trial(*trial.leaves())
    finally:
        hook.remove()
    return swapped
