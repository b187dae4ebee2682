"""Linear maps of a tensor onto its own shape: what a wrong backward may do to a right gradient, before or after."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.gradients.diagnosis.wording import dimension_name

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Transformation:
    """A map and its name, which follows "the gradient" or "the incoming gradient"."""

    kind: str
    description: str
    apply: Map

    @property
    def gives_equal_slices(self) -> bool:
        """True if all slices along a dimension are equal: their mean, the first or the last."""
        return self.kind == "wrong sum" and self.description.startswith(("averaged", "taken at "))


def transformations(shape: torch.Size | tuple[int, ...]) -> Iterator[Transformation]:
    """Maps that have an effect on tensors of this shape; the most frequent mistakes first."""
    example = torch.empty(shape, device="meta")
    dims = [d for d in range(len(shape)) if shape[d] > 1]
    names = {d: dimension_name(example, d) for d in dims}
    for d in dims:
        words = f"averaged over its {names[d]}"
        yield Transformation("wrong sum", words, lambda t, d=d: t.mean(d, keepdim=True).expand_as(t))
        words = f"summed over its {names[d]}"
        yield Transformation("wrong sum", words, lambda t, d=d: t.sum(d, keepdim=True).expand_as(t))
        words = f"taken at index 0 of its {names[d]} for all"
        yield Transformation("wrong sum", words, lambda t, d=d: t.narrow(d, 0, 1).expand_as(t))
        words = f"taken at the last index of its {names[d]} for all"
        yield Transformation("wrong sum", words, lambda t, d=d: t.narrow(d, t.shape[d] - 1, 1).expand_as(t))
    if len(dims) > 1:
        yield Transformation("wrong sum", "averaged over all elements", lambda t: t.mean().expand_as(t))
        yield Transformation("wrong sum", "summed over all elements", lambda t: t.sum().expand_as(t))
        yield Transformation("wrong sum", "taken at its first element for all", lambda t: t.flatten()[0].expand_as(t))
    yield from moves(shape)
    for d in dims:
        words = f"added up along its {names[d]} (cumsum)"
        yield Transformation("wrong sum", words, lambda t, d=d: t.cumsum(d))
        words = f"added up from the end along its {names[d]} (reversed cumsum)"
        yield Transformation("wrong sum", words, lambda t, d=d: t.flip(d).cumsum(d).flip(d))
        words = f"minus its mean over {names[d]}"
        yield Transformation("missing term", words, lambda t, d=d: t - t.mean(d, keepdim=True))
    if len(shape) > 1 and shape[-1] == shape[-2] > 1:
        yield Transformation(
            "wrong half", "averaged with its transpose (its symmetric part)", lambda t: (t + t.mT) / 2
        )
        yield Transformation("wrong half", "added to its transpose", lambda t: t + t.mT)
        yield Transformation("wrong half", "minus its transpose", lambda t: t - t.mT)
        yield Transformation("wrong half", "minus its transpose, halved", lambda t: (t - t.mT) / 2)
        yield Transformation("wrong half", "without the elements above the diagonal", torch.tril)
        yield Transformation("wrong half", "without the elements below the diagonal", torch.triu)
        yield Transformation("wrong half", "without the diagonal and what is above it", lambda t: t.tril(-1))
        yield Transformation("wrong half", "without the diagonal and what is below it", lambda t: t.triu(1))
        yield Transformation("wrong half", "without the diagonal", lambda t: t - _diagonal(t))
        yield Transformation("wrong half", "zero but for its diagonal", _diagonal)
        yield Transformation("wrong half", "with its diagonal halved", lambda t: t - _diagonal(t) / 2)
        yield Transformation("wrong half", "with its diagonal doubled", lambda t: t + _diagonal(t))
        words = "with zeros above the diagonal and twice the elements below it (not symmetrised)"
        yield Transformation("wrong half", words, lambda t: t.tril() + t.tril(-1))
        words = "with zeros below the diagonal and twice the elements above it (not symmetrised)"
        yield Transformation("wrong half", words, lambda t: t.triu() + t.triu(1))
        yield Transformation("wrong half", "symmetrised from its lower triangle", lambda t: t.tril() + t.tril(-1).mT)
        yield Transformation("wrong half", "symmetrised from its upper triangle", lambda t: t.triu() + t.triu(1).mT)


def moves(shape: torch.Size | tuple[int, ...]) -> Iterator[Transformation]:
    """The maps that move elements: transposes, flips, rotations along a dimension, shifts that lose elements."""
    example = torch.empty(shape, device="meta")
    dims = [d for d in range(len(shape)) if shape[d] > 1]
    names = {d: dimension_name(example, d) for d in dims}
    for a, b in itertools.combinations(dims, 2):
        if shape[a] == shape[b]:
            words = f"transposed ({names[a]} and {names[b]} exchanged)"
            yield Transformation("transposed", words, lambda t, a=a, b=b: t.transpose(a, b))
        else:
            words = f"in the memory order of a tensor with {names[a]} and {names[b]} exchanged"
            yield Transformation("permuted", words, lambda t, a=a, b=b: t.transpose(a, b).contiguous().view(t.shape))
            yield Transformation(
                "permuted",
                f"read in memory order as a tensor with {names[a]} and {names[b]} exchanged",
                lambda t, a=a, b=b: _read_as_transposed(t, a, b),
            )
    for count in (1, 2):
        for group in itertools.combinations(dims, count):
            if count == 2 and group != tuple(dims[-2:]):
                continue
            if count == 1 and shape[group[0]] == 2 and len(shape) == 1:
                continue
            words = " and ".join(names[d] for d in group)
            words = "flipped (last element first)" if len(shape) == 1 else f"flipped ({words} in reverse order)"
            yield Transformation("flipped", words, lambda t, group=group: t.flip(group))
    for d in dims:
        for s in dict.fromkeys((1, -1, 2, -2, 3, -3, *_half_shifts(shape[d]))):
            if shape[d] > abs(s):
                words = f"rotated by {s:+d} along its {names[d]} (torch.roll)"
                yield Transformation("shifted", words, lambda t, d=d, s=s: t.roll(s, d))
            if shape[d] > abs(s) + 1:  # two or more elements are left
                words = f"shifted by {s:+d} along its {names[d]}, with zeros at the end that is left free"
                yield Transformation("shifted", words, lambda t, d=d, s=s: shift(t, d, s))
        if shape[d] > 2:
            words = f"with index i of its {names[d]} at -i (mod {shape[d]}), the reverse but for index 0"
            yield Transformation("flipped", words, lambda t, d=d: t.flip(d).roll(1, d))


def _half_shifts(size: int) -> tuple[int, ...]:
    """Shifts of fftshift and ifftshift."""
    return tuple(dict.fromkeys(s for s in (size // 2, -(size // 2)) if abs(s) > 2))


def shift(tensor: Tensor, dim: int, amount: int) -> Tensor:
    """Shift along one dimension; zeros come in."""
    shifted = torch.zeros_like(tensor)
    length = tensor.shape[dim] - abs(amount)
    source = tensor.narrow(dim, max(0, -amount), length)
    shifted.narrow(dim, max(0, amount), length).copy_(source)
    return shifted


def _read_as_transposed(tensor: Tensor, a: int, b: int) -> Tensor:
    shape = list(tensor.shape)
    shape[a], shape[b] = shape[b], shape[a]
    return tensor.contiguous().view(shape).transpose(a, b).contiguous()


def _diagonal(tensor: Tensor) -> Tensor:
    return torch.diag_embed(tensor.diagonal(dim1=-2, dim2=-1))
