"""Modules take the arguments of PyTorch's, exchange states with them, and give the same results and gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from manualgrad import nn
from tests.conftest import run_forward_backward
from tests.ops.calls import LABELS, LOGITS

IMAGES = (2, 4, 9, 8)
MODULES = {
    "Conv2d": (
        lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), 1, (1, 2), 2, flip_kernel=False),
        lambda: torch.nn.Conv2d(4, 6, (3, 2), (2, 1), 1, (1, 2), 2),
        IMAGES,
    ),
    "Conv2d, same, without bias": (
        lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False, flip_kernel=False),
        lambda: torch.nn.Conv2d(4, 6, 3, padding="same", bias=False),
        IMAGES,
    ),
    "MaxPool2d": (nn.MaxPool2d, lambda: torch.nn.MaxPool2d(2), IMAGES),
    "MaxPool2d, all options": (
        lambda: nn.MaxPool2d(3, (2, 1), 1, (2, 1), True, True),
        lambda: torch.nn.MaxPool2d(3, (2, 1), 1, (2, 1), True, True),
        IMAGES,
    ),
    "Dense": (lambda: nn.Dense(5, 3), lambda: torch.nn.Linear(5, 3), (2, 4, 5)),
    "Dense, without bias": (lambda: nn.Dense(5, 3, False), lambda: torch.nn.Linear(5, 3, False), (4, 5)),
    "ReLU": (lambda: nn.ReLU(subgradient=0), torch.nn.ReLU, IMAGES),
    "Softmax": (lambda: nn.Softmax(1), lambda: torch.nn.Softmax(1), IMAGES),
}


@pytest.mark.parametrize(("ours", "native", "shape"), MODULES.values(), ids=MODULES)
def test_modules_exchange_states_and_give_one_result(
    ours: Callable[[], torch.nn.Module], native: Callable[[], torch.nn.Module], shape: tuple[int, ...]
) -> None:
    our_module, native_module, from_native = ours().double(), native().double(), ours().double()
    native_module.load_state_dict(our_module.state_dict())
    from_native.load_state_dict(native_module.state_dict())
    assert list(our_module.state_dict()) == list(native_module.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    results = []
    for module in (our_module, from_native, native_module):
        result = run_forward_backward(module, [x], torch.ones_like)
        results.append(result | {name: parameter.grad for name, parameter in module.named_parameters()})
    *our_results, native_result = results
    for result in our_results:
        torch.testing.assert_close(result, native_result, rtol=0, atol=1e-12)  # values of about 10


def test_flatten_module_is_native_after_a_permutation() -> None:
    x = torch.randn(IMAGES)
    assert torch.equal(nn.Flatten()(x), torch.nn.Flatten()(x.permute(0, 2, 3, 1)))


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2, 3])], ids=["plain", "weighted"])
def test_loss_module_exchanges_its_state_and_gives_one_result(weight: Tensor | None) -> None:
    ours = nn.SoftmaxCrossEntropyLoss(weight, ignore_index=0, reduction="sum", label_smoothing=0.2)
    native = torch.nn.CrossEntropyLoss(weight, ignore_index=0, reduction="sum", label_smoothing=0.2)
    assert ours.state_dict().keys() == native.state_dict().keys()
    native.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(LOGITS, LABELS), native(LOGITS, LABELS))


COUNTERPARTS = {
    nn.Conv2d: torch.nn.Conv2d,
    nn.MaxPool2d: torch.nn.MaxPool2d,
    nn.Dense: torch.nn.Linear,
    nn.Softmax: torch.nn.Softmax,
    nn.SoftmaxCrossEntropyLoss: torch.nn.CrossEntropyLoss,
}
OURS_ONLY = {"flip_kernel"}
OTHER_DEFAULTS = {(nn.MaxPool2d, "kernel_size"), (nn.Softmax, "dim")}  # 2x2, as in the formula sheet; the last one
NATIVE_ONLY = {"padding_mode", "size_average", "reduce"}  # we pad with zeros only; the other two are deprecated


@pytest.mark.parametrize("ours", COUNTERPARTS, ids=lambda module: module.__name__)
def test_constructors_have_native_arguments(ours: type) -> None:
    """The same names, in the same order, with the same defaults."""
    parameters, native = (inspect.signature(module).parameters for module in (ours, COUNTERPARTS[ours]))
    assert [name for name in parameters if name not in OURS_ONLY] == [n for n in native if n not in NATIVE_ONLY]
    for name in parameters.keys() - OURS_ONLY:
        if (ours, name) not in OTHER_DEFAULTS:
            assert parameters[name].default == native[name].default, name


@pytest.mark.parametrize(
    ("ours", "native"),
    [
        (lambda: nn.Conv2d(4, 64, (3, 5), groups=2), lambda: torch.nn.Conv2d(4, 64, (3, 5), groups=2)),
        (lambda: nn.Dense(70, 50), lambda: torch.nn.Linear(70, 50)),
    ],
    ids=["Conv2d", "Dense"],
)
def test_initial_parameters_are_natives(ours: Callable[[], Any], native: Callable[[], Any]) -> None:
    """The same seed gives the same numbers, up to a rounding of the bound; hence the distributions are equal."""
    results = []
    for module in (ours, native):
        torch.manual_seed(3)
        results.append(dict(module().named_parameters()))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


BAD_MODULES = {
    "groups that do not divide": (lambda m: m.Conv2d(4, 4, 3, groups=3)),
    "0 groups": (lambda m: m.Conv2d(4, 4, 3, groups=0)),
    "unknown padding name": (lambda m: m.Conv2d(4, 4, 3, padding="full")),
    "same, strided": (lambda m: m.Conv2d(4, 4, 3, 2, padding="same")),
}
GOOD_MODULES = {
    "kernel_size a list": (lambda m: m.Conv2d(4, 4, [3, 2])),
    "NumPy integers": (lambda m: m.Conv2d(np.int64(4), 4, np.int64(3))),
    "float16": (lambda m: m.Conv2d(4, 4, 3, dtype=torch.half)),
    "on the meta device": (lambda m: m.Conv2d(4, 4, 3, device="meta")),
    "no input features": (lambda m: getattr(m, "Dense", getattr(m, "Linear", None))(0, 3)),
}


@pytest.mark.parametrize("make", BAD_MODULES.values(), ids=BAD_MODULES)
def test_modules_refuse_at_once_what_native_does(make: Callable[[Any], Any]) -> None:
    for library in (nn, torch.nn):
        with pytest.raises(ValueError, match=r"groups|padding"):
            make(library)


@pytest.mark.parametrize("make", GOOD_MODULES.values(), ids=GOOD_MODULES)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_modules_accept_what_native_does(make: Callable[[Any], Any]) -> None:
    ours, native = make(nn), make(torch.nn)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in native.parameters()]
