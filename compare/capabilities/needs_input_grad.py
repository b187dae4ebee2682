"""Checks that a function computes and saves only what the requested gradients need: counted, not timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from compare.capabilities.assertions import CheckFailed, NotApplicable
from compare.capabilities.function_under_test import FunctionUnderTest, input_grads, random_grad_outputs
from compare.capabilities.storage_tracker import StorageTracker, tensors_in

# A gradient counts if leaving it out saves native at least a twentieth of the total; ours must then save at least a
# quarter of what native saves. Implementations share different work between gradients, but a Function that ignores
# needs_input_grad saves nothing.
MIN_NATIVE_SAVING, MIN_FRACTION_OF_NATIVE_SAVING = 0.05, 0.25
ALONE, ALL_BUT = " alone", "all but "


class WorkCounter(TorchDispatchMode):
    """Counts the work of every operator: multiplications of a product, elements read and written by anything else.

    Views count 0. Work outside PyTorch's operators is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        flop_formula = flop_registry.get(operator._overloadpacket)
        if flop_formula is not None:
            self.work += flop_formula(*args, **kwargs, out_val=result) // 2  # a multiply-add counts 1
            return result
        read, written = tensors_in((args, kwargs)), tensors_in(result)
        read_storages = {tensor.untyped_storage()._cdata for tensor in read}
        is_view = bool(written) and all(tensor.untyped_storage()._cdata in read_storages for tensor in written)
        if operator._schema.is_mutable or not is_view:
            self.work += sum(tensor.numel() for tensor in (*read, *written))
        return result


def computes_only_what_is_needed(
    tested: FunctionUnderTest, native: Mapping[str, float] | None
) -> Mapping[str, float]:
    """The work of backward, counted by operator, with one input requiring a gradient and with all but one; leaving a
    gradient out must save work where it does natively."""

    def work(requires_grad: Sequence[str]) -> int:
        leaves = tested.leaves(requires_grad=requires_grad)
        outputs = tested(*leaves)
        incoming = random_grad_outputs(outputs)
        with WorkCounter() as counter:
            input_grads(outputs, leaves, incoming)
        return counter.work

    return _fractions(tested, native, work, "computes", "no gradient takes any work")


def saves_only_what_is_needed(tested: FunctionUnderTest, native: Mapping[str, float] | None) -> Mapping[str, float]:
    """Bytes held between forward and backward, inputs included and outputs excluded, with one input requiring a
    gradient and with all but one; leaving a gradient out must save memory where it does natively."""

    def held_bytes(requires_grad: Sequence[str]) -> int:
        leaves = tested.leaves(requires_grad=requires_grad)
        with StorageTracker() as tracker:
            inputs = [leaf.clone() for leaf in leaves]
            outputs = tested(*inputs)
            del inputs
        return tracker.live_bytes(exclude=outputs)

    return _fractions(tested, native, held_bytes, "keeps", "nothing is kept")


def _fractions(
    tested: FunctionUnderTest,
    native: Mapping[str, float] | None,
    measure: Callable[[Sequence[str]], int],
    verb: str,
    reason_if_zero: str,
) -> Mapping[str, float]:
    """Fractions of the total: under "x alone" if only x requires a gradient, under "all but x" if all others do."""
    names = tested.floating_names
    if len(names) < 2:
        raise NotApplicable("one input has a gradient: there is nothing to leave out")
    total = measure(names)
    if not total:
        raise NotApplicable(reason_if_zero)
    fractions = {name + ALONE: measure([name]) / total for name in names}
    fractions |= {ALL_BUT + name: measure([n for n in names if n != name]) / total for name in names}
    saved = {name: 1 - fractions[ALL_BUT + name] for name in names}
    if native is None:
        if max(saved.values()) < MIN_NATIVE_SAVING:
            raise CheckFailed(f"{verb} as much, whichever gradient is left out", fractions)
        return fractions
    for name in names:
        native_saved = 1 - native[ALL_BUT + name]
        if native_saved >= MIN_NATIVE_SAVING and saved[name] < MIN_FRACTION_OF_NATIVE_SAVING * native_saved:
            raise CheckFailed(
                f"without the gradient of {name}, {verb} {100 - 100 * saved[name]:.0f} % of what it does for all; "
                f"natively {100 - 100 * native_saved:.0f} %",
                fractions,
            )
    return fractions
