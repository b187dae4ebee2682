"""Cases: a function of ours, its native counterpart, and the inputs of both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call

from compare.case_errors import CaseError, definition_of, errors_name_the_case
from compare.random_state import seeded

Inputs = Mapping[str, Tensor]
INPUT_STREAM = 0x1A900000  # first seed of the inputs; a seed that users choose themselves would repeat their numbers


@dataclass(frozen=True)
class Case:
    """A function and the native function that it is compared with.

    Args:
        name: the case's name in reports.
        ours: the function under test: tensors in, a tensor or a tuple of tensors out.
        native: the same function made of operations whose gradients are trusted. Its float64 results are the oracle.
            None: there is no such function. Then gradients are compared with finite differences of ``ours`` in
            float64, with a bound on their error; the forward itself is unchecked, and the report says so.
        make_inputs: draws the inputs; called without arguments after ``torch.manual_seed``. It returns a tuple of
            tensors in the order of the functions' arguments, or a dict, whose keys are the inputs' names. Gradients
            of all floating-point and complex inputs are compared, in PyTorch's convention for complex gradients.
        conventions: other trusted functions, for values at which more than one derivative is accepted. Keys are the
            names that reports use: ``{"derivative 1/2 at 0": lambda x: torch.maximum(x, x.new_zeros(()))}``. Elements
            that differ from ``native`` but agree with a convention are counted separately, and are not wrong.
        census: takes the inputs and returns counts that explain the conventions, such as that of tied windows. Exact
            zeros and equal neighbours are counted for every case.
        kinks: True if a ReLU or a maximum follows a sum inside the function. Rounding may then carry a value across
            the kink, in native too. The perturbations that find such elements are then twice as large. An element at
            a kink has the jump there as its tolerance; every other element is judged as strictly as without kinks.
        whole_numbers: True to compare also on inputs rounded to whole numbers, which have exact zeros and ties. They
            are left out without a native function, since finite differences have no value there.

    Raises:
        CaseError: an argument is of another type, or the class of a Function stands where its ``apply`` belongs.
    """

    name: str
    ours: Callable[..., Any]
    native: Callable[..., Any] | None
    make_inputs: Callable[[], Sequence[Tensor] | Inputs]
    conventions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    census: Callable[..., Mapping[str, int]] | None = None
    kinks: bool = False
    whole_numbers: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise CaseError(f"Case: expected a string as the name, got {_type_name(self.name)}")
        functions = {"ours": self.ours, "make_inputs": self.make_inputs}
        functions |= {} if self.native is None else {"native": self.native}
        functions |= {} if self.census is None else {"census": self.census}
        if not isinstance(self.conventions, Mapping):
            raise CaseError(
                f"{self.name}: expected a dict of functions as conventions, got {_type_name(self.conventions)}"
            )
        for key, function in (functions | {f"convention {key!r}": f for key, f in self.conventions.items()}).items():
            if isinstance(function, type) and issubclass(function, Function):
                raise CaseError(
                    f"{self.name}: {key} is the class {function.__name__}; pass {function.__name__}.apply"
                )
            if not callable(function):
                hint = "; write lambda: before the inputs" if key == "make_inputs" else ""
                raise CaseError(f"{self.name}: expected a function as {key}, got {_type_name(function)}{hint}")

    @classmethod
    def from_modules(
        cls, name: str, ours: nn.Module, native: nn.Module | None, make_inputs: Callable[[], Any], **options: Any
    ) -> Case:
        """Make a case of two modules whose parameters have the same names and shapes. Both use ``native``'s values.

        Each parameter is an input of the case, after those of ``make_inputs``, so its gradient is compared. Each run
        starts with the modules' current buffers and the same random state, so dropout drops the same elements.

        Args:
            native: None for finite differences, on the parameters of ``ours``.
            options: further arguments of :class:`Case`.

        Raises:
            ValueError: the parameters differ in name or shape; the message lists those that differ.
        """
        source = ours if native is None else native
        shapes = [{key: tuple(p.shape) for key, p in module.named_parameters()} for module in (ours, source)]
        if shapes[0] != shapes[1]:
            differing = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
            raise ValueError(
                f"{name}: expected modules whose parameters have equal names and shapes; these differ: {differing}"
            )
        keys = list(shapes[0])

        def inputs_and_parameters() -> dict[str, Tensor]:
            inputs = name_inputs(make_inputs(), source.forward)
            if repeated := sorted(inputs.keys() & set(keys)):
                raise CaseError(f"expected other names for inputs than for parameters, got {', '.join(repeated)}")
            return inputs | {key: p.detach().clone() for key, p in source.named_parameters()}

        def as_function(module: nn.Module) -> Callable[..., Any]:
            def call(*tensors: Tensor) -> Any:
                inputs, parameters = tensors[: -len(keys)] if keys else tensors, tensors[len(tensors) - len(keys) :]
                example = next((t for t in tensors if t.is_floating_point()), None)
                buffers = {key: _cast_buffer(buffer, example) for key, buffer in module.named_buffers()}
                with seeded(0):
                    return functional_call(module, dict(zip(keys, parameters, strict=True)) | buffers, inputs)

            return call

        twin = None if native is None else as_function(native)
        return cls(name, as_function(ours), twin, inputs_and_parameters, **options)

    def inputs(self, seed: int = 0) -> dict[str, Tensor]:
        """Draw the inputs, by name. The global random state is left unchanged.

        Raises:
            CaseError: ``make_inputs`` raises, or returns something else than dense tensors.
        """
        with seeded(INPUT_STREAM + seed), errors_name_the_case(self.name):
            drawn = self.make_inputs()
            try:
                inputs = name_inputs(drawn, self.ours, self.native)
            except CaseError as error:
                location = definition_of(self.make_inputs)
                raise CaseError(f"{self.name}: {error}" + (f" ({location})" if location else "")) from error
        return {key: tensor.detach() for key, tensor in inputs.items()}


def name_inputs(inputs: Any, *functions: Callable[..., Any]) -> dict[str, Tensor]:
    """Name the inputs by their own keys, or by the arguments of the first function that has a name for each.

    Raises:
        CaseError: ``inputs`` is no tensor and no tuple, list or dict of tensors, or one of them is sparse.
    """
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, (Mapping, tuple, list)):
        raise CaseError(
            f"expected a tensor, or a tuple or dict of tensors, from make_inputs, got {_type_name(inputs)}"
        )
    named = dict(inputs) if isinstance(inputs, Mapping) else _name_by_arguments(inputs, functions)
    for key, tensor in named.items():
        if not isinstance(key, str):
            raise CaseError(f"expected names as the keys of make_inputs' dict, got {key!r} of type {_type_name(key)}")
        if not isinstance(tensor, Tensor):
            raise CaseError(f"expected tensors from make_inputs, got {key} of type {_type_name(tensor)}")
        if "sparse" in str(tensor.layout):
            raise CaseError(f"expected dense tensors from make_inputs, got a sparse one: {key}")
    return named


def _name_by_arguments(inputs: Sequence[Any], functions: Sequence[Callable[..., Any]]) -> dict[str, Any]:
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # builtins, and apply of a Function, have no signature
            continue
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(names) >= len(inputs):
            return dict(zip(names, inputs, strict=False))
    return {f"input {n}": tensor for n, tensor in enumerate(inputs)}


def _type_name(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _cast_buffer(buffer: Tensor, example: Tensor | None) -> Tensor:
    """Copy a buffer to the device of ``example``; a floating-point one gets its dtype too."""
    if example is None:
        return buffer.clone()
    return buffer.to(example, copy=True) if buffer.is_floating_point() else buffer.to(example.device, copy=True)
