"""Self-test of the gradients: operations beside finite differences, and float32 (kernels) beside float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from manualgrad import functional
from manualgrad.models import DocumentCNN

STEP = 1e-6  # of finite differences in float64: their error is about 1e-16 / STEP + STEP², relative to the results
FINITE_DIFFERENCE_LIMIT = 1e-7
FLOAT32_LIMIT = 1e-5  # some roundings of float32; a wrong element has an error of about 1


@dataclass(frozen=True)
class TestResult:
    """Result of one test: the largest error relative to the largest element, or the exception that ended it."""

    name: str
    error: float
    limit: float
    exception: Exception | None = None

    @property
    def passed(self) -> bool:
        """True if the error is at most the limit; False for NaN."""
        return self.exception is None and self.error <= self.limit

    def __str__(self) -> str:
        if self.exception is not None:
            return f"{self.name}: {type(self.exception).__name__}: {self.exception}"
        return f"{self.name}: largest error {self.error:.0e}, limit {self.limit:.0e}"


def tests() -> Iterator[Callable[[], TestResult]]:
    """Yield every test of this machine as a function that runs it."""
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for name, (function, *shapes) in OPERATIONS.items():
            yield _beside_finite_differences(name, device, partial(_operation_error, function, shapes, device))
        yield _beside_finite_differences("DocumentCNN", device, partial(_network_error, device))
    yield partial(_run, "DocumentCNN, float32, cpu, beside float64", FLOAT32_LIMIT, _float32_error)


def _beside_finite_differences(name: str, device: str, measure: Callable[[], float]) -> Callable[[], TestResult]:
    name = f"{name}, float64, {device}, beside finite differences"
    return partial(_run, name, FINITE_DIFFERENCE_LIMIT, measure)


def _run(name: str, limit: float, measure: Callable[[], float]) -> TestResult:
    try:
        return TestResult(name, measure(), limit)
    except Exception as error:  # reported as the test's failure; the other tests run
        return TestResult(name, float("nan"), limit, error)


def _cost(logits: Tensor) -> Tensor:
    labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
    return functional.softmax_cross_entropy(logits, labels)


# Name: function, and the shapes of its arguments.
OPERATIONS: dict[str, Sequence[Any]] = {
    "conv2d": (functional.conv2d, (2, 2, 5, 4), (3, 2, 3, 2), (3,)),
    "max_pool2d": (functional.max_pool2d, (2, 2, 4, 6)),
    "flatten": (functional.flatten, (2, 2, 3, 2)),
    "dense": (functional.dense, (3, 4), (5, 4), (5,)),
    "relu": (functional.relu, (4, 5)),
    "softmax": (functional.softmax, (4, 5)),
    "softmax_cross_entropy": (_cost, (4, 5)),
}


def _random(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _operation_error(function: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]], device: str) -> float:
    return _gradient_error(
        function, [_random(shape, n).to(device).requires_grad_() for n, shape in enumerate(shapes)]
    )


def _network_error(device: str) -> float:
    model = DocumentCNN(
        1, 6, channels=(2,), kernel_size=3, hidden=(3,), classes=3, device=device, dtype=torch.float64
    )
    x = _random((2, 1, 6, 6), 0).to(device).requires_grad_()
    return _gradient_error(lambda x, *_: model(x), [x, *model.parameters()])


def _gradient_error(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> float:
    """Largest difference of the gradients of Σ weights · function(inputs) from central differences, relative."""
    output = function(*inputs)
    weights = _random(output.shape, len(inputs)).to(output.device)
    (output * weights).sum().backward()  # type: ignore[no-untyped-call]
    errors, scales = [], []
    with torch.no_grad():
        for tensor in inputs:
            assert tensor.grad is not None
            numerical = torch.empty_like(tensor)
            elements, slopes = tensor.view(-1), numerical.view(-1)  # they share memory
            for n, value in enumerate(elements.tolist()):
                elements[n] = value + STEP
                above = (function(*inputs) * weights).sum()
                elements[n] = value - STEP
                slopes[n] = (above - (function(*inputs) * weights).sum()) / (2 * STEP)
                elements[n] = value
            errors.append((tensor.grad - numerical).abs().max())
            scales.append(numerical.abs().max())
    return float(torch.stack(errors).max() / torch.stack(scales).max())  # NaN if an element is


def _float32_error() -> float:
    """Largest difference of a network's gradients in float32 from those in float64, relative to the largest gradient.

    Kernels compute those in float32 if there are any. Images and weights are multiples of a power of two, so that the
    sums before softmax are exact in both dtypes, and the same maxima are selected.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(shape: Sequence[int], unit: float) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).float() * unit

    model, images, labels = DocumentCNN(), draw((16, 1, 28, 28), 1 / 4), torch.arange(16) % 10
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(draw(parameter.shape, 1 / 16))
    oracle = copy.deepcopy(model).double()
    model.cost(images, labels).backward()  # type: ignore[no-untyped-call]
    oracle.cost(images.double(), labels).backward()  # type: ignore[no-untyped-call]
    errors = []
    for ours, expected in zip(model.parameters(), oracle.parameters(), strict=True):
        assert ours.grad is not None and expected.grad is not None
        errors.append((ours.grad - expected.grad).abs().max() / expected.grad.abs().max())
    return float(torch.stack(errors).max())  # NaN if an element is
