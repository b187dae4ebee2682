"""torchvision's classification models: their names, a native and a converted model, a random batch, the loss.

torchvision is imported where it is needed: its import takes longer than a comparison of one case.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import manualgrad as mg
from compare.case import CaseError

SOURCE = "torchvision"
CLASSES = 1000  # of every classification model of torchvision


@dataclass(frozen=True)
class ModelOptions:
    """Options of a comparison of models.

    Attributes:
        size: height and width of the images.
        batch: number of images in a batch.
        functional: also convert functional calls in a model's forward.
        device: device of models and images.
    """

    size: int = 224
    batch: int = 2
    functional: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Batch:
    """Images (N, 3, H, W), labels (N,), and the random seed of dropout."""

    images: Tensor
    labels: Tensor
    dropout_seed: int

    def to(self, dtype: torch.dtype) -> Batch:
        """Return the batch with images of ``dtype``."""
        return Batch(self.images.to(dtype), self.labels, self.dropout_seed)


def parse_model_names(arguments: Sequence[str]) -> list[str]:
    """Model names without the prefix "torchvision:" and without repetitions.

    Raises:
        CaseError: an argument has another prefix, or torchvision has no such model; the message lists similar names.
    """
    if not arguments:
        return []
    from torchvision import models

    known = models.list_models(module=models)
    names = []
    for argument in arguments:
        source, colon, name = argument.rpartition(":")
        if name not in known:
            similar = difflib.get_close_matches(name, known)
            question = f"did you mean {' or '.join(f'{SOURCE}:{model}' for model in similar)}?"
            names_in = "torchvision.models.list_models(module=torchvision.models) lists them"
            raise CaseError(
                f"--model {argument}: {name!r} is no classification model of torchvision; "
                f"{question if similar else names_in}"
            )
        if (source, colon) != (SOURCE, ":"):
            raise CaseError(f"--model {argument}: expected {SOURCE}:NAME, for example {SOURCE}:{name}")
        names.append(name)
    return list(dict.fromkeys(names))


def make_native_model(name: str, seed: int, options: ModelOptions) -> nn.Module:
    """Build torchvision's model with random weights, in training mode, on the options' device."""
    from torchvision import models

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the weight initialization of the two inceptions
        return models.get_model(name, weights=None).train().to(options.device)


def convert_model(native: nn.Module, options: ModelOptions) -> tuple[nn.Module, mg.interop.Report]:
    """Convert the model by from_torch; return it with the conversion report. Both models share their parameters."""
    return mg.from_torch(native, copy_parameters=False, functional=options.functional, report=True)


def random_batch(options: ModelOptions, dropout_seed: int) -> Batch:
    """Draw a batch from the present random state: call it right after the model's weights were drawn."""
    images = torch.randn(options.batch, 3, options.size, options.size)
    labels = torch.randint(CLASSES, (options.batch,))
    return Batch(images.to(options.device), labels.to(options.device), dropout_seed)


def compute_loss(model: nn.Module, loss: nn.Module, batch: Batch) -> Tensor:
    """Loss of the model's output, or of its first output if it has several."""
    torch.manual_seed(batch.dropout_seed)
    output = model(batch.images)
    return loss(output if isinstance(output, Tensor) else output[0], batch.labels)


def parameters_in_forward_order(name: str, options: ModelOptions) -> list[str]:
    """Names of all parameters, in the order in which a forward pass calls the layers that hold them.

    Raises:
        CaseError: torchvision's model does not accept such images.
    """
    native = make_native_model(name, 0, options)
    call_order: dict[str, int] = {}

    def recorder(layer_name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            call_order.setdefault(layer_name, len(call_order))

        return hook

    for layer_name, layer in native.named_modules():
        layer.register_forward_pre_hook(recorder(layer_name))
    try:
        with torch.no_grad():
            compute_loss(native, nn.CrossEntropyLoss(), random_batch(options, 0))
    except (RuntimeError, ValueError, AssertionError) as error:  # raised by its layers for a size that is too small
        reason = str(error).strip().splitlines() or [type(error).__name__]
        images = f"a batch of {options.batch} of {options.size}x{options.size}"
        raise CaseError(f"--model {SOURCE}:{name} does not run on {images}: {reason[0]}") from error

    def position(parameter: str) -> int:
        layer_name = parameter.rpartition(".")[0]
        while (
            layer_name not in call_order
        ):  # a layer that is read but not called, as in attention; the root is called
            layer_name = layer_name.rpartition(".")[0]
        return call_order[layer_name]

    return sorted((parameter for parameter, _ in native.named_parameters()), key=position)
