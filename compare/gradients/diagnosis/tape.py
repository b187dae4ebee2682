"""Tape of native's backward: each elementary operation that autograd runs, and another run of it with a change.

The derivatives of PyTorch's operations are formulas of elementary operations. A tape records them, those of forward
too, whose results backward uses. A replay with one step changed is the gradient of a hand-written backward with one
mistake.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_calls import InterceptCalls, call_native, describe, find_site
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.numbers import as_real
from compare.torch_compat import FORMULAS_OF_OPERATIONS

MAX_STEPS = 400
COST_OF_A_REPLAY = 3
ELEMENTS_OF_A_STEP = 2000  # a step with so many elements takes twice as long as one without


StepKey = tuple[str, str, int]

# Operations that check indices, or only compute with integers. Others may write outside of their memory when they get
# indices that they did not make, and end the process.
CHECKS_INDICES = {
    "gather", "scatter", "scatter_add", "index", "index_put", "index_select", "index_add", "index_copy", "index_fill",
    "take", "put", "embedding", "embedding_dense_backward", "nll_loss_forward", "nll_loss2d_forward", "sort",
    "one_hot", "where", "add", "sub", "mul", "div", "neg", "remainder",
    "eq", "ne", "lt", "le", "gt", "ge", "clamp", "_to_copy", "clone", "detach", "view", "_unsafe_view", "expand",
    "unsqueeze", "squeeze", "permute", "transpose", "t", "slice", "select", "flip", "cumsum", "sum", "max", "min",
    "cat", "bitwise_and", "bitwise_or", "bitwise_not", "zeros_like", "ones_like", "alias", "repeat", "argsort",
    "value_selecting_reduction_backward",
}  # fmt: skip


@dataclass(frozen=True)
class Ref:
    """Number of a tensor on the tape."""

    number: int


@dataclass
class Step:
    """One elementary operation.

    Attributes:
        arguments: flattened; a Ref in the place of each tensor.
        results: numbers of the tensors that it returns; None for other results.
        key: the words, the operation, and the number of earlier steps that have both; the same on the tapes of
            several draws, and of several gradients.
        own: shapes of the arguments and addresses of integers, for an operation that may not check its indices.
        is_flat: the arguments are positional and no lists, and the result is a tensor or several.
        words: in forward the operation and its line, in backward native's operation of whose derivative it is a part.
    """

    function: Any
    arguments: list[Any]
    spec: Any
    results: list[int | None]
    words: str
    is_flat: bool = False
    key: StepKey | None = None
    own: list[tuple[int, torch.Size]] | None = None

    def __post_init__(self) -> None:
        self.numbers = [a.number for a in self.arguments if isinstance(a, Ref)]

    @property
    def name(self) -> str:
        """Name of the operation: "mul", and "mul_" in place."""
        return str(self.function.overloadpacket.__name__)

    def call(self, flat: list[Any]) -> list[Any]:
        """Run the operation on flattened arguments.

        Raises:
            ValueError: the operation may not check indices, and gets other ones, or tensors of other shapes.
        """
        if self.own is not None and addresses(flat) != self.own:
            raise ValueError(f"{self.name} may not check its arguments")
        if self.is_flat:
            result = self.function(*flat)
            return [result] if isinstance(result, Tensor) else list(result)
        args, kwargs = tree_unflatten(flat, self.spec)
        return tree_flatten(self.function(*args, **kwargs))[0]


def addresses(flat: list[Any]) -> list[tuple[int, torch.Size]]:
    """Shapes of the tensors, with the address of those of integers, and 0 for others."""
    tensors = [value for value in flat if isinstance(value, Tensor)]
    return [(t.data_ptr() if _is_integer(t) else 0, t.shape) for t in tensors]


def _is_integer(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32)


# change(step, flattened arguments) returns the step's flattened results.
StepChange = Callable[[Step, list[Any]], list[Any]]


@dataclass
class Tape:
    """Steps of one run of native.

    Attributes:
        forward, backward: steps in order.
        values: every tensor.
        names: words for tensors that no step computed, by number.
        incoming: numbers of those that are incoming gradients.
        result: number of the gradient.
        needed: steps of backward that the gradient depends on.
        cost: in steps, of all replays.
    """

    forward: list[Step] = field(default_factory=list)
    backward: list[Step] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    incoming: frozenset[int] = frozenset()
    result: int = -1
    cost: float = 0.0
    needed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts: Counter[tuple[str, str]] = Counter()
        self.positions: dict[StepKey, int] = {}
        for n, step in enumerate(self.backward):
            step.key = (step.words, step.name, counts[step.words, step.name])
            counts[step.words, step.name] += 1
            self.positions[step.key] = n
        self.is_in_place = any(step.name.endswith("_") for step in self.backward)
        wanted = {self.result}
        for n in range(len(self.backward) - 1, -1, -1):
            step = self.backward[n]
            if self.is_in_place or wanted & {number for number in step.results if number is not None}:
                self.needed.insert(0, n)
                wanted |= {a.number for a in step.arguments if isinstance(a, Ref)}

    def flat(self, step: Step) -> list[Any]:
        """The recorded arguments of a step."""
        return [self.values[a.number] if isinstance(a, Ref) else a for a in step.arguments]

    def replay(
        self, changes: Mapping[StepKey, StepChange], instead: dict[int, Tensor] | None = None
    ) -> Tensor | None:
        """The gradient with steps of backward changed and ``instead`` of tensors of forward; None if it fails."""
        if not all(key in self.positions for key in changes):
            return None
        at = {self.positions[key]: change for key, change in changes.items()}
        env: dict[int, Any] = dict(instead or {})
        self.cost += COST_OF_A_REPLAY
        try:
            for n in self.needed:
                step = self.backward[n]
                if not self.is_in_place and n not in at and env.keys().isdisjoint(step.numbers):
                    continue
                flat = [env.get(a.number, self.values[a.number]) if isinstance(a, Ref) else a for a in step.arguments]
                results = at[n](step, flat) if n in at else step.call(flat)
                for number, value in zip(step.results, results, strict=True):
                    if number is not None:
                        env[number] = value
                        self.add_cost(value)
        except Exception:  # the change does not fit the arguments: then it is no explanation
            return None
        result = env.get(self.result, self.values[self.result])
        return as_real(result.detach()).clone() if isinstance(result, Tensor) else None

    @property
    def gradient(self) -> Tensor:
        """The recorded gradient, complex numbers as pairs of real ones."""
        return as_real(self.values[self.result].detach())

    def add_cost(self, value: Tensor) -> None:
        """Count one more tensor that was computed."""
        self.cost += 1 + value.numel() / ELEMENTS_OF_A_STEP

    def has_same_steps_as(self, other: Tape) -> bool:
        """True if a change of one tape can be made on the other."""
        mine, others = (
            [(s.function, s.results, [a for a in s.arguments if isinstance(a, Ref)]) for s in tape.backward]
            for tape in (self, other)
        )
        same_forward = [step.name for step in self.forward] == [step.name for step in other.forward]
        return mine == others and self.result == other.result and same_forward


class _Recorder(TorchDispatchMode):
    """Record every elementary operation; a derivative that is one operation is taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[Step] = []
        self.backward: list[Step] = []
        self.values: list[Tensor] = []
        self.names: dict[int, str] = {}
        self.words: str | None = None  # of the operation whose derivative runs; None in forward
        self._numbers: dict[Any, int] = {}

    def number(self, tensor: Tensor) -> int:
        """Number of a tensor; tensors that share all elements have one number."""
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else id(tensor)
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(tensor)  # kept, so that its memory is not used again
        return self._numbers[key]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_derivative = self.words is not None and "backward" in str(function)
        simple = FORMULAS_OF_OPERATIONS.get(function) if is_derivative else None
        if simple is not None:
            with self:
                result = simple(*args, **kwargs)
            if result is not NotImplemented:
                return result
        flat, spec = tree_flatten((args, kwargs))
        arguments = [Ref(self.number(a)) if isinstance(a, Tensor) else a for a in flat]
        result = function(*args, **kwargs)
        results = [self.number(r) if isinstance(r, Tensor) else None for r in tree_flatten(result)[0]]
        name = function.overloadpacket.__name__
        words = describe(name, (find_site(),), "") if self.words is None else self.words
        is_flat = not kwargs and len(flat) == len(args) and all(r is not None for r in results)
        is_flat = is_flat and not any(isinstance(a, (list, tuple)) for a in args)
        steps = self.forward if self.words is None else self.backward
        if steps is self.forward and name == "detach" and results == [a.number for a in arguments]:
            return result  # of what autograd saves, which depends on the input whose gradient is asked for
        step = Step(function, arguments, spec, results, words, is_flat)
        if name not in CHECKS_INDICES and any(isinstance(a, Tensor) and _is_integer(a) for a in flat):
            step.own = addresses(flat)
        steps.append(step)
        return result


