"""Other tensors that may stand in the place of an operand on a tape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from compare.gradients.diagnosis.substitutes import other_indices
from compare.gradients.diagnosis.transformations import shift, transformations
from compare.gradients.diagnosis.wording import dimension_name, slice_names

Map = Callable[[Tensor], Tensor]
MAX_LEFT_OUT = 3  # slices
FUNCTIONS: dict[str, Map] = {
    "minus {}": torch.neg, "the square of {}": torch.square, "1 over {}": torch.reciprocal, "|{}|": torch.abs,
    "1 - {}": lambda t: 1 - t, "the square root of {}": torch.sqrt, "the sign of {}": torch.sign,
    "exp of {}": torch.exp, "the logarithm of {}": torch.log, "1 + {}": lambda t: 1 + t,
    "2 times {}": lambda t: 2 * t, "half of {}": lambda t: t / 2,
}  # fmt: skip

COMPLEX_FUNCTIONS: dict[str, Map] = {
    "the conjugate of {}": lambda t: t.conj().resolve_conj(), "minus {}": torch.neg, "1 over {}": torch.reciprocal,
    "the real part of {}": lambda t: t.real.to(t.dtype), "the imaginary part of {}": lambda t: t.imag.to(t.dtype),
    "|{}|": lambda t: t.abs().to(t.dtype), "{} times i": lambda t: 1j * t,
}  # fmt: skip


def changed_operand(tensor: Tensor, name: str, *, is_moved: bool = True) -> Iterator[tuple[str, str, Map]]:
    """Kind, words and function of an operand that is changed by itself; its elements are moved if asked for."""
    if tensor.dtype is torch.bool:
        yield from _changed_mask(tensor, name)
    elif not tensor.is_floating_point() and not tensor.is_complex():
        for words, function in other_indices(tensor):
            yield "permuted", words, function
        words = "the inverse order of the indices is used instead of their order, or the other way round"
        for d in range(tensor.dim()):
            yield "not transposed", words, lambda t, d=d: t.argsort(d)
    else:
        yield "missing term", f"the factor {name} is missing (1 is used instead)", torch.ones_like
        for words, function in (COMPLEX_FUNCTIONS if tensor.is_complex() else FUNCTIONS).items():
            yield "another operand", f"{words.format(name)} is used instead of {name}", function
        yield from _moved(tensor, name) if is_moved else ()
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            words = f"{name} is rounded to {str(dtype).removeprefix('torch.')}"
            if tensor.is_floating_point():
                yield "only in one dtype", words, lambda t, d=dtype: t.to(d).to(t.dtype)


def _changed_mask(tensor: Tensor, name: str) -> Iterator[tuple[str, str, Map]]:
    yield "step left out", f"the mask {name} is left out", torch.ones_like
    yield "step left out", f"the mask {name} is left out", torch.zeros_like
    yield "another operand", f"the mask {name} is inverted", torch.logical_not
    yield from _moved(tensor, f"the mask {name}")


def _moved(tensor: Tensor, name: str) -> Iterator[tuple[str, str, Map]]:
    if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
        yield from _with_zeros(tensor, name)
        return  # elsewhere, equal elements are where they were
    for t in transformations(tensor.shape):
        if t.kind in ("transposed", "flipped", "shifted") or (
            t.kind == "wrong half" and tensor.dtype is not torch.bool
        ):
            yield t.kind, f"{name} is {t.description}", lambda v, t=t: t.apply(v).contiguous()
    if tensor.dim() > 1 and tensor.shape[-1] != tensor.shape[-2] and 1 in tensor.shape[-2:]:
        words = f"{name} is used along the other dimension (rows for columns: the dimension is not kept)"
        yield "wrong sum", words, lambda t: t.mT.contiguous()


def _with_zeros(tensor: Tensor, name: str) -> Iterator[tuple[str, str, Map]]:
    """Zeros in the first or the last slices, as where a loop or a range ends too early."""
    for d, size in enumerate(tensor.shape):
        for count in range(1, min(size, MAX_LEFT_OUT + 1)):
            for first, amount in ((0, count), (size - count, -count)):
                slices = slice_names(dimension_name(tensor, d), range(first, first + count))
                words = f"{slices} of {name} count{'s' if count == 1 else ''} as 0, as where a loop leaves "
                words += "it out" if count == 1 else "them out"
                yield "missing term", words, lambda t, d=d, a=amount: shift(t, d, a)


def equal_slices(tensor: Tensor, name: str) -> Iterator[tuple[str, str, Map]]:
    """Kind, words and function of an operand whose slices are all replaced by their mean, the first or the last."""
    for t in transformations(tensor.shape) if tensor.is_floating_point() else ():
        if t.gives_equal_slices:
            yield t.kind, f"{name} is {t.description}", t.apply


def fits(tensor: Tensor, other: Tensor) -> bool:
    """True if the second tensor may stand in the place of the first."""
    same_dtype = tensor.dtype == other.dtype or (tensor.is_floating_point() and other.dtype is torch.int64)
    return same_dtype and tensor.squeeze().shape == other.squeeze().shape and other.numel() > 0


def combinations(name: str, other: str) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """The uses of a second tensor: in the place of the first, as a factor or as a divisor of it."""
    yield f"{other} is used instead of {name}", lambda t, o: o.to(t.dtype).reshape(t.shape).clone()
    yield f"{name} is multiplied by {other}, and should not be", lambda t, o: t * o.reshape(t.shape)
    yield f"{name} is divided by {other}, and should not be", lambda t, o: t / o.reshape(t.shape)
