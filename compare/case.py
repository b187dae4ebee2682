"""What is compared: a function of ours, its native counterpart, and the inputs that both are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Inputs = Mapping[str, Tensor]


class CaseError(Exception):
    """A case that cannot be compared; the message says what is the matter with it."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        name: how reports call it.
        ours: the function on trial: tensors in, a tensor or a tuple of tensors out.
        native: the same made of operations whose gradients are trusted; in float64 it is the oracle.
        make_inputs: called without arguments after ``torch.manual_seed``; a tuple of tensors, in the order that both
            functions take them, or a dict, whose keys are then their names. Each floating-point one gets a gradient.
        conventions: where two answers are right, what other trusted functions give, each under the words that the
            report uses: ``{"derivative 1/2 at 0": lambda x: torch.maximum(x, x.new_zeros(()))}``. What differs from
            ``native``, but agrees with one of them, is counted apart and not called wrong.
        census: counts of what conventions are about, such as tied windows, from the inputs; exact zeros and equal
            neighbours are counted for everybody.
        kinks: a maximum or a ReLU follows a sum inside. Below float64, rounding may then carry a value across the
            kink, natively too, so there the error is judged by its norm and not element by element.
        whole_numbers: also run on inputs rounded to whole numbers, which brings exact zeros and ties.
    """

    name: str
    ours: Callable[..., Any]
    native: Callable[..., Any]
    make_inputs: Callable[[], Sequence[Tensor] | Inputs]
    conventions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    census: Callable[..., Mapping[str, int]] | None = None
    kinks: bool = False
    whole_numbers: bool = True

    @classmethod
    def from_modules(
        cls, name: str, ours: nn.Module, native: nn.Module, make_inputs: Callable[[], Any], **more: Any
    ) -> Case:
        """A pair of modules whose parameters have the same names and shapes: both are given ``native``'s values.

        Each parameter becomes an input of its own, after those of ``make_inputs``, so each gradient is compared.
        Each run begins with the buffers as they are and with the same random state: dropout drops the same.

        Raises:
            ValueError: parameters that differ in name or shape; the message names them.
        """
        shapes = [{key: tuple(p.shape) for key, p in module.named_parameters()} for module in (ours, native)]
        if shapes[0] != shapes[1]:
            odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
            raise ValueError(f"{name}: the two modules must have the same parameters; these differ: {odd}")
        keys = list(shapes[0])

        def with_parameters() -> dict[str, Tensor]:
            inputs = named(make_inputs(), native.forward)
            return inputs | {key: p.detach().clone() for key, p in native.named_parameters()}

        def run(module: nn.Module) -> Callable[..., Any]:
            def call(*tensors: Tensor) -> Any:
                inputs, parameters = tensors[: -len(keys)] if keys else tensors, tensors[len(tensors) - len(keys) :]
                example = next((t for t in tensors if t.is_floating_point()), None)
                buffers = {key: _like(buffer, example) for key, buffer in module.named_buffers()}
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    return functional_call(module, dict(zip(keys, parameters, strict=True)) | buffers, inputs)

            return call

        return cls(name, run(ours), run(native), with_parameters, **more)

    def inputs(self, seed: int = 0) -> dict[str, Tensor]:
        """The named inputs of one draw; the random state outside is left as it was.

        Raises:
            CaseError: ``make_inputs`` gives something that is not a tensor.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inputs = named(self.make_inputs(), self.ours, self.native)
        for key, tensor in inputs.items():
            if not isinstance(tensor, Tensor):
                raise CaseError(f"{self.name}: make_inputs must give tensors, got {key} of {type(tensor).__name__}")
        return {key: tensor.detach() for key, tensor in inputs.items()}


def named(inputs: Any, *functions: Callable[..., Any]) -> dict[str, Tensor]:
    """``inputs`` under their own keys, or under the argument names of the first function that has names for all."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # a builtin, or apply of a Function, has no signature to read
            continue
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(names) >= len(inputs):
            return dict(zip(names, inputs, strict=False))
    return {f"input {n}": tensor for n, tensor in enumerate(inputs)}


def _like(buffer: Tensor, example: Tensor | None) -> Tensor:
    if example is None or not buffer.is_floating_point():
        return buffer.clone()
    return buffer.to(example, copy=True)
