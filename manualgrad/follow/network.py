"""The network that the page follows: an untrained one of a size that fits a page, or one from a weights file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from manualgrad.models import DocumentCNN

DIGITS = 10  # classes of the bundled sample
# Few channels, so that every number of every layer is on the page.
CHANNELS, HIDDEN = (4, 8), (32,)
NAMES = tuple(f"{layer}.{part}" for layer in ("conv0", "conv1", "dense2", "dense3") for part in ("weight", "bias"))
EXPECTED = "expected weights.pt of `train`, with two convolutions and two dense layers, as equation (22) has them"


class WeightsError(Exception):
    """The weights cannot be used. The message is one line for a person."""


def make_network(seed: int) -> DocumentCNN:
    """Make a network with PyTorch's initial weights, drawn from ``seed``. The global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DocumentCNN(channels=CHANNELS, hidden=HIDDEN)


def load_network(path: Path, image_side: int) -> tuple[DocumentCNN, int]:
    """Load weights that ``train`` wrote; return the network and the side of its images.

    The file has the weights and no sizes, so sizes follow from their shapes, and the side is the smallest one that
    they fit, at most ``image_side``.

    Raises:
        WeightsError: no such file, another kind of file, or weights of another network.
    """
    weights = _read(path)
    if sorted(weights) != sorted(NAMES):
        raise WeightsError(f"{path}: {EXPECTED}; got {', '.join(sorted(weights)[:8]) or 'nothing'}")
    conv0, conv1, dense2, dense3 = (weights[name] for name in NAMES[::2])
    if [w.dim() for w in (conv0, conv1, dense2, dense3)] == [4, 4, 2, 2] and conv0.shape[2:] == conv1.shape[2:]:
        sizes = (conv0.shape[0], conv1.shape[0]), conv0.shape[2:], dense2.shape[:1], dense3.shape[0]
        for side in range(1, image_side + 1):
            try:
                model = DocumentCNN(1, side, sizes[0], tuple(sizes[1]), sizes[2], sizes[3])  # type: ignore[arg-type]
            except ValueError:  # the images are too small for the layers
                continue
            if all(model.get_parameter(name).shape == weights[name].shape for name in NAMES):
                if model.classes < DIGITS:
                    raise WeightsError(f"{path}: expected at least {DIGITS} classes, got {model.classes}")
                model.load_state_dict(weights)
                return model, side
    shapes = ", ".join(f"{name} {tuple(weights[name].shape)}" for name in NAMES[::2])
    raise WeightsError(f"{path}: {EXPECTED}, for images of at most {image_side}x{image_side}; got {shapes}")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError) as error:  # of a foreign file
        raise WeightsError(f"{path} is not a weights file: {EXPECTED}") from error
    if not isinstance(weights, Mapping) or not all(map(_is_weight, weights.values())):
        raise WeightsError(f"{path} is not a weights file: {EXPECTED}")
    if not all(value.isfinite().all() for value in weights.values()):
        raise WeightsError(f"{path}: expected finite weights, got NaN or infinity")
    return {str(name): value.float() for name, value in weights.items()}


def _is_weight(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
