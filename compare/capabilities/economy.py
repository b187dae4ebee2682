"""Whether a function does and keeps only what the gradients that are asked for need: counted, not timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from compare.capabilities.agreement import Fails, NotApplicable
from compare.capabilities.storages import Storages, tensors_in
from compare.capabilities.trial import Trial, pull, upstream

# Where leaving one gradient out natively saves at least a twentieth of the whole, it must save at least a quarter of
# that share: what two functions share between their gradients differs, but a Function that does not look at
# needs_input_grad saves nothing.
WORTH_SAVING, PART = 0.05, 0.25
ALONE, WITHOUT = " alone", "all but "


class Work(TorchDispatchMode):
    """Counts what every operator does: a product by PyTorch's formula, anything else by the numbers read and written.

    Views count 0. What a function does outside PyTorch's operators is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        formula = flop_registry.get(operator._overloadpacket)
        if formula is not None:
            self.done += formula(*args, **kwargs, out_val=result) // 2  # a multiplication and an addition are one
            return result
        read, written = tensors_in((args, kwargs)), tensors_in(result)
        memory = {tensor.untyped_storage()._cdata for tensor in read}
        view = bool(written) and all(tensor.untyped_storage()._cdata in memory for tensor in written)
        if operator._schema.is_mutable or not view:
            self.done += sum(tensor.numel() for tensor in (*read, *written))
        return result


def only_what_is_asked(trial: Trial, native: Mapping[str, float] | None) -> Mapping[str, float]:
    """The work of backward, counted by operator, when one input alone asks for its gradient and when all but one
    do: leaving one out must save work where it natively does."""

    def work(asking: Sequence[str]) -> int:
        leaves = trial.leaves(asking=asking)
        outputs = trial(*leaves)
        incoming = upstream(outputs)
        with Work() as count:
            pull(outputs, leaves, incoming)
        return count.done

    return _economical(trial, native, work, "computes", "no gradient takes any work")


def only_what_is_needed(trial: Trial, native: Mapping[str, float] | None) -> Mapping[str, float]:
    """Bytes that are held between forward and backward, inputs included and outputs not, when one input alone asks
    for its gradient and when all but one do: leaving one out must let go of some where it natively does."""

    def kept(asking: Sequence[str]) -> int:
        leaves = trial.leaves(asking=asking)
        with Storages() as made:
            inputs = [leaf.clone() for leaf in leaves]
            outputs = trial(*inputs)
            del inputs
        return made.alive(but=outputs)

    return _economical(trial, native, kept, "keeps", "nothing is kept")


def _economical(
    trial: Trial, native: Mapping[str, float] | None, measure: Callable[[Sequence[str]], int], verb: str, nothing: str
) -> Mapping[str, float]:
    """Shares of the whole: under "x alone" when x alone asks, under "all but x" when all others do."""
    names = trial.floating
    if len(names) < 2:
        raise NotApplicable("one input has a gradient: there is nothing to leave out")
    whole = measure(names)
    if not whole:
        raise NotApplicable(nothing)
    shares = {name + ALONE: measure([name]) / whole for name in names}
    shares |= {WITHOUT + name: measure([n for n in names if n != name]) / whole for name in names}
    saved = {name: 1 - shares[WITHOUT + name] for name in names}
    if native is None:
        if max(saved.values()) < WORTH_SAVING:
            raise Fails(f"{verb} as much, whichever gradient is left out", shares)
        return shares
    for name in names:
        natively = 1 - native[WITHOUT + name]
        if natively >= WORTH_SAVING and saved[name] < PART * natively:
            raise Fails(
                f"without the gradient of {name}, {verb} {100 - 100 * saved[name]:.0f} % of what it does for all; "
                f"natively {100 - 100 * natively:.0f} %",
                shares,
            )
    return shares
