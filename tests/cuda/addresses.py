"""A launcher that checks the addresses of a kernel and has no memory: for tensors that are too large to allocate.

It runs the first and the last programs of each launch in Triton's interpreter, on tensors of the device "meta". Each
tensor gets addresses of its own. A load returns zeros, a store does nothing, and both note an address outside of
every tensor, as an offset of too few bits gives it."""

from __future__ import annotations

import inspect
import itertools
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from manualgrad.cuda.conv2d_operands import span
from manualgrad.cuda.launch import Launcher

DISTANCE = 2**44  # of two tensors' addresses


class AddressLauncher(Launcher):
    """Checks the addresses of launches.

    Attributes:
        names: names of the kernels that were launched.
        largest: largest offset of each kernel, in numbers of the tensor.
    """

    def __init__(self) -> None:
        self.names: list[str] = []  # but for the sums of parts, which have as many parts as programs
        self.largest: dict[str, int] = {}

    def __call__(self, kernel: Any, grid: tuple[int, ...], x: Tensor, *args: Any, **constants: Any) -> None:
        from triton.runtime import interpreter

        if 0 in grid or kernel.fn.__name__.startswith("conv2d_sum"):
            return
        self.names.append(kernel.fn.__name__)
        function = kernel.rewrite()
        names = inspect.signature(function).parameters
        values = inspect.getcallargs(function, x, *args, **{k: v for k, v in constants.items() if k in names})
        self.tensors = [v for v in values.values() if isinstance(v, Tensor)]
        is_constant = {name: "constexpr" in str(parameter.annotation) for name, parameter in names.items()}
        arguments = {name: v if is_constant[name] else self._argument(v) for name, v in values.items()}
        scope = interpreter._patch_lang(function)
        builder = interpreter.InterpreterBuilder
        try:
            with (
                mock.patch.multiple(
                    builder, create_masked_load=self._load(interpreter), create_masked_store=self._store()
                ),
                mock.patch.dict(function.__globals__, range=typed_range),
            ):
                interpreter.interpreter_builder.set_grid_dim(*grid, *(1,) * (3 - len(grid)))
                for place in itertools.product(*(sorted({0, size - 1}) for size in grid)):
                    interpreter.interpreter_builder.set_grid_idx(*place, *(0,) * (3 - len(place)))
                    function(**arguments)
        finally:
            scope.restore()

    def _argument(self, value: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle, _implicit_cvt

        if isinstance(value, Tensor):
            number = next(n for n, x in enumerate(self.tensors, 1) if x is value)
            dtype = tl.pointer_type(tl.dtype(str(TYPES[value.dtype])))
            return tl.tensor(TensorHandle(np.array([number * DISTANCE], dtype=np.uint64), dtype), dtype)
        if type(value) is int and abs(value) >= 2**31:
            return tl.tensor(TensorHandle(np.array([value], dtype=np.int64), tl.int64), tl.int64)
        return _implicit_cvt(value)

    def _load(self, interpreter: Any) -> Any:
        def load(builder: Any, pointers: Any, mask: Any, other: Any, *_: Any) -> Any:
            self._check(pointers, mask)
            dtype = pointers.get_element_ty()
            zeros = np.zeros(pointers.data.shape, dtype=interpreter._get_np_dtype(dtype))
            return interpreter.TensorHandle(zeros, dtype)

        return load

    def _store(self) -> Any:
        def store(builder: Any, pointers: Any, value: Any, mask: Any, *_: Any) -> None:
            self._check(pointers, mask)

        return store

    def _check(self, pointers: Any, mask: Any) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        numbers = addresses // DISTANCE
        for number in np.unique(numbers):
            offsets = addresses[numbers == number] - number * DISTANCE
            is_tensor = 0 < number <= len(self.tensors)
            limit = span(self.tensors[number - 1]) * self.tensors[number - 1].element_size() if is_tensor else 0
            assert offsets.max() < limit, f"{self.names[-1]}: an address outside of every tensor"
            numel = int(offsets.max()) // self.tensors[number - 1].element_size()
            self.largest[self.names[-1]] = max(self.largest.get(self.names[-1], 0), numel)


def typed_range(start: Any, stop: Any = None, step: int = 1) -> Any:
    """``range`` whose numbers have 64 bits if a bound has, as in a compiled kernel; the interpreter's have 32."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    is_wide = any(getattr(bound, "dtype", None) == tl.int64 for bound in (start, stop))
    for n in range(start) if stop is None else range(start, stop, step):
        yield tl.tensor(TensorHandle(np.array([n], dtype=np.int64), tl.int64), tl.int64) if is_wide else n


TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "int64", torch.int32: "int32",
    torch.int8: "int8", torch.uint8: "uint8",
}  # fmt: skip
