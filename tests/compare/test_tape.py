"""Promise: a backward that differs from native's in one elementary step is named by that step and its line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compare import Case, compare
from compare.gradients.diagnosis.tape import Ref, Step, addresses
from compare.gradients.diagnosis.tape_operations import other_arguments
from tests.compare.gallery.unseen.operation import Formulas

pytestmark = pytest.mark.usefixtures("short_search")


def log_gamma(a: Tensor) -> Tensor:
    return a * a - torch.lgamma(a)


def weighted(x: Tensor) -> Tensor:
    places = torch.arange(5) - torch.arange(5)[:, None]
    return (x[:, :, None] * places.abs().to(x.dtype)).logsumexp(1)


def signed_backward(g: Tensor, x: Tensor) -> Tensor:
    """The distance is used with its sign after the softmax."""
    places = (torch.arange(5) - torch.arange(5)[:, None]).to(x.dtype)
    softmax = (x[:, :, None] * places.abs()).softmax(1)
    return (softmax * g[:, None] * places).sum(2)


CASES = [
    (
        log_gamma,
        lambda: {"a": torch.rand(3, 4) + 1},
        lambda g, a: g * (2 * a - torch.log(a)),
        "log is used instead of digamma",
    ),
    (weighted, lambda: {"x": torch.randn(3, 5)}, signed_backward, "abs is left out"),
]


def test_options_of_an_operation_that_checks_none_are_not_changed():
    """PyTorch's batch norm in evaluation mode, but without statistics, ends the process."""
    arguments = [Ref(0), None, None, None, None, True, 0.1, 1e-5]
    step = Step(torch.ops.aten.native_batch_norm.default, arguments, None, [1, 2, 3], "batch_norm")
    words = [words for _, words, _ in other_arguments(step, 3)]
    assert words and all("instead of 0.1 " in text or "instead of 1e-05 " in text for text in words), words


def test_only_those_private_operations_that_check_their_options_get_others():
    fft = Step(torch.ops.aten._fft_r2c.default, [Ref(0), -1, 2, True], None, [1], "rfft")
    softmax = Step(torch.ops.aten._softmax.default, [Ref(0), 1, False], None, [1], "softmax")
    assert not list(other_arguments(fft, 2))  # a dimension of -2 ended the process
    assert list(other_arguments(softmax, 2))


def test_operations_that_do_not_check_indices_get_only_their_own():
    """Others make it write outside of its memory, which ended the process."""
    indices, g, x = torch.tensor([[[0, 4]]]), torch.ones(1, 1, 2), torch.zeros(1, 1, 6)
    operation = torch.ops.aten.adaptive_max_pool2d_backward.default
    step = Step(operation, [Ref(0), Ref(1), Ref(2)], None, [3], "pool", is_flat=True)
    step.own = addresses([g[:, :, None], x[:, :, None], indices[:, :, None]])
    with pytest.raises(ValueError, match="may not check"):
        step.call([g[:, :, None], x[:, :, None], torch.full((1, 1, 1, 2), 10**6)])
    with pytest.raises(ValueError, match="may not check"):
        step.call([g[:, :, None].expand(1, 1, 3, 2), x[:, :, None], indices[:, :, None]])
    (result,) = step.call([2 * g[:, :, None], x[:, :, None], indices[:, :, None]])
    assert result.flatten().tolist() == [2, 0, 0, 0, 2, 0]


class Pooled(torch.autograd.Function):
    """Windows that overlap: their gradients are stored one over the other."""

    @staticmethod
    def forward(ctx, x):
        y, indices = torch.nn.functional.adaptive_max_pool2d(x, 2, return_indices=True)
        ctx.save_for_backward(indices)
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx, g):
        (indices,) = ctx.saved_tensors
        return g.new_zeros(ctx.shape).flatten(2).scatter_(2, indices.flatten(2), g.flatten(2)).view(ctx.shape)


def test_adaptive_pooling_is_diagnosed():
    native = lambda x: torch.nn.functional.adaptive_max_pool2d(x, 2)  # noqa: E731
    own = Case("pooled", Pooled.apply, native, lambda: (torch.randn(2, 2, 5, 5),))
    (finding,) = compare(own, dtypes=(torch.float64,)).findings
    assert finding.kind == "missing term" and "scatter_add_" in finding.correction, finding


def case(
    native: Callable[..., Tensor], inputs: Callable[[], dict[str, Tensor]], backward: Callable[..., Tensor]
) -> Case:
    return Formulas(native.__name__, native, inputs, backward, ()).case(native.__name__, backward)


@pytest.mark.parametrize(("native", "inputs", "backward", "words"), CASES, ids=[each[0].__name__ for each in CASES])
def test_one_changed_step_is_named(native, inputs, backward, words):
    (finding,) = compare(case(native, inputs, backward)).findings
    assert words in finding.statement, finding
    assert "in line" in finding.statement, finding
    assert "got" in finding.evidence and "expected" in finding.evidence, finding