def record_tape(mismatch: Mismatch, probe: Probe) -> Tape | None:
    """Run native and its backward; None if that raises, or has more steps than ``MAX_STEPS``."""
    leaves = {
        name: value.clone().requires_grad_() if name == mismatch.input_name else value.clone()
        for name, value in mismatch.inputs.items()
    }
    leaf, incoming, mode = leaves[mismatch.input_name], mismatch.incoming(probe.seed), _Recorder()
    for name, value in leaves.items():
        mode.names[mode.number(value)] = name
    calls = InterceptCalls(takes_apart=False)
    try:
        with mode:
            with calls:
                result = call_native(probe.case.native, leaves.values())
            outputs = result if isinstance(result, (tuple, list)) else (result,)
            numbered = [(n, o) for n, o in enumerate(outputs) if o.requires_grad]
        inputs = set(mode.names)
        given = [incoming(n, o.detach()) for n, o in numbered]
        for n, gradient in enumerate(given):
            mode.names[mode.number(gradient)] = "the incoming gradient" + (f" of output {n}" if n else "")
        _tell_operations(mode, calls)
        mode.words = "native"
        with mode:
            (grad,) = torch.autograd.grad([o for _, o in numbered], leaf, given)
    except Exception:  # native raises only when it is watched: then its steps explain nothing
        return None
    if len(mode.backward) > MAX_STEPS or grad.layout is not torch.strided or not mode.backward:
        return None
    given_numbers = frozenset(mode.names) - inputs
    return Tape(mode.forward, mode.backward, mode.values, mode.names, given_numbers, mode.number(grad))


def _tell_operations(mode: _Recorder, calls: InterceptCalls) -> None:
    """Have each node of the graph say, before it runs, of which of native's operations it is."""
    visited: set[Any] = set()
    total, number = Counter(call.name for call in calls.calls), Counter[str]()
    for call in calls.calls:
        nodes = [call.attached.grad_fn] if call.attached is not None else []
        number[call.name] += 1
        words = call.name.removeprefix("the result of ")
        words += f" (call {number[call.name]} there)" if total[call.name] > 1 else ""
        while nodes:
            node = nodes.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            if node.name() != "torch::autograd::AccumulateGrad":

                def tell(_: Any, words: str = words) -> None:
                    mode.words = words

                node.register_prehook(tell)
            nodes += [following for following, _ in node.next_functions]
