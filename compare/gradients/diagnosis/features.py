"""Features of the elements of a tensor: their indices, and the values of other tensors that belong to them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compare.gradients.diagnosis.wording import index_name

MAX_PAIRS = 12  # differences of two inputs


@dataclass(frozen=True)
class Feature:
    """One number for each element.

    Attributes:
        name: of the number: "x", "the row", "|a - b|".
        values: one for each element, float64, flat.
        is_index: True for an index and a relation of indices, which are the same in each draw.
        is_whole: True for integers and truth values.
    """

    name: str
    values: Tensor
    is_index: bool = False
    is_whole: bool = False


def index_features(shape: torch.Size | tuple[int, ...]) -> list[Feature]:
    """Indices along every dimension, and the differences of two indices of equally long dimensions."""
    grids = _grids(shape)
    example = torch.empty(shape, device="meta")
    features = [
        Feature(index_name(example, d), grid, is_index=True, is_whole=True)
        for d, grid in enumerate(grids)
        if shape[d] > 1
    ]
    for a, b in itertools.combinations(range(len(shape)), 2):
        if shape[a] == shape[b] > 1:
            name = f"{index_name(example, a)} - {index_name(example, b)}"
            features.append(Feature(name, grids[a] - grids[b], is_index=True, is_whole=True))
    return features


def value_features(shape: torch.Size | tuple[int, ...], tensors: Mapping[str, Tensor]) -> list[Feature]:
    """Values of every tensor whose shape fits; labels beside the index that they may name; differences of two."""
    features: list[Feature] = []
    reals: list[tuple[str, Tensor]] = []
    grids = _grids(shape)
    for name, tensor in tensors.items():
        if tensor.is_complex():
            continue
        spread = spread_to(tensor, shape)
        if spread is None:
            continue
        values = spread.double().flatten()
        is_whole = not tensor.is_floating_point()
        features.append(Feature(name, values, is_whole=is_whole))
        if is_whole and tensor.dtype is not torch.bool:
            features += [
                Feature(
                    f"{index_name(torch.empty(shape, device='meta'), d)} - {name}", grids[d] - values, is_whole=True
                )
                for d in range(len(shape))
                if shape[d] > 1
            ]
        elif tensor.is_floating_point():
            reals.append((name, values))
    for (a, x), (b, y) in itertools.islice(itertools.combinations(reals, 2), MAX_PAIRS):
        features.append(Feature(f"{a} - {b}", x - y))
    return features


def spread_to(tensor: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor | None:
    """Repeat a tensor to ``shape``, as broadcasting does, or with its dimensions first; None if it does not fit."""
    tensor = tensor.detach().cpu()
    candidates = [tensor, tensor.reshape((*tensor.shape, *[1] * (len(shape) - tensor.dim())))]
    if tensor.dim() == 1:  # lengths of the examples, say, whatever dimension they are
        lines = [
            [-1 if e == d else 1 for e in range(len(shape))] for d in range(len(shape)) if shape[d] == len(tensor)
        ]
        candidates += [tensor.reshape(line) for line in lines]
    for candidate in candidates:
        try:
            if tensor.numel() > 1 or not shape:
                return candidate.expand(shape)
        except RuntimeError:  # the shapes do not fit
            continue
    return None


def _grids(shape: torch.Size | tuple[int, ...]) -> list[Tensor]:
    ranges = [torch.arange(n, dtype=torch.float64) for n in shape]
    return [grid.flatten() for grid in torch.meshgrid(*ranges, indexing="ij")] if shape else []


def join(draws: list[list[Feature]]) -> list[Feature]:
    """The features of several draws, one after the other; those that every draw has."""
    named = [{feature.name: feature for feature in features} for features in draws]
    return [
        Feature(name, torch.cat([features[name].values for features in named]), feature.is_index, feature.is_whole)
        for name, feature in named[0].items()
        if all(name in features for features in named)
    ]
