"""Which models there are, a pair of one, what both are given, and the order in which its parameters come to work."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

import manualgrad as mg
from compare.case import CaseError

SOURCE = "torchvision"
CLASSES = 1000  # of every classification model of torchvision's


@dataclass(frozen=True)
class Shape:
    """How a model is run: rows and columns of an image, images in a batch, and whether calls are replaced too."""

    size: int = 224
    batch: int = 2
    functional: bool = False


@dataclass(frozen=True)
class Batch:
    """Images, labels, and the seed from which dropout draws."""

    images: Tensor
    labels: Tensor
    seed: int

    def to(self, dtype: torch.dtype) -> Batch:
        return Batch(self.images.to(dtype), self.labels, self.seed)


def chosen(asked: Sequence[str]) -> list[str]:
    """The names behind "torchvision:", each once.

    Raises:
        CaseError: another prefix, or a model that torchvision hasn't; the message names those that are near.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    names = []
    for words in asked:
        source, colon, name = words.rpartition(":")
        if name not in known:
            near = ", ".join(f"{SOURCE}:{each}" for each in difflib.get_close_matches(name, known) or known[:5])
            raise CaseError(
                f"--model {words}: {name!r} is no classification model of torchvision; there are {near} ..."
            )
        if (source, colon) != (SOURCE, ":"):
            raise CaseError(f"--model {words}: expected {SOURCE}:NAME, as {SOURCE}:{name}")
        names.append(name)
    return list(dict.fromkeys(names))


def native_model(name: str, seed: int) -> nn.Module:
    """torchvision's model with random weights, in training mode."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about how the two inceptions draw their weights
        return torchvision.models.get_model(name, weights=None).train()


def our_model(native: nn.Module, shape: Shape) -> tuple[nn.Module, mg.interop.Report]:
    """The same with our layers, and what became of each; both train the same parameters."""
    return mg.from_torch(native, copy_parameters=False, functional=shape.functional, report=True)


def random_batch(shape: Shape, seed: int) -> Batch:
    """Drawn from where the random state is, which the model's weights have just come from."""
    images = torch.randn(shape.batch, 3, shape.size, shape.size)
    return Batch(images, torch.randint(CLASSES, (shape.batch,)), seed)


def cost(model: nn.Module, loss: nn.Module, batch: Batch) -> Tensor:
    """The loss; of a model with several outputs, that of the first."""
    torch.manual_seed(batch.seed)
    output = model(batch.images)
    return loss(output if isinstance(output, Tensor) else output[0], batch.labels)


def in_order_of_depth(name: str, shape: Shape) -> list[str]:
    """The names of all parameters in the order in which a forward pass comes to the layers that hold them.

    Raises:
        CaseError: torchvision's model takes no such images.
    """
    native = native_model(name, 0)
    reached: dict[str, int] = {}

    def note(layer_name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            reached.setdefault(layer_name, len(reached))

        return hook

    for layer_name, layer in native.named_modules():
        layer.register_forward_pre_hook(note(layer_name))
    try:
        with torch.no_grad():
            cost(native, nn.CrossEntropyLoss(), random_batch(shape, 0))
    except (RuntimeError, ValueError, AssertionError) as error:  # what its layers raise for a size
        told = str(error).strip().splitlines() or [type(error).__name__]
        images = f"a batch of {shape.batch} of {shape.size}x{shape.size}"
        raise CaseError(f"--model {SOURCE}:{name} does not run on {images}: {told[0]}") from error

    def depth(parameter: str) -> int:
        holder = parameter.rpartition(".")[0]
        while holder not in reached:  # a layer that is read and not called, as in attention; the root is reached
            holder = holder.rpartition(".")[0]
        return reached[holder]

    return sorted((parameter for parameter, _ in native.named_parameters()), key=depth)
