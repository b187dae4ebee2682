"""Perturbations of a few rounding errors: of inputs, of incoming gradients, and of the results of operations.

Every perturbation has a sign for each number, and each is made twice, with opposite signs. Equal values get equal
signs, so ties stay ties.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from compare.gradients.numbers import as_real, has_gradient

# Operators that round nothing: each element of the result is an element of an argument, its negative, or a whole
# number. Perturbing their results would separate what is equal, such as a maximum and the element that it is.
EXACT_OPERATORS = frozenset({
    "_to_copy", "abs", "alias", "amax", "amin", "aminmax", "cat", "ceil", "clamp", "clamp_max", "clamp_min",
    "clone", "conj", "constant_pad_nd", "copy", "cummax", "cummin", "diagonal_backward", "embedding", "fill",
    "fix", "flip", "floor", "fmax", "fmin", "frac", "gather", "hardtanh", "hardtanh_backward", "imag", "index",
    "index_fill", "index_select", "kthvalue", "leaky_relu_backward", "lift_fresh", "masked_fill",
    "masked_scatter", "masked_select", "max", "max_pool2d_with_indices", "maximum", "median", "min", "minimum",
    "mode", "nanmedian", "neg", "nll_loss_backward", "real", "relu", "repeat", "repeat_interleave", "roll",
    "rot90", "round", "scatter", "select_backward", "select_scatter", "sgn", "sign", "slice_backward",
    "slice_scatter", "sort", "split", "stack", "take", "threshold", "threshold_backward", "topk", "tril",
    "triu", "trunc", "unbind", "unfold_backward", "where",
})  # fmt: skip

# Smooth changes are scaled down by so much at most, and by half of it without kinks.
ENLARGEMENT_KINKS = 8
LEFT_OUT = 2 * ENLARGEMENT_KINKS  # of what an operator leaves out, so that the tolerance is twice as large at least


class PerturbOperations(TorchDispatchMode):
    """Perturb the result of every operation that rounds, forward and backward.

    A result that the dtype of the variant holds exactly is left unchanged: an operation that rounds correctly
    computes it without an error, in that dtype too. (For float64 the criterion is float32, since every result is a
    float64 number.)

    What does not depend on ``variables``, such as an angle for each position, is perturbed by the rounding errors of
    float32 where the dtype is narrower: a careful function computes it in float32 at least, whatever the dtype of its
    inputs.
    """

    def __init__(
        self, size: float, trial: int, dtype: torch.dtype, signs: list[Tensor], variables: Iterable[Tensor], *,
        records: bool,
    ) -> None:  # fmt: skip
        """Begin a run.

        Args:
            variables: inputs and incoming gradients.
            signs: signs of all results. The first run of a pair records them, by the values of its results. The
                second run, in which the values are others, takes them from there.
        """
        super().__init__()
        self.size, self.trial, self.records = size, trial, records
        narrower = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        self.constant_size = size / max(1.0, narrower)
        self.variable_storages = {_storage(variable) for variable in variables}
        self.exact_dtype = torch.float32 if dtype is torch.float64 else dtype
        self.signs, self.num_results = signs, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        operands, results = _tensors((args, kwargs)), _tensors(result)
        is_variable = not self.variable_storages.isdisjoint(map(_storage, operands))
        if is_variable:
            self.variable_storages.update(map(_storage, results))
        if operator._schema.name.removeprefix("aten::") in EXACT_OPERATORS or any(
            returned.alias_info is not None for returned in operator._schema.returns
        ):
            return result  # a view or an in-place result: no new numbers, or numbers that other tensors share
        size = self.size if is_variable else self.constant_size
        left_out = _left_out_by_softplus(operator._schema.name.removeprefix("aten::"), args)
        perturbed = tree_map(lambda value: self._perturb(value, size, left_out), result)
        if is_variable:
            self.variable_storages.update(map(_storage, _tensors(perturbed)))
        return perturbed

    def _perturb(self, value: Any, size: float, left_out: Tensor | None) -> Any:
        if not isinstance(value, Tensor) or value.dtype not in (torch.float64, torch.complex128):
            return value
        parts = as_real(value)
        is_exact = parts.to(self.exact_dtype).double() == parts
        changes = torch.where(is_exact, 0.0, size * self._signs(parts))
        if left_out is not None:
            changes = torch.where(left_out == 0, changes, math.copysign(LEFT_OUT, size) * left_out)
        perturbed = torch.where(changes == 0, parts, parts * (1 + changes))
        return torch.view_as_complex(perturbed) if value.is_complex() else perturbed  # the mode is off in here

    def _signs(self, parts: Tensor) -> Tensor:
        n = self.num_results
        self.num_results += 1
        if not self.records and n < len(self.signs) and self.signs[n].shape == parts.shape:
            return self.signs[n]
        signs = signs_by_value(parts, self.trial)
        if self.records:
            self.signs.append(signs)
        return signs


def _left_out_by_softplus(name: str, args: Sequence[Any]) -> Tensor | None:
    """Relative part of log(1 + exp(x)) that softplus leaves out, and of the derivative that its own has too much.

    PyTorch takes x and 1 where ``beta · x`` is above a threshold; a more exact function is right, too. None for other
    operators.
    """
    if name not in ("softplus", "softplus_backward"):
        return None
    is_backward = name == "softplus_backward"
    x, beta, threshold = (*args[is_backward:], *(1, 20)[len(args) - 1 - is_backward :])
    scaled = beta * x.double()
    part = -torch.exp(-scaled) if is_backward else torch.exp(-scaled) / scaled
    return torch.where(scaled > threshold, part, 0.0)


def _storage(value: Tensor) -> int:
    """The address of a tensor's memory, which its views share."""
    return value.untyped_storage().data_ptr()


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor) and value.layout is torch.strided]


def perturb_by_value(value: Tensor, size: float, trial: int) -> Tensor:
    """Multiply each element by 1 + size or 1 − size; a hash of its bits decides, so equal elements change equally."""
    if not has_gradient(value):
        return value
    parts = as_real(value)
    perturbed = parts * (1 + size * signs_by_value(parts, trial))
    return torch.view_as_complex(perturbed) if value.is_complex() else perturbed


def perturb_by_position(value: Tensor, size: float, trial: int) -> Tensor:
    """Multiply each element by 1 + size or 1 − size; its position decides.

    Incoming gradients have no ties to preserve, and perturbations of equal elements must not cancel by symmetry.
    """
    positions = torch.arange(value.numel(), device=value.device).reshape(value.shape)
    return value * (1 + size * _pseudo_random_signs(positions * 0x2545F4914F6CDD1D, trial))


def signs_by_value(values: Tensor, trial: int) -> Tensor:
    """1 or −1 for each element, equal for equal elements."""
    return _pseudo_random_signs(values.contiguous().view(torch.int64), trial)


def _pseudo_random_signs(bits: Tensor, trial: int) -> Tensor:
    """Hash each int64 to 1 or −1; the same bits and trial always give the same sign."""
    mixed = (bits ^ (bits >> 31)) * _int64(0x5851F42D4C957F2D + 2 * trial) + _int64(trial * 0x14057B7EF767814F)
    mixed = (mixed ^ (mixed >> 29)) * 0x369DEA0F31A53F85
    return 1 - 2 * ((mixed >> 62) & 1).double()


def _int64(value: int) -> int:
    """Wrap to a signed 64-bit number."""
    return (value + 2**63) % 2**64 - 2**63
